"""What is known of each trial: one row in a table, and which images it classified rightly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.accuracy.study import REPOSITORY, Study

KEY = ["variant", "seed"]


def trained_file(folder: Path) -> Path:
    """Written beside a run when its training has ended."""
    return REPOSITORY / folder / "trained.json"


def judged_file(folder: Path, split: str) -> Path:
    """Scores of a run on a split; beside it, as ``.npz``, the images it classified rightly."""
    return REPOSITORY / folder / "judged" / f"{split}.json"


def read_rows(study: Study) -> list[dict[str, Any]]:
    """The rows of a study so far."""
    path = study.results / f"{study.name}.csv"
    return pd.read_csv(path).to_dict("records") if path.exists() else []


def write_rows(study: Study) -> None:
    """Bring table and images up to date with the folders; rows whose folder is gone are kept."""
    trials = {(trial.variant, trial.seed): trial for trial in study.trials()}
    rows = {(row["variant"], row["seed"]): row for row in read_rows(study)}
    right = {tuple(row[:4]): row for row in read_right(study).itertuples(index=False)}
    for key, trial in trials.items():
        if not trained_file(trial.folder).exists():
            continue
        row: dict[str, Any] = dict(zip(KEY, key, strict=True))
        row |= json.loads(trained_file(trial.folder).read_text())
        for split in ("validate", "test"):
            file = judged_file(trial.folder, split)
            if file.exists():
                row |= {f"{split} {name}": value for name, value in json.loads(file.read_text()).items()}
                for name, bits in np.load(file.with_suffix(".npz")).items():
                    right[*key, split, name] = (*key, split, name, len(bits), np.packbits(bits).tobytes())
        rows[key] = row
    order = {key: place for place, key in enumerate(trials)}
    study.results.mkdir(parents=True, exist_ok=True)
    kept = sorted(rows.items(), key=lambda item: order.get(item[0], len(order)))
    pd.DataFrame([row for _, row in kept]).to_csv(study.results / f"{study.name}.csv", index=False)
    columns = [*KEY, "split", "evaluation", "images", "right"]
    pd.DataFrame(right.values(), columns=columns).to_parquet(_right_file(study), index=False)


def _right_file(study: Study) -> Path:
    return study.results / f"{study.name}.parquet"


def read_right(study: Study) -> pd.DataFrame:
    """variant, seed, split, evaluation, images, and ``right``: a bit for each image, packed."""
    path = _right_file(study)
    return pd.read_parquet(path) if path.exists() else pd.DataFrame()


def right_of(frame: pd.DataFrame, variant: str, seed: int, split: str, evaluation: str) -> np.ndarray:
    """Which images a trial classified rightly, bool (N,)."""
    asked = {"variant": variant, "seed": seed, "split": split, "evaluation": evaluation}
    (found,) = frame[(frame[list(asked)] == pd.Series(asked)).all(axis=1)].itertuples()
    return np.unpackbits(np.frombuffer(found.right, np.uint8), count=found.images).astype(bool)
