"""How well concepts account for units on images: the metrics that labels are judged by.

Each compares the values of D units on N images with the presence of one concept for each unit. Torchmetrics
has most of them for one pair of arrays at a time, and squashes values outside [0, 1], which makes equals of
different ones; here each of thousands of units is judged by two dozen concepts, its label and the controls.
So what depends on the values alone is made once (:class:`Responses`).

a are the values, c is the presence, B the images on which a unit responds most.

| metric | formula | source |
|---|---|---|
| correlation | Pearson of a and c: "simulation correlation" | arXiv 2405.06855 |
| cosine | a.c / (|a| |c|) | arXiv 2506.05774 |
| auroc | chance that an image with the concept has the higher value, ties half | CoSy, arXiv 2405.20331 |
| auprc | average precision of a for c; "inverse AUPRC" in the source | arXiv 2506.05774 |
| responses_auprc | average precision of c for B; "AUPRC" in the source | arXiv 2506.05774 |
| f1, iou | 2 B.c / (|B| + |c|) and B.c / (|B| + |c| - B.c) | arXiv 2506.05774 |
| recall, precision | B.c / |B| and B.c / |c|: the concept foretells the unit | arXiv 2506.05774 |
| mad | (mean of a with the concept - mean without) / deviation without | CoSy |

Correlation, cosine and responses_auprc read a graded presence, the others whether the concept is shown.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr
from scipy.stats import hypergeom

from lwta.dissect.responses import Responses, Shown


def _correlation(a: Responses, c: Shown) -> np.ndarray:
    # Of a presence that is the same everywhere, centring leaves the last bits.
    varies = np.ptp(c.graded, axis=1) > 0
    centred = c.graded - c.graded.mean(1, keepdims=True, dtype=np.float64)
    return np.where(varies, _angle(a.centred, centred), np.nan)


def _cosine(a: Responses, c: Shown) -> np.ndarray:
    return _angle(a.values, c.graded)


def _auroc(a: Responses, c: Shown) -> np.ndarray:
    return _ratio(_wins(a, c), c.count * c.others)


def _auprc(a: Responses, c: Shown) -> np.ndarray:
    found = np.take_along_axis(c.clear, a.order, 1)
    # Images of equal value pass a threshold together, so each counts what is found up to the last of them.
    so_far = np.take_along_axis(found.cumsum(1, dtype=np.int32), a.above - 1, 1)
    return _ratio((found * (so_far / a.above)).sum(1), c.count)


def _responses_auprc(a: Responses, c: Shown) -> np.ndarray:
    return _auprc(Responses(c.graded.T), Shown(a.strong, a.strong))


def _f1(a: Responses, c: Shown) -> np.ndarray:
    return _ratio(2 * _both(a, c), a.strong.sum(1) + c.count)


def _iou(a: Responses, c: Shown) -> np.ndarray:
    return _ratio(_both(a, c), (a.strong | c.clear).sum(1))


def _recall(a: Responses, c: Shown) -> np.ndarray:
    return _ratio(_both(a, c), a.strong.sum(1))


def _precision(a: Responses, c: Shown) -> np.ndarray:
    return _ratio(_both(a, c), c.count)


def _mad(a: Responses, c: Shown) -> np.ndarray:
    total = (a.centred * c.clear).sum(1)
    mean = -total / np.maximum(c.others, 1)  # of the images without; all together sum to 0
    squares = (np.square(a.centred - mean[:, None]) * ~c.clear).sum(1)
    deviation = np.sqrt(squares / np.maximum(c.others - 1, 1))
    lowest, highest = (
        f(a.values, 1, where=~c.clear, initial=i) for f, i in ((np.min, np.inf), (np.max, -np.inf))
    )
    return np.where(highest > lowest, _ratio(total / np.maximum(c.count, 1) - mean, deviation), 0.0)


def _angle(a: np.ndarray, c: np.ndarray) -> np.ndarray:
    c = c.astype(np.float64)
    lengths = [np.sqrt(np.einsum("dn,dn->d", x, x)) for x in (a, c)]
    return _ratio(np.einsum("dn,dn->d", a, c), lengths[0] * lengths[1])


def _wins(a: Responses, c: Shown) -> np.ndarray:
    """Mann and Whitney's U: pairs of an image with the concept and one without, the first higher."""
    return (a.ranks * c.clear).sum(1) - c.count * (c.count + 1) / 2


def _both(a: Responses, c: Shown) -> np.ndarray:
    return (a.strong & c.clear).sum(1)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0)


class Metric(NamedTuple):
    """A metric of units and concepts.

    Attributes:
        of: responses and presence of D units to (D,).
        range: lowest and highest value there can be; None where there is no limit.
    """

    of: Callable[[Responses, Shown], np.ndarray]
    range: tuple[float, float] | None


METRICS = {
    "correlation": Metric(_correlation, (-1, 1)),
    "cosine": Metric(_cosine, (-1, 1)),
    "auroc": Metric(_auroc, (0, 1)),
    "auprc": Metric(_auprc, (0, 1)),
    "responses_auprc": Metric(_responses_auprc, (0, 1)),
    "f1": Metric(_f1, (0, 1)),
    "iou": Metric(_iou, (0, 1)),
    "recall": Metric(_recall, (0, 1)),
    "precision": Metric(_precision, (0, 1)),
    "mad": Metric(_mad, None),
}

#: Those that labels are judged by, the first above all.
REPORTED = ("correlation", "auroc", "auprc", "f1", "iou", "mad")
#: CoSy's, of generated images against those judged on (arXiv 2405.20331).
GENERATED = ("generated_auroc", "generated_mad")


def measure(a: Responses, c: Shown, metrics: Sequence[str] = REPORTED) -> dict[str, np.ndarray]:
    """Metrics of D units and a concept for each: name -> (D,).

    NaN, never 0, where a metric is not defined: of a unit that is constant, of a concept that all images show
    or none, of a graded presence that is the same for all.

    Args:
        a: of D units on N images.
        c: (D, N).
        metrics: keys of :data:`METRICS`.
    """
    defined = ~a.constant & (c.count > 0) & (c.others > 0)
    return {name: np.where(defined, METRICS[name].of(a, c), np.nan) for name in metrics}


def p_values(a: Responses, c: Shown) -> np.ndarray:
    """How likely a unit that does not tell the concept has as high an AUROC, (D,), one-sided.

    Mann and Whitney's test in its normal approximation, corrected for ties and for continuity. Of a few
    values beside many equal ones that says far too small a p where few images show the concept, so the p of
    sparse units is never below the exact chance (hypergeometric) that as many of these are above the
    commonest value or, of a unit that saturates, that as few are below it; twice the smaller where it has
    both. NaN where :func:`measure` is.
    """
    images = a.values.shape[1]
    pairs = c.count * c.others
    spread = np.sqrt(pairs / 12 * (images + 1 - a.ties / max(1, images * (images - 1))))
    normal = ndtr(-_ratio(_wins(a, c) - pairs / 2 - 0.5, np.where(a.constant, 0, spread)))
    return np.where(a.sparse, np.maximum(normal, _exact(a, c)), normal)


def _exact(a: Responses, c: Shown) -> np.ndarray:
    """Chance to be above the commonest value on as many of a concept's images, or below it on as few."""
    images, above, below = a.values.shape[1], a.fired.sum(1), a.fell.sum(1)
    high = hypergeom.sf((a.fired & c.clear).sum(1) - 1, images, above, c.count)
    low = hypergeom.cdf((a.fell & c.clear).sum(1), images, below, c.count)
    both = np.minimum(1, 2 * np.minimum(high, low))
    return np.where(below == 0, high, np.where(above == 0, low, both))
