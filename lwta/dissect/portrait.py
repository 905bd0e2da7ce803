"""Portraits of units and classes: what a survey says of each."""

from typing import NamedTuple

from torch import Tensor


class Histogram(NamedTuple):
    """How many images have a value in each bin; (bins + 1,) edges and (bins,) counts."""

    edges: Tensor
    counts: Tensor


class ClassUnits(NamedTuple):
    """What the D units of a layer do on the images of a class; NaN where there are no such images.

    Attributes:
        fires: (D,) share of the class's images on which each fires.
        elsewhere: (D,) share of the other images.
        drives: (D,) mean contribution to the class's logit over its rightly predicted images.
        errors: how many of its images are predicted otherwise.
        error_fires: (D,) share of those on which each fires.
        error_drives: (D,) mean contribution over those, to the wrong class's logit minus the true one's.
        error_classes: (class predicted instead, how often), most frequent first.
    """

    fires: Tensor
    elsewhere: Tensor
    drives: Tensor
    errors: int
    error_fires: Tensor
    error_drives: Tensor
    error_classes: list[tuple[int, int]]
