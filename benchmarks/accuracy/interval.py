"""The difference of two rows over seeds and images, and how sure it is.

Both are random: another seed trains another network, another test set holds other images. With one
difference for each seed and image, in a two-way layout with both factors random, the variance of the mean is
(MS_seed + MS_image - MS_rest) / (S N) and its degrees of freedom are Satterthwaite's (Biometrics
Bulletin 2, 1946).
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import t


class Interval(NamedTuple):
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def crossed_interval(values: np.ndarray) -> Interval:
    """Mean of values (S, N), S seeds by N images, at least two, and its interval over both, in their unit.

    With one seed it covers the images alone. With three it holds the truth in 92 to 100 % of simulated
    worlds, the more the less the seeds add: few seeds cannot tell that they add nothing.

    >>> crossed_interval(np.array([[0.0, 1.0, 0.0, 1.0]]))
    Interval(mean=0.5, low=-0.41..., high=1.41...)
    """
    seeds, images = values.shape
    mean, by_seed, by_image = values.mean(), values.mean(1), values.mean(0)
    terms = [(seeds * by_image.var(ddof=1), images - 1)]
    if seeds > 1:
        df_rest = (seeds - 1) * (images - 1)
        rest = ((values - by_seed[:, None] - by_image + mean) ** 2).sum() / df_rest
        # A mean square below that of the rest would say that its factor takes variance away.
        of_images, of_seeds = max(terms[0][0], rest), max(images * by_seed.var(ddof=1), rest)
        terms = [(of_images, images - 1), (of_seeds, seeds - 1), (-rest, df_rest)]
    variance = sum(square for square, _ in terms) / values.size
    spread = sum((square / values.size) ** 2 / df for square, df in terms)
    half = float(t.ppf(0.975, variance**2 / spread) * np.sqrt(variance)) if spread else 0.0
    return Interval(float(mean), float(mean) - half, float(mean) + half)
