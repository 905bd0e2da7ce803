"""What is known of each trial: one row in a table, and which images it classified rightly."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from benchmarks.accuracy.study import REPOSITORY, Study
from benchmarks.accuracy.trial import Trial

KEY = ["variant", "seed"]
_RIGHT = [*KEY, "split", "evaluation", "images", "right"]
SPLITS = ("validate", "test")
#: Columns of words, which may look like numbers.
_WORDS = ["variant", "recipe", "commit", "resumed at"]
_WORDS += [f"{split} {name}" for split in SPLITS for name in ("images hash", "judged at")]


def read_rows(study: Study) -> list[dict[str, Any]]:
    """The rows of a study so far."""
    path = result_file(study, ".csv")
    if not path.exists():
        return []
    frame = pd.read_csv(path, dtype=dict.fromkeys(_WORDS, str), keep_default_na=False, na_values=[""])
    return frame.to_dict("records")


def write_rows(study: Study) -> None:
    """Bring the table up to date with the folders of trials; rows whose folder is gone are kept.

    So are those that were tested, where their network was trained again since: it is not tested again.
    Folders of another recipe are left out. One process writes at a time.
    """
    lock = REPOSITORY / study.runs / f"{study.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        _write_rows(study)


def _write_rows(study: Study) -> None:
    trials = {(trial.variant, trial.seed): trial for trial in study.trials()}
    rows = {(row["variant"], row["seed"]): row for row in read_rows(study)}
    right = {tuple(row)[:4]: tuple(row) for row in read_right(study).itertuples(index=False)}
    for key, trial in trials.items():
        tested = not pd.isna(rows.get(key, {}).get("test images"))
        if (trained := trial.read("trained")) is None or trained["recipe"] != trial.recipe(REPOSITORY):
            continue
        # Not yet judged, or tested as it was before: its row stays.
        if trial.read("validate") is None or (tested and trial.read("test") is None):
            continue
        rows[key] = dict(zip(KEY, key, strict=True)) | trained
        right = {name: bits for name, bits in right.items() if name[:2] != key}
        for split in SPLITS:
            if (scores := trial.read(split)) is not None:
                rows[key] |= {f"{split} {name}": value for name, value in scores.items()}
                right |= {(*key, split, name): bits for name, bits in _packed(trial, split)}
    if not rows:
        return
    order = {key: place for place, key in enumerate(trials)}
    kept = sorted(rows.items(), key=lambda item: order.get(item[0], len(order)))
    table = result_file(study, ".csv")
    table.parent.mkdir(parents=True, exist_ok=True)
    part = table.with_suffix(".part")
    pd.DataFrame([row for _, row in kept]).to_csv(part, index=False)
    part.replace(table)
    pd.DataFrame(right.values(), columns=_RIGHT).to_parquet(part, index=False)
    part.replace(result_file(study, ".parquet"))


def _packed(trial: Trial, split: str) -> list[tuple[str, tuple]]:
    key = (trial.variant, trial.seed, split)
    with np.load(trial.folder / f"{split}.npz") as held:
        return [(name, (*key, name, len(bits), np.packbits(bits).tobytes())) for name, bits in held.items()]


def read_right(study: Study) -> pd.DataFrame:
    """variant, seed, split, evaluation, images, and ``right``: a bit for each image, packed."""
    path = result_file(study, ".parquet")
    return pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=_RIGHT)


def right_of(frame: pd.DataFrame, variant: str, seed: int, split: str, evaluation: str) -> np.ndarray:
    """Which images a trial classified rightly, bool (N,)."""
    asked = {"variant": variant, "seed": seed, "split": split, "evaluation": evaluation}
    (found,) = frame[(frame[list(asked)] == pd.Series(asked)).all(axis=1)].itertuples()
    return np.unpackbits(np.frombuffer(found.right, np.uint8), count=found.images).astype(bool)


def result_file(study: Study, suffix: str) -> Path:
    """A file of the study's results."""
    return REPOSITORY / study.results / f"{study.name}{suffix}"
