"""The plot of a comparison, accuracy against the fraction of units that fire: decided once, drawn twice.

:func:`pareto` says what stands where; :func:`draw_pareto` draws it as a file, ``pareto.html.j2`` in a page.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure  # without pyplot it draws by Agg, needs no display, and keeps no state
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

_BESIDE = 10  # typographic points between runs of the same active fraction
_MARKERS = "osD^vPX*<>"
_COLOURS = 10  # matplotlib's cycle, and as many in the page
_TICKS = 7  # at most, on the logarithmic axis

X_LABEL = "units that fire at a position, competing sites (log scale; equal ones side by side)"
Y_LABEL = "top-1 by argmax, 95 % interval"


class Point(NamedTuple):
    """A run in the plot.

    Attributes:
        run: its name.
        active, top1, low, high: in percent; the interval is of 95 %.
        aside: typographic points that it is drawn to the right of its place, where others share that.
        marker: matplotlib's letter.
        colour: place in a cycle of ten.
    """

    run: str
    active: float
    top1: float
    low: float
    high: float
    aside: float
    marker: str
    colour: int


class Axis(NamedTuple):
    """A range and its ticks, in percent."""

    low: float
    high: float
    ticks: list[float]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 100 at the high one."""
        low, high, at = map(math.log if self.log else float, (self.low, self.high, value))
        return 100 * (at - low) / (high - low)


class Pareto(NamedTuple):
    """What the plot shows.

    Attributes:
        title: of the plot.
        points: the best first.
        left_out: runs of which nothing fires, or nobody knows how much; they have no place on ``x``.
        x, y: active units, logarithmic, and top-1.
    """

    title: str
    points: list[Point]
    left_out: list[str]
    x: Axis
    y: Axis


def pareto(rows: Sequence[dict[str, Any]]) -> Pareto:
    """Top-1 (argmax, 95 % interval) over the active fraction (per position, competing sites).

    Args:
        rows: of :mod:`lwta.dissect.report.comparison`'s.
    """
    ranked = sorted(rows, key=lambda row: -row["top1_argmax"])
    shown = [row for row in ranked if row["position_competing"] > 0]  # not where it is unknown, NaN
    active = [100 * row["position_competing"] for row in shown]
    points = []
    for place, (row, x) in enumerate(zip(shown, active, strict=True)):
        same = [k for k, other in enumerate(active) if math.isclose(other, x, rel_tol=0.03)]
        points.append(
            Point(
                row["run"],
                x,
                *(100 * row[f"top1_argmax{end}"] for end in ("", "_low", "_high")),
                aside=(same.index(place) - (len(same) - 1) / 2) * _BESIDE,
                marker=_MARKERS[(place + place // len(_MARKERS)) % len(_MARKERS)],
                colour=place % _COLOURS,
            )
        )
    title = f"Accuracy against active units: split {rows[0]['split']}, {rows[0]['images']:,} images"
    left_out = [row["run"] for row in ranked if row not in shown]
    return Pareto(title, points, left_out, _active_axis(active), _top1_axis(points))


def _active_axis(active: list[float]) -> Axis:
    """Out to the next of 1, 2, 5, 10, ... on either side, but to none above the whole."""
    low, high = min(active, default=100.0) / 1.3, max(active, default=100.0) * 1.3
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    round_ones = [float(f"{step}e{decade}") for decade in decades for step in (1, 2, 5)]
    low = max(value for value in round_ones if value <= low)
    high = min(130.0, *(value for value in round_ones if value >= high))
    ticks = [value for value in round_ones if low <= value <= min(high, 100.0)]
    if len(ticks) > _TICKS:
        ticks = [value for value in ticks if value in {float(f"1e{decade}") for decade in decades}]
    return Axis(low, high, ticks, log=True)


def _top1_axis(points: list[Point]) -> Axis:
    low, high = min((p.low for p in points), default=0.0), max((p.high for p in points), default=100.0)
    low, high = low - (high - low) / 10, high + (high - low) / 10
    ticks = map(float, MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high))
    return Axis(low, high, [tick for tick in ticks if low <= tick <= min(high, 100.0)])


def marker_path(marker: str, radius: float = 5.0) -> str:
    """The outline of a marker as an SVG path around the origin.

    Args:
        marker: matplotlib's letter.
        radius: of the circle in which it lies, in pixels.
    """
    style = MarkerStyle(marker)
    outline = style.get_path().transformed(style.get_transform())
    scale = radius / np.linalg.norm(np.asarray(outline.vertices, dtype=float), axis=1).max()
    letters = {int(Outline.MOVETO): "M", int(Outline.LINETO): "L", int(Outline.CURVE4): "C"}
    drawn = []
    for values, code in outline.iter_segments(curves=True, simplify=False):
        if code == Outline.CLOSEPOLY:
            drawn.append("Z")
            continue
        pairs = scale * np.asarray(values, dtype=float).reshape(-1, 2)
        drawn.append(letters[int(code)] + " ".join(f"{x:.2f} {-y:.2f}" for x, y in pairs))
    return "".join(drawn)


def draw_pareto(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw :func:`pareto` as a PNG.

    Args:
        rows: of :mod:`lwta.dissect.report.comparison`'s.
        path: of the PNG.
    """
    plot = pareto(rows)
    figure = Figure(figsize=(9, 5), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for p in plot.points:
        axes.errorbar(
            p.active,
            p.top1,
            [[p.top1 - p.low], [p.high - p.top1]],
            fmt=p.marker,
            color=f"C{p.colour}",
            markersize=7,
            capsize=4,
            label=p.run,
            transform=axes.transData + ScaledTranslation(p.aside / 72, 0, figure.dpi_scale_trans),
        )
    axes.set_xlim(plot.x.low, plot.x.high)
    axes.set_ylim(plot.y.low, plot.y.high)
    axes.set_xticks(plot.x.ticks)
    axes.set_yticks(plot.y.ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    missing = f"\nnot in the plot, as nothing is known to fire: {', '.join(plot.left_out)}"
    axes.set_xlabel(X_LABEL + missing * bool(plot.left_out))
    axes.set_ylabel(Y_LABEL)
    axes.set_title(plot.title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    # Beside the axes: runs often share their active fraction, and names there would cover one another.
    if plot.points:
        figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path, format="png")
