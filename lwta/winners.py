"""Competition and the layer that reads it in one, computed from the units that fired.

A linear layer that reads D units, of which one in U is not zero, is a sum of D / U rows of its transposed
weight, each times a winner's value, and a bias.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from lwta import fused, operators
from lwta.functional import positive_axis, to_blocks
from lwta.gradient import perturbed
from lwta.layers import LWTA, Competition
from lwta.operators import as_tensor, compiled_for

_ROUNDS = 5


class FiredUnits(NamedTuple):
    """The units that fired, positions first.

    Attributes:
        values: (N, ..., B), what each block's winner passes.
        unit: int64 (N, ..., B), its place among the D units.
    """

    values: Tensor
    unit: Tensor


class Shape(NamedTuple):
    """What the faster path depends on.

    Attributes:
        layer: ``Linear`` or ``Conv2d``.
        competitors: U.
        units: D, read.
        outputs: K, made.
        positions: at which they are read, rounded up to a power of two.
        dtype, device: of the units.
    """

    layer: str
    competitors: int
    units: int
    outputs: int
    positions: int
    dtype: str
    device: str


class Timing(NamedTuple):
    """Median seconds of competition and reader, with the dense product and with the winners' rows."""

    dense: float
    winners: float


def fired_units(competition: Competition, x: Tensor) -> FiredUnits:
    """The winners of a competition in evaluation, without gradient.

    Args:
        x: units along the competition's axis; the other axes are positions.
    """
    noise, seed = competition.noise, competition.seed
    seed = seed if noise > 0 else None
    dim = positive_axis(competition.dim, x.ndim)
    last = x.movedim(dim, -1)
    if seed is None and last.is_contiguous():  # noise is numbered along the axes as they come
        x, dim = last, x.ndim - 1
    h, axis = to_blocks(x.detach(), competition.competitors, dim), dim + 1
    beta = competition.running_scale
    if compiled_for(h):
        values, unit = operators.fire(h, float(beta), noise, seed, axis)
    else:
        if fused.serves(h, competition.competitors):  # which makes noise of its own
            scales = as_tensor(beta), as_tensor(noise), as_tensor(competition.tau)
            _, winner, _, _ = fused.compete(h, *scales, seed, None, None, False, axis)
        else:
            winner = perturbed(h, beta, noise, seed, axis).argmax(axis, keepdim=True)
        values = h.gather(axis, winner)
        first = torch.arange(0, x.shape[dim], competition.competitors, device=x.device)
        unit = winner + first.view(-1, *[1] * (h.ndim - axis))
    found = (each.squeeze(axis).movedim(dim, -1).contiguous() for each in (values, unit))
    return FiredUnits(*found)


class Deferred(LWTA):
    """In the place of an :class:`LWTA` whose units compete in the layer that reads them: its input passes.

    Args:
        until: the modules up to the reader, and it.
    """

    def __init__(self, competition: Competition, until: tuple[nn.Module, ...]) -> None:
        nn.Module.__init__(self)
        self.competition = competition
        self._until = until  # a tuple: they are modules of the network, not of this one

    def defers(self) -> bool:
        """Whether its input passes now.

        Not in training, where a gradient is asked for, or where a hook would see what has not competed.
        """
        return not (
            self.training
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or every_module._global_forward_hooks
            or every_module._global_forward_pre_hooks
            or any(m._forward_hooks or m._forward_pre_hooks for m in (self, self.competition, *self._until))
        )

    def forward(self, x: Tensor) -> Tensor:
        return x if self.defers() else self.competition(x).values


class WinnersOnly(nn.Module):
    """A linear layer or 1 x 1 convolution that sums the rows of the units that fired, where that is faster.

    Its parameters are the layer's, by their names. A transposed copy of the weight is kept beside them.

    Args:
        reader: the layer.
        timings: of the shapes met so far, shared by the layers of a network; what is not there is measured.
    """

    #: What competes before it, in a tuple: it is a module of the network, not of this one.
    deferred: tuple[Deferred]

    def __init__(self, reader: nn.Linear | nn.Conv2d, timings: dict[Shape, Timing]) -> None:
        super().__init__()
        self.weight, self.bias = reader.weight, reader.bias
        self.timings = timings
        self._rows: tuple[tuple[Any, ...], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        (deferred,) = self.deferred
        if not deferred.defers():
            return self.product(x)
        competition = deferred.competition
        if x.dtype != self.weight.dtype or torch.is_autocast_enabled(x.device.type) or not x.numel():
            return self.product(competition(x).values)
        paths = (
            lambda: self.product(competition(x).values),
            lambda: self.sum(fired_units(competition, x), x),
        )
        shape = self._shape(x, competition)
        if shape not in self.timings:
            self.timings[shape] = _measure(*paths, x.device)
        return paths[self.timings[shape].winners < self.timings[shape].dense]()

    def product(self, values: Tensor) -> Tensor:
        """As the layer does it, of dense values."""
        function = F.conv2d if self.weight.ndim == 4 else F.linear
        return function(values, self.weight, self.bias)

    def sum(self, fired: FiredUnits, like: Tensor) -> Tensor:
        """The same of winners alone, in the layout of the units ``like``."""
        blocks = fired.unit.shape[-1]
        unit, values = fired.unit.view(-1, blocks), fired.values.view(-1, blocks)
        out = F.embedding_bag(unit, self._transposed(), mode="sum", per_sample_weights=values)
        if self.bias is not None:
            out += self.bias
        out = out.view(*fired.unit.shape[:-1], -1)
        if self.weight.ndim == 2:
            return out
        last = like.is_contiguous(memory_format=torch.channels_last)
        return out.movedim(-1, 1).contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )

    def _transposed(self) -> Tensor:
        """The weight (D, K), copied anew where it has changed."""
        weight = self.weight.detach()
        version = None if weight.is_inference() else weight._version
        seen = (version, weight.data_ptr(), weight.device, weight.dtype)
        if self._rows is None or self._rows[0] != seen:
            self._rows = seen, weight.flatten(1).t().contiguous()
        return self._rows[1]

    def _shape(self, x: Tensor, competition: Competition) -> Shape:
        outputs, units = self.weight.shape[:2]
        positions = 1 << (x.numel() // units - 1).bit_length()
        layer = "Conv2d" if self.weight.ndim == 4 else "Linear"
        kind = str(x.dtype).removeprefix("torch.")
        return Shape(layer, competition.competitors, units, outputs, positions, kind, x.device.type)


def _measure(dense: Callable[[], Tensor], winners: Callable[[], Tensor], device: torch.device) -> Timing:
    def timed(path: Callable[[], Tensor]) -> float:
        start = time.perf_counter()
        path()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    _ = timed(dense), timed(winners)
    spent = [(timed(dense), timed(winners)) for _ in range(_ROUNDS)]  # in turns: other work slows both alike
    return Timing(*(median(times) for times in zip(*spent, strict=True)))
