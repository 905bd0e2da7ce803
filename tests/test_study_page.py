"""The tables of the study of labels say what its rows say, and docs/study.md what the tables say."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.accuracy.study import Study
from benchmarks.labels.tables import write_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "labels"
NAMES = ("embedded", "cifar10")
PAGE = ROOT / "docs" / "study.md"


def rows(text):
    """Rows of networks in the tables of a text."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line for line in lines if line.count("|") > 7 and not line.startswith("| network ")]


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_are_of_the_rows(name, tmp_path):
    for path in RESULTS.glob(f"{name}*.csv"):
        shutil.copy(path, tmp_path)
    study = replace(Study.read(ROOT / "benchmarks" / "labels" / f"{name}.yaml"), results=str(tmp_path))
    assert write_tables(study).read_text() == (RESULTS / f"{name}.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_page_repeats_the_summary_of_each_study(name):
    summary = (RESULTS / f"{name}.md").read_text().split("## Summary")[1].split("\n## ")[0]
    assert len(rows(summary)) >= 9
    page = PAGE.read_text()
    assert not [row for row in rows(summary) if row not in page]


def test_every_row_of_the_page_is_one_of_the_tables():
    known = "".join((RESULTS / f"{name}.md").read_text() for name in NAMES)
    told = rows(PAGE.read_text())
    assert len(told) >= 21 + 4 * 3 + 4 * 6
    assert not [row for row in told if row not in known]


def test_the_readme_repeats_cells_of_the_tables():
    table = (ROOT / "README.md").read_text().split("| correlation of labels, of one in 24 / ReLU / GELU |")[1]
    told = re.findall(r"(\.\d{3} ± \.\d{3})", table.split("\n\n")[0])
    assert len(told) == 4 * 6
    known = "".join((RESULTS / f"{name}.md").read_text() for name in NAMES)
    assert not [cell for cell in told if f"| 0{cell.replace('± ', '± 0')} |" not in known]
