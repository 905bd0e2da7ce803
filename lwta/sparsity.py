"""How sparse, how even: functions of who fired, and torchmetrics that merge across processes.

*Fired* is a boolean tensor with the units D along one axis; every other axis is a position (image,
token, pixel). At an LWTA layer exactly one unit of each block fires at each position, so its active
fraction is 1 / U by construction; what training decides is who, how evenly, and whether some never do.
"""

import math
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric, MetricCollection


def positions_first(x: Tensor, dim: int) -> Tensor:
    """View ``(..., D, ...)`` as ``(P, D)``, P positions, in the order of the other axes."""
    return x.movedim(dim, -1).reshape(-1, x.shape[dim])


def active_fraction(fired: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    """Fired units over all units at the positions read.

    >>> active_fraction(torch.tensor([[True, False], [False, False]]))
    tensor(0.2500)
    """
    return fired.float().mean()


def ever_fired(fired: Bool[Tensor, "N ..."], dim: int) -> Bool[Tensor, "N D"]:
    """Which units, along ``dim``, fire at any position of each image; images lie along axis 0.

    >>> ever_fired(torch.tensor([[[True, False], [True, False]], [[True, False], [False, True]]]), dim=-1)
    tensor([[ True, False],
            [ True,  True]])
    """
    return fired.movedim(dim, -1).reshape(len(fired), -1, fired.shape[dim]).any(1)


def dead_units(counts: Int[Tensor, " D"]) -> Int[Tensor, ""]:
    """Number of units that fired nowhere; ``counts`` is how often each fired.

    >>> dead_units(torch.tensor([3, 0, 1]))
    tensor(1)
    """
    return (counts == 0).sum()


def usage(counts: Int[Tensor, " D"], competitors: int) -> Float[Tensor, "B U"]:
    """Share of its block's wins that each unit took; rows sum to 1, or are 0 where nobody fired.

    >>> usage(torch.tensor([3, 1, 0, 4]), competitors=2)
    tensor([[0.7500, 0.2500],
            [0.0000, 1.0000]])
    """
    wins = rearrange(counts, "(b u) -> b u", u=competitors).float()
    return wins / wins.sum(1, keepdim=True).clamp_min(1)


def winner_entropy(counts: Int[Tensor, " D"], competitors: int) -> Float[Tensor, ""]:
    """Entropy of each block's usage over log U, averaged over blocks: 1 is even, 0 is one unit always.

    >>> winner_entropy(torch.tensor([2, 2, 0, 4]), competitors=2)
    tensor(0.5000)
    """
    share = usage(counts, competitors)
    entropy = -torch.xlogy(share, share).sum(1)
    return entropy.mean() / math.log(competitors)


def participation_ratio(values: Float[Tensor, "..."], dim: int) -> Float[Tensor, " P"]:
    """(sum a^2)^2 / (D sum a^4) at each position: the fraction of units that carry the energy.

    Unlike the active fraction it compares sparse layers with GELU, which is never exactly zero.
    1 where all magnitudes are equal, 1 / D where one unit carries all; 0 where nothing is active.

    >>> participation_ratio(torch.tensor([[2.0, 0.0, -2.0, 0.0]]), dim=-1)
    tensor([0.5000])
    """
    # Float64: with float32's range the fourth power overflows above 4e9 and vanishes below 1e-10.
    energy = positions_first(values, dim).double().square()
    ratio = energy.sum(1).square() / (values.shape[dim] * energy.square().sum(1))
    return ratio.nan_to_num(0.0).float()


class FiringRate(Metric):
    """How often each unit of one layer fired; base of the metrics below, which share its state.

    Args:
        units: D, width of the layer.

    Update with ``fired``, boolean, units along ``dim`` (default last). States are sums, so they
    merge across processes and batches exactly.
    """

    full_state_update = False
    counts: Tensor
    positions: Tensor

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.add_state("counts", torch.zeros(units, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("positions", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, fired: Tensor, dim: int = -1) -> None:
        """Add one call's firing; raises ValueError where the axis does not hold ``units`` units."""
        if fired.shape[dim] != self.units:
            raise ValueError(f"expected {self.units} units along axis {dim}, got {tuple(fired.shape)}")
        fired = positions_first(fired, dim)
        self.counts += fired.sum(0)
        self.positions += len(fired)

    def compute(self) -> Tensor:
        """How often each unit fired, per position: shape (D,)."""
        return self.counts / self.positions.clamp_min(1)


class ActiveFraction(FiringRate):
    """Fraction of the layer's units that fire at a position, averaged over positions.

    >>> metric = ActiveFraction(units=4)
    >>> metric.update(torch.tensor([[True, False, False, False]]))
    >>> metric.compute()
    tensor(0.2500)
    """

    def compute(self) -> Tensor:
        return super().compute().mean()


class DeadUnits(FiringRate):
    """Number of units that fired nowhere so far."""

    def compute(self) -> Tensor:
        return dead_units(self.counts)


class Usage(FiringRate):
    """Share of its block's wins that each unit took, :func:`usage`: shape (B, U).

    Args:
        units: D.
        competitors: U.
    """

    def __init__(self, units: int, competitors: int, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.competitors = competitors

    def compute(self) -> Tensor:
        return usage(self.counts, self.competitors)


class WinnerEntropy(Usage):
    """Evenness of use within blocks, :func:`winner_entropy`."""

    def compute(self) -> Tensor:
        return winner_entropy(self.counts, self.competitors)


class ParticipationRatio(Metric):
    """:func:`participation_ratio`, averaged over positions. Update with ``values``, units along ``dim``."""

    full_state_update = False
    total: Tensor
    positions: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("positions", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, values: Tensor, dim: int = -1) -> None:
        """Add one call's values."""
        ratio = participation_ratio(values, dim)
        self.total += ratio.sum()
        self.positions += len(ratio)

    def compute(self) -> Tensor:
        return self.total / self.positions.clamp_min(1)


def sparsity_metrics(units: int, competitors: int | None = None) -> MetricCollection:
    """The metrics of one layer, updated together by ``fired=``, ``values=`` and ``dim=``.

    Keys: ``active_fraction``, ``dead_units``, ``participation_ratio`` and, where units compete,
    ``winner_entropy``. The counting ones share one state.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "active_fraction": ActiveFraction(units),
        "dead_units": DeadUnits(units),
        "participation_ratio": ParticipationRatio(),
    }
    if competitors is not None:
        metrics["winner_entropy"] = WinnerEntropy(units, competitors)
    return MetricCollection(metrics)
