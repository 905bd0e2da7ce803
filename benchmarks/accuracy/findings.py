"""What the rows of a study say: which evaluation serves a variant, and how far two variants lie apart."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks.accuracy.interval import Interval, crossed_interval
from benchmarks.accuracy.rows import right_of
from lwta.errors import InputError


class Difference(NamedTuple):
    """Points of one variant above another, and over how many seeds."""

    interval: Interval
    seeds: int


def evaluations(rows: pd.DataFrame, split: str) -> list[str]:
    """Those that every one of the rows was judged by (:func:`~benchmarks.accuracy.rows.read_rows`)."""
    names = [column.removeprefix(f"{split} top1 ") for column in rows if column.startswith(f"{split} top1 ")]
    return [name for name in names if rows[f"{split} top1 {name}"].notna().all()]


def served(own: pd.DataFrame, split: str = "validate") -> str:
    """Of a split's evaluations the one that is best on the validation images, over the seeds of a variant."""
    judged = [name for name in evaluations(own, "validate") if name in evaluations(own, split)]
    return max(judged, key=lambda name: own[f"validate top1 {name}"].mean())


def difference(
    rows: pd.DataFrame, right: pd.DataFrame, variant: str, other: str, by: str | None = None
) -> Difference | None:
    """Points of a variant above another on the test images, paired by seed.

    Args:
        rows: those that were tested, :func:`benchmarks.accuracy.rows.read_rows`.
        right: their images, :func:`benchmarks.accuracy.rows.read_right`.
        variant, other: which two.
        by: name of the evaluation of both; None judges each by the one that served it.

    Returns:
        None where they have no seed in common.

    Raises:
        InputError: where the two were not tested on the same images.
    """
    own, theirs = (rows[rows["variant"] == name] for name in (variant, other))
    seeds = sorted(set(own["seed"]) & set(theirs["seed"]))
    if not seeds:
        return None
    if len({*own["test images hash"], *theirs["test images hash"]}) > 1:
        raise InputError(f"{variant} and {other} were not tested on the same images; give them the same data")
    a, b = (
        np.stack([right_of(right, name, seed, "test", by or served(found, "test")) for seed in seeds]).astype(
            float
        )
        for name, found in ((variant, own), (other, theirs))
    )
    return Difference(crossed_interval(100 * (a - b)), len(seeds))
