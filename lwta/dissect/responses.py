"""What metrics need of the values of units on images, and of the presence of a concept in them."""

import math
from typing import NamedTuple

import numpy as np

from lwta.errors import InputError

TOP = 0.05


def check_top(top: float) -> None:
    """Raise InputError where ``top`` is no share of images."""
    if not 0 < top < 1:
        raise InputError(f"top is a share of the images, between 0 and 1, and {top:g} is not")


class Responses:
    """Values of units on images, with what the metrics need of them.

    Args:
        values: (N, D).
        top: share of the images that a unit responds to, the strongest. Images of equal value are taken
            together, and left where the share has no room for all: the zeros of a unit that fired on fewer
            images are no response. The strongest are taken in any case.

    Attributes:
        top: as given.
        values: (D, N), float64.
        centred: (D, N), less the unit's mean.
        ranks: (D, N), from 1; equal values share their mean.
        order: (D, N), images by falling value, equal ones in any order.
        above: int32 (D, N), of the images in that order, how many have at least their value.
        strong: bool (D, N), the images that the unit responds to.
        constant: bool (D,).
        sparse: bool (D,), one value is that of half the images or more, such as the zeros of a unit that
            rarely fires.
        fired, fell: bool (D, N), the images above the unit's commonest value, and below it.

    Raises:
        InputError: ``top`` is no share, or a value is not finite.
    """

    def __init__(self, values: np.ndarray, top: float = TOP) -> None:
        check_top(top)
        rows = np.ascontiguousarray(values.T, dtype=np.float64)
        if not np.isfinite(rows).all():
            raise InputError("values hold NaN or infinity, by which nothing can be judged")
        self._describe(rows, (-rows).argsort(axis=1), top)

    def part(self, units: np.ndarray, images: np.ndarray) -> "Responses":
        """Those of some units on some of the images without sorting anew.

        Args:
            units: bool (D,), or their numbers.
            images: bool (N,).
        """
        order = self.order[units]
        place = images.cumsum() - 1  # of each image among those
        left = place[order[images[order]]].reshape(len(order), -1)
        found = object.__new__(Responses)
        found._describe(self.values[np.ix_(units, images)], left, self.top)
        return found

    def _describe(self, values: np.ndarray, order: np.ndarray, top: float) -> None:
        self.values, self.order, self.top = values, order, top
        images = values.shape[1]
        self.centred = self.values - self.values.mean(1, keepdims=True)
        higher, self.above = _groups(np.take_along_axis(self.values, self.order, 1))
        self.ranks = self._in_place(images + (1 - self.above - higher) / 2)
        self.constant = self.above[:, 0] == images
        room = max(1, math.ceil(top * images))
        most = np.where(self.above <= room, self.above, self.above[:, :1]).max(1)
        self.strong = self._in_place(self.above <= most[:, None])
        sizes = self.above - higher
        self.ties = np.square(sizes, dtype=np.float64).sum(1) - images  # the sum of t^3 - t over groups
        common = sizes.argmax(1)[:, None]
        self.sparse = 2 * sizes.max(1) >= images
        self.fired = self._in_place(self.above <= np.take_along_axis(higher, common, 1))
        self.fell = self._in_place(higher >= np.take_along_axis(self.above, common, 1))

    def _in_place(self, ordered: np.ndarray) -> np.ndarray:
        """What is told of the images by falling value, (D, N), image by image."""
        found = np.empty_like(ordered)
        np.put_along_axis(found, self.order, ordered, 1)
        return found


def _groups(falling: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows of falling values, how many are higher than each, and how many at least as high, int32."""
    place = np.arange(falling.shape[1], dtype=np.int32)
    starts = np.ones(falling.shape, bool)
    np.not_equal(falling[:, 1:], falling[:, :-1], out=starts[:, 1:])
    higher = np.maximum.accumulate(np.where(starts, place, 0), 1)
    # A group ends where the next begins; the last does too, as the first, rolled to its place, begins one.
    ends = np.where(np.roll(starts, -1, 1), place + 1, falling.shape[1])
    return higher, np.minimum.accumulate(ends[:, ::-1], 1)[:, ::-1]


class Shown(NamedTuple):
    """Presence of one concept for each unit.

    Attributes:
        graded: (D, N), as finely as it is known.
        clear: bool (D, N), whether it is shown.
    """

    graded: np.ndarray
    clear: np.ndarray

    @property
    def count(self) -> np.ndarray:
        """Images that show the concept, (D,)."""
        return self.clear.sum(1)

    @property
    def others(self) -> np.ndarray:
        """Images that do not, (D,)."""
        return self.clear.shape[1] - self.count
