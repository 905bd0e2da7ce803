"""Competition and the layer that reads it in one, computed from the units that fired.

A linear layer that reads D units, of which one in U is not zero, is a sum of D / U rows of its transposed
weight, each times a winner's value, and a bias.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwta import fused, operators
from lwta.deferred import Deferred, version_of
from lwta.functional import blocks_of, positive_axis, to_blocks
from lwta.gradient import perturbed
from lwta.layers import Competition
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
        channels_last: whether they lie so in memory.
        drawn: whether winners are, rather than the argmax.
    """

    layer: str
    competitors: int
    units: int
    outputs: int
    positions: int
    dtype: str
    device: str
    channels_last: bool = False
    drawn: bool = False


class Timing(NamedTuple):
    """Median seconds of competition and reader, with the dense product and with the winners' rows."""

    dense: float
    winners: float


def fired_units(competition: Competition, x: Tensor) -> FiredUnits:
    """The winners of a competition in evaluation, without gradient.

    Args:
        x: units along the competition's axis; the other axes are positions.
    """
    x, dim, seed = _competing(competition, x)
    h, axis, beta = to_blocks(x.detach(), competition.competitors, dim), dim + 1, competition.running_scale
    if fused.serves(h, competition.competitors):  # which makes noise of its own
        scales = as_tensor(beta), as_tensor(competition.noise), as_tensor(competition.tau)
        _, winner, _, _ = fused.compete(h, *scales, seed, None, None, False, axis)
    else:
        winner = perturbed(h, beta, competition.noise, seed, axis).argmax(axis, keepdim=True)
    first = torch.arange(0, x.shape[dim], competition.competitors, device=x.device)
    unit = winner + first.view(-1, *[1] * (h.ndim - axis))
    found = (each.squeeze(axis).movedim(dim, -1).contiguous() for each in (h.gather(axis, winner), unit))
    return FiredUnits(*found)


def _competing(competition: Competition, x: Tensor) -> tuple[Tensor, int, Tensor | None]:
    """Units, their axis, which is the last where that takes no copy, and the seed of a sample."""
    seed = competition.seed if competition.noise > 0 else None
    dim, last = positive_axis(competition.dim, x.ndim), x.ndim - 1
    blocks_of(x.shape[dim], competition.competitors)
    # Noise is numbered along the axes as they come.
    if dim < last and seed is None and (moved := x.movedim(dim, -1)).is_contiguous():
        return moved, last, seed
    return x, dim, seed


class WinnersOnly(nn.Module):
    """A linear layer or 1 x 1 convolution that sums the rows of the units that fired, where that is faster.

    Its parameters are the layer's, by their names. A transposed copy of the weight is kept beside them; a
    write to ``weight.data`` is seen only after the module changes its mode or place, or loads its state.

    Args:
        reader: the layer.
        timings: of the shapes met so far, shared by the layers of a network; what is not there is measured.
    """

    def __init__(self, reader: nn.Linear | nn.Conv2d, timings: dict[Shape, Timing]) -> None:
        super().__init__()
        self.weight, self.bias = reader.weight, reader.bias
        self.timings = timings
        self._rows: tuple[tuple[Any, ...], Tensor] | None = None
        self.train(reader.training)

    @property
    def in_features(self) -> int:
        """D, units read."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """K, outputs made."""
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        if not self._takes(x):
            return self.product(x)
        h, competition = x.h, x.competition
        paths = (
            lambda: self.product(competition(h).values),
            lambda: self.sum(competition, h),
        )
        shape = self._shape(h, competition)
        if shape not in self.timings:
            self.timings[shape] = _measure(*paths, h.device)
        return paths[self.timings[shape].winners < self.timings[shape].dense]()

    def _takes(self, x: Tensor) -> TypeGuard[Deferred]:
        """Whether these are winners to be summed, not values that somebody used or that are to be cast."""
        if not isinstance(x, Deferred) or x.computed is not None:
            return False
        dim = positive_axis(x.competition.dim, x.ndim)
        return (
            dim == (1 if self.weight.ndim == 4 else x.ndim - 1)
            and x.shape[dim] == self.in_features
            and x.numel() > 0
            and x.dtype == self.weight.dtype
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(x.device.type)
        )

    def product(self, values: Tensor) -> Tensor:
        """As the layer does it, of dense values."""
        function = F.conv2d if self.weight.ndim == 4 else F.linear
        return function(values, self.weight, self.bias)

    def sum(self, competition: Competition, h: Tensor) -> Tensor:
        """The same of winners alone, in the layout of the units ``h``."""
        out = self._compiled_sum(competition, h) if compiled_for(h) else self._bags(competition, h)
        if self.weight.ndim == 2:
            return out
        last = h.is_contiguous(memory_format=torch.channels_last)
        return out.movedim(-1, 1).contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )

    def _compiled_sum(self, competition: Competition, h: Tensor) -> Tensor:
        x, dim, seed = _competing(competition, h)
        scales = float(competition.running_scale), competition.noise
        rows = self._transposed()
        return operators.sum_winners(x, competition.competitors, *scales, seed, dim, rows, self.bias)

    def _bags(self, competition: Competition, h: Tensor) -> Tensor:
        values, unit = fired_units(competition, h)
        blocks = unit.shape[-1]
        unit, weights = unit.view(-1, blocks), values.view(-1, blocks)
        out = F.embedding_bag(unit, self._transposed(), mode="sum", per_sample_weights=weights)
        if self.bias is not None:
            out += self.bias
        return out.view(*values.shape[:-1], -1)

    def _transposed(self) -> Tensor:
        """The weight (D, K), copied anew where it has changed."""
        weight = self.weight.detach()
        seen = (version_of(weight), weight.data_ptr(), weight.device, weight.dtype)
        if self._rows is None or self._rows[0] != seen:
            self._rows = seen, weight.flatten(1).t().contiguous()
        return self._rows[1]

    def _shape(self, h: Tensor, competition: Competition) -> Shape:
        positions = 1 << (h.numel() // self.in_features - 1).bit_length()
        layer = "Conv2d" if self.weight.ndim == 4 else "Linear"
        sizes = competition.competitors, self.in_features, self.out_features, positions
        last = h.ndim == 4 and h.is_contiguous(memory_format=torch.channels_last)
        drawn = competition.seed is not None and competition.noise > 0
        return Shape(layer, *sizes, str(h.dtype).removeprefix("torch."), h.device.type, last, drawn)

    def train(self, mode: bool = True) -> "WinnersOnly":
        self._rows = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> "WinnersOnly":
        self._rows = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._rows = None
        super()._load_from_state_dict(*args)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


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
