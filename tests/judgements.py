"""Evaluations of labels, all numbers made up."""

import math

from lwta.dissect.evaluation import COLUMNS, Evaluation
from lwta.dissect.final_layer import ClassScore
from lwta.dissect.judged_layer import CONTROLS
from lwta.dissect.metrics import REPORTED
from lwta.dissect.resampling import KEPT
from lwta.dissect.truth import PairScore, TruthScore

LABELS = {"weights": "w", "probe": "validate"}


def means_of(layer, start=0.5, units=9):
    """Rows as :func:`lwta.dissect.evaluate.means` gives them."""
    rows = []
    for k, metric in enumerate(REPORTED):
        row = {"layer": layer, "metric": metric, "units": units}
        for n, name in enumerate(("label", *CONTROLS, "ahead")):
            row |= {name: start + k / 100 - n / 10, f"{name}_error": 0.01 * (n + 1)}
        rows.append(row)
    return rows


FOUND = Evaluation(
    labels=LABELS,
    judge="the factors of the embedded world",
    judge_identity="0123456789abcdef",
    circular=False,
    probe="validation[5:9]",
    images=4_000,
    units=12,
    scored=9,
    unscored={"no label": 2, "too few images show it, fewer than 10": 1},
    discoveries=7,
    by_control={"constant": 2, "shuffled": 1, "random": 0},
    means=[*means_of("a", units=4), *means_of("b", 0.4, 5), *means_of("all", 0.45)],
)
KEPT_ROWS = [
    {"layer": "all", "metric": name, "units": 9}
    | dict.fromkeys(COLUMNS, math.nan)
    | {"label": share, "label_error": 0.05, "shuffled": 0.1, "shuffled_error": 0.02}
    for name, share in zip(KEPT, (0.75, 0.9), strict=True)
]
WHOLE = FOUND._replace(
    means=FOUND.means + KEPT_ROWS,
    truth=TruthScore(5, 7, 0.8, 0.1, 0.85),
    pairs=PairScore(0, math.nan, math.nan, math.nan),
    classes=ClassScore("head", 4, 0.5, 0.25, 0.1, 0.05, 0.75, 0.2, 0.2, 0.1),
)
