"""``python -m benchmarks.labels {measure,table}``: labels of the networks of a study, judged."""

import sys
from pathlib import Path

import pandas as pd
from filelock import FileLock
from jsonargparse import auto_cli

from benchmarks.accuracy.study import REPOSITORY, Study
from benchmarks.accuracy.trial import Trial
from benchmarks.labels.measure import firing, measure
from benchmarks.labels.settings import ENCODER, setting
from benchmarks.labels.tables import write_tables
from lwta.errors import InputError


def run(study: str, root: str, only: str = "*") -> None:
    """Label and judge the trained networks of a study that have no rows yet.

    Args:
        study: YAML file of ``python -m benchmarks.accuracy``.
        root: data folder.
        only: glob over variants.
    """
    read = Study.read(study)
    paths = [REPOSITORY / read.results / f"{read.name}-{kind}.csv" for kind in ("labels", "firing")]
    left = [
        trial for trial in read.trials(only) if trial.variant != ENCODER and not _has(paths[0], _key(trial))
    ]
    if gone := [str(trial) for trial in left if trial.read("validate") is None]:
        print(f"not measured, as there is no trained network: {'; '.join(gone)}", file=sys.stderr)
    left = [trial for trial in left if trial.read("validate") is not None]
    given = setting(read, root) if left else None
    for trial in left:
        assert given is not None
        key = _key(trial)
        print(trial, flush=True)
        rows = [key | row for row in measure(trial.folder, root, given)]
        _add(paths[1], [key | firing(trial.folder, root, given.layers, "validate", 1000)])
        _add(paths[0], rows)  # last: it says that the network is done


def table(study: str) -> None:
    """Write the tables and the plot of a study from its rows.

    Args:
        study: YAML file.
    """
    print(write_tables(Study.read(study)))


def _key(trial: Trial) -> dict[str, object]:
    return {"variant": trial.variant, "seed": trial.seed}


def _has(path: Path, key: dict[str, object]) -> bool:
    held = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(key))
    return bool(((held["variant"] == key["variant"]) & (held["seed"] == key["seed"])).any())


def _add(path: Path, rows: list[dict[str, object]]) -> None:
    """Add the rows of a network in place of any that it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = REPOSITORY / "runs" / f"{path.stem}.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):  # several may measure at a time
        held = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["variant", "seed"])
        others = held[(held["variant"] != rows[0]["variant"]) | (held["seed"] != rows[0]["seed"])]
        part = path.with_suffix(".part")
        pd.concat([others, pd.DataFrame(rows)]).to_csv(part, index=False, float_format="%.6g")
        part.replace(path)


if __name__ == "__main__":
    try:
        auto_cli({"measure": run, "table": table}, as_positional=True)
    except InputError as error:
        sys.exit(f"error: {error}")
