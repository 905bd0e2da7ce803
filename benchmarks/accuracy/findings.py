"""What the rows of a study say: which evaluation serves a variant, and how far two variants lie apart."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from benchmarks.accuracy.interval import Interval, crossed_interval
from benchmarks.accuracy.rows import right_of
from models.measure import evaluation_name


def served(own: pd.DataFrame) -> str:
    """The evaluation that serves a variant best on the validation images, over its seeds."""
    names = evaluations(own, "validate")
    return max(names, key=lambda name: own[f"validate top1 {name}"].mean())


def difference(rows: pd.DataFrame, right: pd.DataFrame, variant: str, other: str) -> Interval | None:
    """Points of a variant above another on the test images, each by its served evaluation, paired by seed."""
    tested = rows[rows["test images"].notna()]
    own, theirs = (tested[tested["variant"] == name] for name in (variant, other))
    seeds = sorted(set(own["seed"]) & set(theirs["seed"]))
    if not seeds:
        return None
    a, b = (
        np.stack([right_of(right, name, seed, "test", served(found)) for seed in seeds]).astype(float)
        for name, found in ((variant, own), (other, theirs))
    )
    return crossed_interval(100 * (a - b))


def evaluations(rows: pd.DataFrame, split: str) -> list[str]:
    """Those that the rows hold, by rising number of samples."""
    known: Iterator[str] = (evaluation_name(n) for n in range(1001))
    return [name for name in known if f"{split} top1 {name}" in rows]
