"""``python -m benchmarks.accuracy {fit,judge,test,table}``."""

import sys

from jsonargparse import auto_cli

from benchmarks.accuracy.scores import judge_run
from benchmarks.accuracy.study import Study
from benchmarks.accuracy.tables import write_tables
from benchmarks.accuracy.trials import Runner
from lwta.errors import InputError


def fit(study: str, root: str, jobs: int = 1, only: str = "*") -> None:
    """Train the trials of a study that have no row yet, and judge them on the validation images.

    Args:
        study: YAML file.
        root: data folder.
        jobs: trials at a time; the cores are shared out.
        only: glob over variants.
    """
    read = Study.read(study)
    _end(Runner(read, root, jobs).fit(read.trials(only)))


def read_test(study: str, root: str, jobs: int = 1, only: str = "*") -> None:
    """Judge the rows of the final table, and of the curves, on the test images, once, after all choices.

    A network that is gone is trained again.

    Args:
        study: YAML file.
        root: data folder.
        jobs: trials at a time.
        only: glob over variants.
    """
    read = Study.read(study)
    _end(Runner(read, root, jobs).test(read.tested(only)))


def table(study: str) -> None:
    """Write benchmarks/results/accuracy/STUDY.md and its plot from the rows.

    Args:
        study: YAML file.
    """
    print(write_tables(Study.read(study)))


def _end(failures: list[str]) -> None:
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    try:
        auto_cli({"fit": fit, "judge": judge_run, "test": read_test, "table": table}, as_positional=True)
    except InputError as error:
        sys.exit(f"error: {error}")
