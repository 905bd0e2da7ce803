"""Two checks that a metric of labels must pass: it falls when positives miss, and when false ones come.

A unit that responds to its concept exactly is judged by a concept of which half the positives were taken away
(a label too narrow), and by one with as many false ones added (a label too broad). A metric that does not
fall cannot tell such labels from the right one. Source: NeuronEval, arXiv 2506.05774, sections 4 and 5.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lwta.dissect.metrics import METRICS, measure
from lwta.dissect.responses import Responses, Shown
from lwta.errors import InputError

FREQUENCIES = (0.499, 0.1, 0.01, 0.001)
_FEWEST = 20  # images with the concept
_LEAST = 0.001  # of the metric's range, that it must fall by
_MOSTLY = 0.9  # of the draws in which it must


def check_metrics(
    frequencies: Sequence[float] = FREQUENCIES, images: int = 100_000, draws: int = 20, seed: int = 0
) -> pd.DataFrame:
    """Try every metric on concepts of given frequencies.

    Args:
        frequencies: shares of the images that show a concept.
        images: N.
        draws: of missing and of false positives, at each frequency.
        seed: of those.

    Returns:
        A row for each metric and frequency: metric, frequency, exact (its value for the right concept);
        missing and extra, the mean change over the metric's range; missing_falls and extra_falls, the share
        of draws in which it fell by more than .001 of the range; passes, both at least .9.

    Raises:
        InputError: a frequency from .5 on, or of fewer than 20 images.
    """
    for share in frequencies:
        if not (share < 0.5 and share * images >= _FEWEST):
            raise InputError(
                f"the frequency {share:g} of {images:,} images leaves no half to take away or no room to "
                f"double; it is below .5, of at least {_FEWEST} images"
            )
    rows = []
    for share in frequencies:
        rng = np.random.default_rng(seed)
        concept = np.zeros((1, images), bool)
        concept[0, : round(share * images)] = True
        unit = Responses(concept.T.astype(np.float32))
        exact, draw = _values(unit, concept), rng.random((2, draws, 1, images), dtype=np.float32)
        changed = {
            "missing": [_values(unit, concept & (each < 0.5)) for each in draw[0]],
            "extra": [_values(unit, concept | (each < share / (1 - share))) for each in draw[1]],
        }
        rows += [
            _row(
                name,
                share,
                exact[name],
                {kind: [one[name] for one in each] for kind, each in changed.items()},
            )
            for name in METRICS
        ]
    return pd.DataFrame(rows).sort_values(["metric", "frequency"], ascending=[True, False], kind="stable")


def _values(unit: Responses, concept: np.ndarray) -> dict[str, float]:
    found = measure(unit, Shown(concept.astype(np.float32), concept), list(METRICS))
    return {name: float(value[0]) for name, value in found.items()}


def _row(name: str, share: float, exact: float, changed: dict[str, list[float]]) -> dict[str, object]:
    low, high = METRICS[name].range or (
        min(exact, *map(min, changed.values())), max(exact, *map(max, changed.values()))
    )  # fmt: skip
    row: dict[str, object] = {"metric": name, "frequency": share, "exact": exact}
    for kind, values in changed.items():
        change = (np.array(values) - exact) / ((high - low) or 1.0)
        row |= {kind: change.mean(), f"{kind}_falls": (change < -_LEAST).mean()}
    return row | {"passes": all(row[f"{kind}_falls"] >= _MOSTLY for kind in changed)}  # type: ignore[operator]
