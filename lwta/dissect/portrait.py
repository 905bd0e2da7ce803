"""What a unit and a class look like in a survey (:mod:`lwta.dissect.survey`); no network is needed."""

from typing import NamedTuple

import torch
from torch import Tensor

from lwta.dissect.survey import Survey

_CHUNK = 512  # units compared at a time with all others


class Histogram(NamedTuple):
    """How often a unit fired with which value.

    Attributes:
        edges: float64 (bins + 1,), ascending.
        counts: int64 (bins,), images.
    """

    edges: Tensor
    counts: Tensor


class ClassUnits(NamedTuple):
    """What the units of a layer do on the images of one class.

    Attributes:
        fires: (D,), share of its images on which each unit fired.
        elsewhere: (D,), share of all other images.
        drives: (D,), mean contribution over its rightly predicted images.
        errors: E, its images that were predicted otherwise.
        error_fires: (D,), share of those.
        error_drives: (D,), mean contribution over those, to the predicted class's logit minus the true one's.
        error_classes: (predicted class, images), the most frequent first.

    Each is NaN where there is no such image.
    """

    fires: Tensor
    elsewhere: Tensor
    drives: Tensor
    errors: int
    error_fires: Tensor
    error_drives: Tensor
    error_classes: list[tuple[int, int]]


# --- units ---------------------------------------------------------------------------------------


def histogram(values: Tensor, won: Tensor, bins: int = 24) -> Histogram:
    """How often a unit fired with which value, in ``bins`` of equal width over the range of its values.

    One that never fired has a range from 0 to 1 and counts of 0; one that fired with a single value has it in
    the middle of a range of width 1.

    Args:
        values: (n,).
        won: bool (n,).
    """
    found = values[won].double()
    if not len(found):
        return Histogram(torch.linspace(0, 1, bins + 1).double(), torch.zeros(bins, dtype=torch.long))
    low, high = found.min(), found.max()
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = low + (high - low) * torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    places = torch.bucketize(found, edges[1:-1], right=True)  # a bin holds its left edge, the last both
    return Histogram(edges, places.bincount(minlength=bins))


def middling(values: Tensor, won: Tensor, count: int, negative: bool = False) -> Tensor:
    """Images on which a unit won as hard as in the middle: those around the median of its wins.

    Args:
        values: (n,).
        won: bool (n,).
        count: of images; fewer where it won on fewer.
        negative: it wins with negative values, and the hardest win is the lowest value.

    Returns:
        int64 (count,), rows of the survey, the hardest win first.
    """
    rows = won.nonzero()[:, 0]
    order = values[rows].sort(descending=not negative, stable=True).indices
    start = max(0, (len(rows) - count) // 2)
    return rows[order[start : start + count]]


def at_random(won: Tensor, count: int, seed: int) -> Tensor:
    """Images on which a unit won, drawn at random without repetition; the same for the same seed.

    Args:
        won: bool (n,).
        count: of images; fewer where it won on fewer.
        seed: such as the unit's number.

    Returns:
        int64 (count,), rows of the survey.
    """
    rows = won.nonzero()[:, 0]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:count]]


def nearest(survey: Survey, most: int = 5) -> dict[str, list[list[tuple[str, int, float]]]]:
    """The units most alike each unit, over all layers: by the cosine of their values over the images.

    A value counts as 0 where the unit did not fire. Only cosines above 0 count: units that never fire
    together are not alike, and one that never fired is like none.

    Args:
        most: listed of each unit.

    Returns:
        Layer -> for each of its D units (layer, unit, cosine) of others, the nearest first.
    """
    found: dict[str, list[list[tuple[str, int, float]]]] = {}
    units: list[tuple[str, int]] = []
    parts = []
    for name, layer in survey.layers.items():
        values = layer.values.masked_fill(~layer.won, 0)
        length = values.norm(dim=0)
        live = length > 0
        parts.append(values[:, live] / length[live])
        units += [(name, unit) for unit in live.nonzero()[:, 0].tolist()]
        found[name] = [[] for _ in range(len(live))]
    directions = torch.cat(parts, 1)
    del parts
    for start in range(0, len(units), _CHUNK):
        cosines = directions[:, start : start + _CHUNK].T @ directions
        cosines.diagonal(start).fill_(-torch.inf)  # a unit itself
        best = cosines.topk(min(most, len(units)), 1)
        for (name, unit), values, others in zip(
            units[start:], best.values.clamp_max(1).tolist(), best.indices.tolist(), strict=False
        ):
            found[name][unit] = [
                (*units[k], value) for k, value in zip(others, values, strict=True) if value > 0
            ]
    return found


# --- classes -------------------------------------------------------------------------------------


def pushes(survey: Survey, layer: str) -> Tensor:
    """What each unit contributes on average to the logit of each class, on images rightly predicted as it.

    An image whose truth is unknown counts as rightly predicted, one on which the unit is silent as 0.

    Returns:
        (C, D), NaN in the row of a class without such images.
    """
    contributions, right = survey.layers[layer].contributions, _right(survey)
    classes = survey.predicted[right]
    sums = contributions.new_zeros(survey.classes, contributions.shape[1])
    sums.index_add_(0, classes, contributions[right])
    return sums / classes.bincount(minlength=survey.classes)[:, None]


def class_units(survey: Survey, layer: str, k: int, fired_on: Tensor | None = None) -> ClassUnits:
    """What the units of a layer do on the images of class ``k``.

    Its images are those that truly show it; where the truth is unknown, those that are predicted as it, and
    these count as rightly predicted.

    Args:
        fired_on: int64 (D,), images on which each unit fired, where they are counted already.
    """
    found = survey.layers[layer]
    own = class_images(survey) == k
    fired_on = found.won.sum(0) if fired_on is None else fired_on
    right, wrong = own & _right(survey), own & ~_right(survey)
    fired, others = found.won[own], fired_on - found.won[own].sum(0)
    counts = survey.predicted[wrong].bincount(minlength=survey.classes)
    mistaken = sorted(counts.nonzero()[:, 0].tolist(), key=lambda other: -int(counts[other]))
    return ClassUnits(
        fires=fired.float().mean(0),
        elsewhere=others / (~own).sum(),
        drives=found.contributions[right].mean(0),
        errors=int(wrong.sum()),
        error_fires=found.won[wrong].float().mean(0),
        error_drives=found.contributions[wrong].mean(0),
        error_classes=[(other, int(counts[other])) for other in mistaken],
    )


def class_images(survey: Survey) -> Tensor:
    """The class that each image is of, int64 (n,): the true one, the predicted one where that is unknown."""
    return torch.where(survey.targets < 0, survey.predicted, survey.targets)


def _right(survey: Survey) -> Tensor:
    """bool (n,): images rightly predicted, or whose truth is unknown."""
    return class_images(survey) == survey.predicted
