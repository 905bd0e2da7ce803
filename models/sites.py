"""The activation sites of a network, and the axis along which each one's units lie."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from models.trace import Traced, activations_of, trace


class Site(NamedTuple):
    """An activation of a network.

    Attributes:
        name: module name.
        kind: class name of the module there.
        dim: axis of the units, None where it could not be told.
        shape: of its input in the traced pass.
        calls: how often one forward pass calls it.
        competitors: U of a competition, D / k of top-k, None elsewhere.
    """

    name: str
    kind: str
    dim: int | None
    shape: tuple[int, ...]
    calls: int
    competitors: int | None = None

    @property
    def units(self) -> int | None:
        """D, or None where the axis could not be told."""
        return None if self.dim is None else self.shape[self.dim]


def find_sites(model: nn.Module, image_size: tuple[int, int]) -> list[Site]:
    """The activation modules that one forward pass reaches, with axis and width (:mod:`models.trace`).

    Args:
        model: takes images (1, 3, H, W); its mode and statistics are left as they are.
        image_size: (H, W).
    """
    return sites_in(model, trace(model, image_size))


def sites_in(model: nn.Module, seen: Mapping[str, Traced]) -> list[Site]:
    """:func:`find_sites` of a pass that was traced."""
    found = ((name, seen[name]) for name in activations_of(model, seen))
    return [
        Site(name, one.kind, one.taken_dim, one.taken, one.calls)
        for name, one in found
        if one.taken is not None
    ]
