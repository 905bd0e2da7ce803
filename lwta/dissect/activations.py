"""What the units of a layer did on a probe set, streamed: nothing of size images x units is kept."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lwta.errors import InputError
from lwta.layers import LWTA, Firing, observe

READOUTS = ("cls", "mean", "max", "patches")


class Reading(NamedTuple):
    """What a readout reads of one layer for n images.

    Attributes:
        values: (n, D), float32.
        won: bool (n, D), whether the unit fired at a position read.
        positions: int64 (n, D), the position at which it was strongest, counted over the positions read.
        places: T, positions read.
    """

    values: Tensor
    won: Tensor
    positions: Tensor
    places: int


@dataclass(frozen=True)
class Readout:
    """What is read of a layer for one image.

    Attributes:
        kind: ``cls`` reads the class token, ``mean`` and ``max`` pool over patches or pixels;
            ``patches`` reads as ``max`` does, and the exemplars are the patches instead of the images.
        prefix: number of prefix tokens (class, register, distillation); they are no patches.
    """

    kind: str
    prefix: int = 0

    def __post_init__(self) -> None:
        if self.kind not in READOUTS:
            raise InputError(f"readout is one of {', '.join(READOUTS)}, not {self.kind!r}")

    @property
    def peak(self) -> bool:
        """Whether a unit's value is the one at its strongest position."""
        return self.kind in ("max", "patches")

    def positions(self, x: Tensor, dim: int) -> Tensor:
        """(N, ..., D, ...) to (N, T, D): the positions that this readout looks at, T = 1 for ``cls``."""
        x, axis = self._flat(x, dim)
        return x.movedim(axis, 1)

    def _flat(self, x: Tensor, dim: int) -> tuple[Tensor, int]:
        """(N, T, D) or (N, D, T), as the units lie in memory, and the axis of the positions."""
        tokens = x.ndim == 3 and dim == 2
        if self.kind == "cls":
            if not (tokens and self.prefix):
                raise InputError("readout cls needs a class token, and this layer has none; use mean or max")
            return x[:, :1], 1
        if x.ndim == 2:
            if self.kind == "patches":
                raise InputError("readout patches needs positions, and this layer has none; use mean")
            return x.unsqueeze(1), 1
        if tokens:
            return x[:, self.prefix :], 1
        return (x.flatten(2), 2) if dim == 1 else (x.movedim(dim, -1).flatten(1, -2), 1)

    def read(self, firing: Firing) -> Reading:
        """What each unit did on each image."""
        values, axis = self._flat(firing.values, firing.dim)
        fired, _ = self._flat(firing.fired, firing.dim)
        won, places = fired.any(axis), values.shape[axis]
        # Where units compete, over the positions where one fired: elsewhere it is 0, which would outrank
        # a negative win. Where they do not, as published.
        shown = values if firing.winner is None else values.masked_fill(~fired, -torch.inf)
        peak, positions = shown.max(axis)
        if self.peak:
            return Reading(peak.masked_fill(~won, 0).float(), won, positions, places)
        return Reading(values.mean(axis, dtype=torch.float32), won, positions, places)


@contextmanager
def reading(model: nn.Module, sites: Mapping[str, int], readout: Readout) -> Iterator[dict[str, Reading]]:
    """Read the named layers in each forward pass, at once, so that no map outlives its layer.

    Yields:
        name -> its reading of the last pass; clear it between passes.

    Raises:
        InputError: where a layer is called more than once in a pass, or returns no tensor.
    """
    read: dict[str, Reading] = {}

    @torch.no_grad()  # in a pass that keeps its graph, what is read is no part of it
    def seen(name: str, firing: Firing) -> None:
        if name in read:
            raise InputError(
                f"the layer {name} is called at several places in one pass; name the modules around it"
            )
        read[name] = readout.read(firing)

    with observe(model, sites, seen):
        yield read


@torch.no_grad()
def readings(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    sites: Mapping[str, int],
    readout: Readout,
) -> Iterator[tuple[Tensor, dict[str, Reading]]]:
    """One pass of ``model``, in evaluation mode, over a probe set; batches without images are passed over.

    Args:
        model: any module; moved nowhere, put into evaluation mode.
        batches: yields (image indices (n,), images (n, 3, H, W)).
        sites: module name -> axis of its units.
        readout: what is read of each layer.

    Yields:
        Image indices (n,), and module name -> what was read of it.
    """
    device = next(model.parameters()).device
    model.eval()
    with reading(model, sites, readout) as read:
        for indices, images in batches:
            if not len(indices):
                continue
            read.clear()
            model(images.to(device))
            yield indices, dict(read)


def is_competing(model: nn.Module, layer: str) -> bool:
    """Whether the units of a layer compete."""
    return isinstance(model.get_submodule(layer), LWTA)
