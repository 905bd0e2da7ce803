"""docs/study.md says what the tables say."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLES = {name: ROOT / "benchmarks" / "results" / "labels" / f"{name}.md" for name in ("embedded", "cifar10")}
PAGE = ROOT / "docs" / "study.md"


@pytest.mark.parametrize("name", TABLES)
def test_the_page_repeats_the_summary_of_each_study(name):
    summary = TABLES[name].read_text().split("## Summary")[1].split("\n## ")[0]
    rows = [line for line in summary.splitlines() if line.startswith("| ")]
    assert len(rows) >= 10  # a head and nine networks
    missing = [row for row in rows if row not in PAGE.read_text()]
    assert not missing
