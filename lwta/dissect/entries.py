"""The exemplars of a layer by image: blocks of images, each with the units that list them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lwta.dissect.kernels import GROUP
from lwta.dissect.presence import Presence
from lwta.dissect.record import Exemplars
from lwta.errors import InputError

_BLOCK = 2560  # images whose concepts are held at a time
_SLAB = 128  # images whose presence is computed at a time


@dataclass
class Entries:
    """One entry for each exemplar of each unit, in order of block of images, then unit, then rank.

    Attributes:
        images: int64 (n,), the images that any unit lists, ascending.
        unit: int64 (M,).
        place: int64 (M,), place of the entry's image in ``images``.
        rank: int64 (M,), 0 for the strongest.
        lengths: int64 (D,), exemplars of each unit, k_d.
        longest: k_max, what a full list has.
    """

    images: Tensor
    unit: Tensor
    place: Tensor
    rank: Tensor
    lengths: Tensor
    longest: int


def entries_of(exemplars: Exemplars, presence: Presence, top: int) -> Entries:
    """The first ``top`` exemplars of each unit, or as many as there are images.

    Raises:
        InputError: ``top`` is below 1, or an exemplar is no image of ``presence``.
    """
    if top < 1:
        raise InputError(f"top is {top}; at least 1 exemplar of each unit must be read")
    images = exemplars.images[: min(top, presence.shape[0])]
    if images.numel() and images.max() >= presence.shape[0]:
        raise InputError(
            f"image {int(images.max())} is an exemplar, but the presence of concepts is given for "
            f"{presence.shape[0]} images; compute both on the same probe set"
        )
    listed = images >= 0
    rank, unit = listed.nonzero(as_tuple=True)
    names, place = images[rank, unit].unique(return_inverse=True)
    order = (place // _BLOCK * images.shape[1] + unit).argsort(stable=True)
    return Entries(names, unit[order], place[order], rank[order], listed.sum(0), len(images))


def blocks(
    entries: Entries, presence: Presence, scale: float, device: str | torch.device = "cpu"
) -> Iterator[tuple[Tensor, slice, Tensor, tuple[float, float]]]:
    """S = softmax(scale * P) over concepts, (n, K) float32, of each block of the listed images.

    Yields:
        S, overwritten by the next block; which entries are of the block; their rows of S, (m,); and the
        least and the largest value of S.
    """
    count, concepts = len(entries.images), presence.shape[1]
    # numpy asks the system for large pages, which are many times faster to get than small ones.
    shown = torch.from_numpy(np.empty((min(_BLOCK, count), concepts), np.float32)).to(device)
    scaled = torch.empty(min(_SLAB, count), concepts, device=device)
    ends = torch.bincount(entries.place // _BLOCK).cumsum(0).tolist()
    for block, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        images = entries.images[block * _BLOCK : (block + 1) * _BLOCK]
        least, most = 1.0, 0.0
        for start in range(0, len(images), _SLAB):
            slab = images[start : start + _SLAB]
            run = slice(int(slab[0]), int(slab[-1]) + 1)
            wanted = run if run.stop - run.start == len(slab) else slab  # a slice is not copied
            torch.mul(presence.part(wanted, device=device), scale, out=scaled[: len(slab)])
            part = shown[start : start + len(slab)]
            torch.softmax(scaled[: len(slab)], 1, out=part)
            low, high = part.aminmax()
            least, most = min(least, float(low)), max(most, float(high))
        yield (
            shown[: len(images)],
            slice(begin, end),
            entries.place[begin:end] - block * _BLOCK,
            (least, most),
        )


@dataclass
class Groups:
    """Entries of a block, ``GROUP`` of one unit at a time; the last group of a unit may have empty places.

    Attributes:
        units: int64 (G,).
        rows: int64 (G, GROUP), 0 in an empty place.
        absent, present: float32 (G, GROUP), 1 and 0 in an empty place.
        begins, ends: bool (G,), the first and the last group of those that share a logarithm.
    """

    units: np.ndarray
    rows: np.ndarray
    absent: np.ndarray
    present: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


def grouped(unit: Tensor, rows: Tensor, absent: Tensor, present: Tensor, shared: int) -> Groups:
    """Groups of a block's entries.

    Args:
        unit: int64 (m,), ascending.
        rows, absent, present: of each entry, (m,).
        shared: how many groups of a unit may share a logarithm.
    """
    units, counts = unit.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    place = torch.arange(len(unit)) - (ends - counts).repeat_interleave(counts)
    needed = (counts + GROUP - 1) // GROUP
    first = needed.cumsum(0) - needed
    at = first.repeat_interleave(counts) * GROUP + place
    size = int(needed.sum())

    def laid_out(of_entries: Tensor, empty: int = 0) -> np.ndarray:
        places = of_entries.new_full((size * GROUP,), empty)
        return places.index_copy_(0, at, of_entries).view(size, GROUP).numpy()

    turn = torch.arange(size) - first.repeat_interleave(needed)
    begins = turn % shared == 0
    ends = (turn % shared == shared - 1) | (turn == needed.repeat_interleave(needed) - 1)
    of_group = units.repeat_interleave(needed).numpy()
    return Groups(
        of_group, laid_out(rows), laid_out(absent, 1), laid_out(present), begins.numpy(), ends.numpy()
    )
