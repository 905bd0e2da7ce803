"""The activation sites of a network, and the axis along which each one's units lie."""

from typing import NamedTuple

from torch import nn

from models.trace import is_activation, trace


class Site(NamedTuple):
    """An activation of a network.

    Attributes:
        name: module name.
        kind: class name of the module there.
        dim: axis of the units, None where it could not be told.
        shape: of its input in the traced pass.
        calls: how often one forward pass calls it.
    """

    name: str
    kind: str
    dim: int | None
    shape: tuple[int, ...]
    calls: int

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
    modules = dict(model.named_modules())
    return [
        Site(name, seen.kind, seen.taken_dim, seen.taken, seen.calls)
        for name, seen in trace(model, image_size).items()
        if is_activation(modules[name]) and seen.taken is not None
    ]
