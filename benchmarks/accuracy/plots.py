"""Accuracy against the number of competitors."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.accuracy.findings import served
from benchmarks.accuracy.study import Study


def plot_curves(study: Study, rows: pd.DataFrame, path: Path) -> None:
    """Top-1 against U, a line for each of the study's curves; one with U = 1 alone is dense, and level."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for place, (line, points) in enumerate(study.curves.items()):
        found = {u: _top1(rows, variant) for u, variant in points.items()}
        found = {u: value for u, value in found.items() if value is not None}
        if set(found) == {1}:
            axes.axhline(found[1], color=f"C{place}", linestyle="--", label=line)
        elif found:
            axes.plot(list(found), list(found.values()), "o-", color=f"C{place}", label=line)
    axes.set_xscale("log", base=2)
    ticks = sorted({u for points in study.curves.values() for u in points if u > 1})
    axes.set_xticks(ticks, [f"{u}\n{100 / u:.3g} %" for u in ticks])
    axes.minorticks_off()
    axes.set_xlabel("competitors U, and the share of units that fire")
    axes.set_ylabel("top-1, test images (%)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _top1(rows: pd.DataFrame, variant: str) -> float | None:
    own = (
        rows[(rows["variant"] == variant) & rows["test images"].notna()]
        if "test images" in rows
        else rows[:0]
    )
    return None if own.empty else 100 * float(own[f"test top1 {served(own)}"].mean())
