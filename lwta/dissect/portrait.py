"""What a unit and a class look like in a survey (:mod:`lwta.dissect.survey`); no network is needed."""

from typing import NamedTuple

from torch import Tensor


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
