"""The plot of a comparison: accuracy against the fraction of units that fire."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # without pyplot it draws by Agg, needs no display, and keeps no state
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

_BESIDE = 10  # typographic points between runs of the same active fraction
_MARKERS = "osD^vPX*<>"


def draw_pareto(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw top-1 (argmax, 95 % interval) over the active fraction (per position, competing sites).

    Args:
        rows: of :mod:`lwta.dissect.report.comparison`'s; a run of which nothing fires has no place on
            the logarithmic axis and is left out.
        path: of the PNG.
    """
    figure = Figure(figsize=(9, 5), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    _draw_runs(axes, sorted(rows, key=lambda row: -row["top1_argmax"]))
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_xlabel("units that fire at a position, competing sites (log scale; equal ones side by side)")
    axes.set_ylabel("top-1 by argmax, 95 % interval")
    axes.set_title(f"Accuracy against active units: split {rows[0]['split']}, {rows[0]['images']:,} images")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    # Beside the axes: runs often share their active fraction, and names there would cover one another.
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path, format="png")


def _draw_runs(axes: Any, rows: list[dict[str, Any]]) -> None:
    active = [100 * row["position_competing"] for row in rows]
    for place, (row, x) in enumerate(zip(rows, active, strict=True)):
        y, low, high = (100 * row[f"top1_argmax{end}"] for end in ("", "_low", "_high"))
        same = [k for k, other in enumerate(active) if math.isclose(other, x, rel_tol=0.03)]
        aside = (same.index(place) - (len(same) - 1) / 2) * _BESIDE / 72  # inches
        axes.errorbar(
            x,
            y,
            [[y - low], [high - y]],
            fmt=_MARKERS[place % len(_MARKERS)],
            markersize=7,
            capsize=4,
            label=row["run"],
            transform=axes.transData + ScaledTranslation(aside, 0, axes.figure.dpi_scale_trans),
        )
    drawn = [x for x in active if x > 0] or [100.0]
    axes.set_xlim(min(drawn) / 2, max(drawn) * 1.8)
    # By hand: points set aside by a transform do not count when the axes choose their range.
    low, high = (
        100 * f(row[f"top1_argmax_{end}"] for row in rows) for f, end in ((min, "low"), (max, "high"))
    )
    axes.set_ylim(low - (high - low) / 10, high + (high - low) / 10)
