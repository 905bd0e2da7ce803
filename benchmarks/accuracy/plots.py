"""Accuracy against the number of competitors."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.accuracy.study import Study
from models.measure import evaluation_name


def plot_curves(study: Study, tested: pd.DataFrame, path: Path) -> bool:
    """Draw top-1 by the argmax against U, a line for each curve, one seed; False where none was tested."""
    name = evaluation_name(0)
    lines = {}
    for line, points in study.curves.items():
        own = tested[tested["seed"] == study.seeds[0]].set_index("variant") if len(tested) else tested
        found = {u: 100 * own.loc[v, f"test top1 {name}"] for u, v in points.items() if v in own.index}
        lines |= {line: found} if found else {}
    if not lines:
        return False
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for place, (line, found) in enumerate(lines.items()):
        if set(found) == {1}:
            axes.axhline(found[1], color=f"C{place}", linestyle="--", label=line)
        else:
            axes.plot(list(found), list(found.values()), "o-", color=f"C{place}", label=line)
    axes.set_xscale("log", base=2)
    ticks = sorted({u for found in lines.values() for u in found if u > 1})
    axes.set_xticks(ticks, [f"{u}\n{100 / u:.3g} %" for u in ticks])
    axes.minorticks_off()
    axes.set_xlabel("competitors U, and the share of units that fire at a position")
    axes.set_ylabel("top-1 on the test images, argmax (%)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True
