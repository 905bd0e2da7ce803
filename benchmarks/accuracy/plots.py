"""Accuracy against the number of competitors."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from benchmarks.accuracy.study import Study
from models.measure import evaluation_name


def curve_points(study: Study, tested: pd.DataFrame) -> dict[str, dict[int, float]]:
    """Line -> {U: top-1 on the test images, by the argmax, of the first seed}, where it was tested."""
    if tested.empty:
        return {}
    own = tested[tested["seed"] == study.seeds[0]].set_index("variant")[f"test top1 {evaluation_name(0)}"]
    lines = {
        line: {u: float(own[v]) for u, v in points.items() if v in own.index}
        for line, points in study.curves.items()
    }
    return {line: found for line, found in lines.items() if found}


def plot_curves(study: Study, tested: pd.DataFrame, path: Path) -> bool:
    """Draw :func:`curve_points`, with one standard error over the images; False where there are none."""
    lines = curve_points(study, tested)
    if not lines:
        return False
    images = tested["test images"].min()
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for place, (line, found) in enumerate(lines.items()):
        if set(found) == {1}:
            axes.axhline(100 * found[1], color=f"C{place}", linestyle=("--", ":")[place % 2], label=line)
            continue
        top1 = np.array(list(found.values()))
        error = np.sqrt(top1 * (1 - top1) / images)
        style = {"marker": "osD^"[place % 4], "color": f"C{place}", "capsize": 3}
        axes.errorbar(list(found), 100 * top1, 100 * error, label=line, **style)
    axes.set_xscale("log", base=2)
    ticks = sorted({u for found in lines.values() for u in found if u > 1})
    axes.set_xticks(ticks, [f"{u}\n{100 / u:.3g} %" for u in ticks])
    axes.minorticks_off()
    axes.set_xlabel("competitors U, and the share of units that fire at a position")
    axes.set_ylabel(f"top-1 on the test images, argmax (%), seed {study.seeds[0]}")
    # Above the axes: inside, where level lines lie is no one place free.
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, columnspacing=1.2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True
