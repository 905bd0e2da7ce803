"""How good labels are on the whole, always beside controls: means, their errors, and discoveries.

They are of the scores of single labels (:mod:`lwta.dissect.label_scores`).
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control
from torch import Tensor

from lwta.dissect.judged_layer import CONTROLS
from lwta.dissect.metrics import REPORTED

RATE = 0.05  # of false discoveries


def discoveries(table: pd.DataFrame) -> pd.DataFrame:
    """The table with q_value and, of each control, ``shuffled_q_value``: p of all units judged, corrected for
    their number.

    Calling the labels of q at most .05 better than chance is wrong of 5 % of those calls at most, in
    expectation (Benjamini & Hochberg, J. R. Stat. Soc. B 57, 1995).
    """
    corrected = {}
    for start in ("", *(f"{control}_" for control in CONTROLS)):
        p = table[f"{start}p_value"].to_numpy(dtype=float)
        q, tested = np.full(len(p), np.nan), ~np.isnan(p)
        if tested.any():
            q[tested] = false_discovery_control(p[tested])
        corrected[f"{start}q_value"] = q
    return table.assign(**corrected)


def means(table: pd.DataFrame, metrics: Sequence[str] = REPORTED) -> pd.DataFrame:
    """Means over units, with standard errors, beside those of the controls.

    Args:
        table: of :func:`judge_layer`, of one or several layers.

    Returns:
        A row for each metric of each layer, and of ``all`` where there are several: layer, metric, units; of
        label, constant, shuffled and random the mean and, as ``label_error``, its standard error over units,
        NaN of a control that the metric has not; ahead and ahead_error, of the differences between a unit's
        label and the shuffled ones.
    """
    layers = [(str(layer), part) for layer, part in table.groupby("layer", sort=False)]
    if len(layers) > 1:
        layers.append(("all", table))
    return pd.DataFrame([_row(layer, part, metric) for layer, part in layers for metric in metrics])


def _row(layer: str, part: pd.DataFrame, metric: str) -> dict[str, object]:
    scored = part.dropna(subset=[metric])
    row: dict[str, object] = {"layer": layer, "metric": metric, "units": len(scored)}
    for name in ("label", *CONTROLS):
        own = metric if name == "label" else f"{name}_{metric}"
        column = scored[own] if own in scored else pd.Series(dtype=float)
        row |= {name: column.mean(), f"{name}_error": column.sem()}
    ahead = scored[metric] - scored[f"shuffled_{metric}"]
    return row | {"ahead": ahead.mean(), "ahead_error": ahead.sem()}


def shares(hits: Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean of units with their own labels, and with those of any, each with its standard error over units.

    Args:
        hits: of unit i with the label of unit j, (n, n).
    """
    if not len(hits):
        return (math.nan, math.nan), (math.nan, math.nan)

    def mean(each: Tensor) -> tuple[float, float]:
        error = float(each.double().std() / len(each) ** 0.5) if len(each) > 1 else math.nan
        return float(each.mean()), error

    return mean(hits.diagonal()), mean(hits.mean(1))


def percent(share: float, error: float) -> str:
    """A share with its standard error, in percent."""
    return f"{100 * share:.1f} %" + ("" if math.isnan(error) else f" ± {100 * error:.1f}")


def plus_minus(mean: float, error: float) -> str:
    """A mean with its standard error.

    >>> plus_minus(0.1234, 0.0056), plus_minus(0.5, math.nan), plus_minus(math.nan, math.nan)
    ('0.123 ± 0.006', '0.500', 'none')
    """
    if math.isnan(mean):
        return "none"
    return f"{mean:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")
