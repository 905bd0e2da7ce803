"""Change what units do in a pass: silence them, exclude them from the competition, or make others win."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lwta import functional
from lwta.errors import InputError
from lwta.functional import Winners
from lwta.gradient import keep_winners, one_hot
from lwta.layers import LWTA, Competition
from lwta.measured import Measured


@dataclass(frozen=True)
class Change:
    """What is changed in a pass, at all positions of all images.

    Attributes:
        silenced: layer -> units whose output is zeroed, the competition unchanged.
        winners: competing layer -> block -> unit that wins there, passing its linear value.
    """

    silenced: Mapping[str, list[int]] = field(default_factory=dict)
    winners: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.silenced or self.winners)

    def told(self) -> list[str]:
        """One sentence for each, in the order in which they are made."""
        forced = [
            f"unit {unit} of {layer} wins block {block}"
            for layer, winners in self.winners.items()
            for block, unit in winners.items()
        ]
        silenced = [
            f"unit {unit} of {layer} is silenced" for layer, us in self.silenced.items() for unit in us
        ]
        return forced + silenced


@contextmanager
def changed(model: nn.Module, change: Change, sites: Mapping[str, int]) -> Iterator[None]:
    """Make a change while the context is open.

    Args:
        sites: layer -> axis of its units, of the layers silenced.

    Raises:
        InputError: where a layer has no such unit, or a unit is not of the block that it is to win; in the
            pass, since widths show only there.
    """
    with ExitStack() as stack:
        for layer, winners in change.winners.items():
            stack.enter_context(_forced(model, layer, winners))
        for layer, units in change.silenced.items():
            if layer not in sites:
                raise InputError(f"the axis of the units of {layer} is not known; name it among the sites")
            stack.enter_context(silenced(model, layer, torch.tensor([units]), sites[layer]))
        yield


@contextmanager
def silenced(model: nn.Module, layer: str, units: Tensor, dim: int) -> Iterator[None]:
    """Zero units of ``layer`` at all positions, the competition unchanged.

    Args:
        units: int64 (n, m), the m units silenced in each image of a batch of n; (1, m) for all images alike.
        dim: axis of the units.
    """

    def hook(module: nn.Module, inputs: tuple, out: Tensor) -> Tensor:
        return out.masked_fill(_mask(layer, units, out, dim), 0)

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def excluded(model: nn.Module, layer: str, units: Tensor) -> Iterator[None]:
    """Leave units of an LWTA layer out of the competition, so that others win.

    Args:
        units: int64 (n, m) as for :func:`silenced`; never a whole block.
    """
    competition = _competition(model, layer)

    def hook(module: Competition, inputs: tuple[Tensor, ...], out: Winners) -> Winners | Measured:
        x = inputs[0]
        dim = functional.positive_axis(module.dim, x.ndim)
        return module.forward(x.masked_fill(_mask(layer, units, x, dim), torch.finfo(x.dtype).min))

    handle = competition.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _forced(model: nn.Module, layer: str, winners: Mapping[int, int]) -> Iterator[None]:
    competition = _competition(model, layer)

    def hook(module: Competition, inputs: tuple[Tensor, ...], out: Winners) -> Winners:
        dim = functional.positive_axis(module.dim, inputs[0].ndim)
        winner = out.winner.movedim(dim, -1).clone()
        for block, unit in winners.items():
            if not 0 <= block < winner.shape[-1] or unit // module.competitors != block:
                raise InputError(f"unit {unit} of {layer} does not compete in block {block}")
            winner[..., block] = unit - block * module.competitors
        winner = winner.movedim(-1, dim)
        h = functional.to_blocks(inputs[0], module.competitors, dim)
        mask = one_hot(winner.unsqueeze(dim + 1), module.competitors, dim + 1)
        return Winners(keep_winners(h, mask).flatten(dim, dim + 1), winner)

    handle = competition.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _competition(model: nn.Module, layer: str) -> Competition:
    module = model.get_submodule(layer)
    if not isinstance(module, LWTA):
        raise TypeError(f"{layer} is a {type(module).__name__}; only the units of an LWTA layer compete")
    return module.competition


def _mask(layer: str, units: Tensor, x: Tensor, dim: int) -> Tensor:
    """bool, True at the units (n, m), of x's rank; to be broadcast over positions."""
    if missing := [unit for unit in units.flatten().tolist() if not 0 <= unit < x.shape[dim]]:
        raise InputError(f"{layer} has the units 0 to {x.shape[dim] - 1}, and no unit {missing[0]}")
    mask = torch.zeros(len(units), x.shape[dim], dtype=torch.bool, device=x.device)
    mask.scatter_(1, units.to(x.device), True)
    shape = [1] * x.ndim
    shape[0], shape[dim] = mask.shape
    return mask.view(shape)
