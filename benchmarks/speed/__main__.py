"""``python -m benchmarks.speed {run,table}``."""

import sys
from pathlib import Path

from jsonargparse import auto_cli

from benchmarks.speed.cases import run_cases
from benchmarks.speed.table import write_table
from lwta.errors import InputError


def run(published: str | None = None, only: str = "*", threads: int = 2, rounds: int = 20) -> None:
    """Time the cases of this machine's device into benchmarks/results/speed/{cpu,cuda}.json, and the table.

    Nothing else should run meanwhile. Cases that are not run again keep their rows.

    Args:
        published: clone of github.com/konpanousis/DISCOVER; without it its layer is left out.
        only: glob over names of cases, such as layer*.
        threads: of torch, on a CPU.
        rounds: turns of each case that count.
    """
    run_cases(Path(published) if published else None, only, threads, rounds, sys.argv[1:])
    print(write_table())


def table() -> None:
    """Write benchmarks/results/speed.md from the rows of every device."""
    print(write_table())


if __name__ == "__main__":
    try:
        auto_cli({"run": run, "table": table}, as_positional=True)
    except InputError as error:
        sys.exit(f"error: {error}")
