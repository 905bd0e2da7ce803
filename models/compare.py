"""Runs side by side on the same images, and whether they differ."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import binomtest

from lwta.errors import InputError
from models.judge import Judged
from models.run import Run
from models.sites import Site


class Paired(NamedTuple):
    """A run against the first on the same images, both by argmax.

    Attributes:
        difference: its top-1 less the first's, in points.
        difference_error: standard error of that, paired.
        right_alone: images that only this run classifies rightly.
        wrong_alone: images that only the first does.
        p_value: exact McNemar test, two-sided.
    """

    difference: float
    difference_error: float
    right_alone: int
    wrong_alone: int
    p_value: float


def run_names(folders: list[str]) -> list[str]:
    """A short name for each run; raises InputError where a folder is given twice."""
    paths = [Path(folder).resolve() for folder in folders]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise InputError(f"the run {folders[place]} is given twice; name each run once")
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else folders


def describe(run: Run, judged: Judged, first: Judged) -> dict[str, Any]:
    """What a run is and how it was judged, also against ``first``: columns of the comparison.

    Top-1 comes with its 95 % Wilson interval; ``winners_differ`` is the smallest share of a layer's winners
    that differ between two samples.
    """
    h, report = run.model.hparams, run.model.report
    row: dict[str, Any] = {
        "weights": run.weights,
        "backbone": h["backbone"],
        "activation": ", ".join(sorted({site.kind for site in report.chosen})),
        "competitors": _competitors(report.chosen),
        "parameters": sum(p.numel() for p in run.model.backbone.parameters()),
        "images": int((judged.targets >= 0).sum()),
    }
    for name, right in judged.right.items():
        low, high = wilson(int(right.sum()), row["images"])
        row |= {f"top1_{name}": int(right.sum()) / row["images"]}
        row |= {f"top1_{name}_low": low, f"top1_{name}_high": high}
        row |= {f"calibration_error_{name}": judged.calibration[name]}
    row["winners_differ"] = min(judged.differing.values(), default=math.nan)
    return row | judged.activity._asdict() | paired(first, judged)._asdict()


def _competitors(sites: list[Site]) -> float | None:
    """Of how many units one fires; where sites differ, over all of them."""
    widths = [(site.units or 0, site.competitors) for site in sites]
    if not widths or any(u is None for _, u in widths):
        return None
    return sum(units for units, _ in widths) / sum(units / u for units, u in widths if u)


def wilson(right: int, images: int) -> tuple[float, float]:
    """95 % Wilson interval of a proportion."""
    interval = binomtest(right, images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def paired(first: Judged, other: Judged) -> Paired:
    """Whether a run and the first differ, on the images that decode."""
    a, b = first.right["argmax"], other.right["argmax"]
    images = int((first.targets >= 0).sum())
    wrong_alone, right_alone = int((a & ~b).sum()), int((b & ~a).sum())
    discordant, mean = wrong_alone + right_alone, (right_alone - wrong_alone) / images
    error = math.sqrt((discordant / images - mean**2) / images)
    p = float(binomtest(wrong_alone, discordant, 0.5).pvalue) if discordant else 1.0
    return Paired(100 * mean, 100 * error, right_alone, wrong_alone, p)
