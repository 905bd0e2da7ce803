"""Per unit of a layer: its strongest images, how often it won, and moments; built batch by batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lwta.dissect.activations import Reading


@dataclass
class Exemplars:
    """Per unit, the images on which it won, the strongest first; of equal ones the earlier image.

    Attributes:
        images: int64 (k, D), probe index of the r-th exemplar; -1 beyond the unit's wins.
        values: (k, D), the unit's value there; a unit whose wins are mostly negative is ranked by -value.
        wins: int64 (D,), images on which the unit won.
        negative: bool (D,), most wins of a competing unit are negative.
        count: N, images seen.
        positions: int64 (k, D), where in the image, counted over the positions read.
    """

    images: Tensor
    values: Tensor
    wins: Tensor
    negative: Tensor
    count: int
    positions: Tensor | None = None


class _Top(NamedTuple):
    """The ``k`` largest values of each unit, (D, k), with the image and position of each."""

    values: Tensor
    images: Tensor
    positions: Tensor

    @staticmethod
    def empty(units: int, k: int, device: str | torch.device) -> "_Top":
        # From minus infinity: a list of zeros would lose every negative win.
        none = torch.full((units, k), -1, device=device)
        return _Top(torch.full((units, k), -torch.inf, device=device), none, none)

    def merged(self, other: "_Top", later: bool = False) -> "_Top":
        """The largest of both, as long as this; equal values in the order of their images.

        Args:
            later: all images of ``other`` come after those of this one, and in order.
        """
        k = self.values.shape[1]
        parts = [torch.cat(pair, 1) for pair in zip(self, other, strict=True)]
        # By image first, then by value without disturbing that order among equals: which exemplars are
        # kept must not depend on how the images were shared out between processes.
        if not later:
            order = parts[1].sort(dim=1, stable=True).indices
            parts = [part.gather(1, order) for part in parts]
        order = parts[0].sort(dim=1, stable=True, descending=True).indices
        return _Top(*(part.gather(1, order[:, :k]) for part in parts))


class Record:
    """What the units of one layer did on the images seen so far; records of other images merge into it.

    Args:
        units: D.
        k: exemplars kept of each unit.
        competes: whether the units compete; only then can a negative value be a win to look at.
    """

    def __init__(self, units: int, k: int, competes: bool, device: str | torch.device = "cpu") -> None:
        self.competes = competes
        self.high = _Top.empty(units, k, device)
        self.low = _Top.empty(units, k if competes else 0, device)
        self.wins = torch.zeros(units, dtype=torch.long, device=device)
        self.negative_wins = torch.zeros(units, dtype=torch.long, device=device)
        self.least = torch.full((units,), torch.inf, device=device)
        self.most = torch.full((units,), -torch.inf, device=device)
        self.total = torch.zeros(2, units, dtype=torch.float64, device=device)  # of values and squares
        self.count = self.places = 0
        self._waiting: list[tuple[_Top, _Top]] = []

    def add(self, reading: Reading, images: Tensor) -> None:
        """Add what was read of ``images`` (n,), their probe indices."""
        values, won, positions = (part.T for part in reading[:3])
        self.places = reading.places
        wide = images.to(values.device).expand_as(values)
        high = _Top(values.masked_fill(~won, -torch.inf), wide, positions)
        low = high._replace(values=(-values).masked_fill(~won, -torch.inf))
        self._waiting.append((high, low if self.competes else _Top(*(part[:, :0] for part in high))))
        self.wins += won.sum(1)
        self.negative_wins += (won & (values < 0)).sum(1)
        self.least = torch.minimum(self.least, values.amin(1))
        self.most = torch.maximum(self.most, values.amax(1))
        self.total += torch.stack([values.double().sum(1), values.double().square().sum(1)])
        self.count += len(images)
        # Sorting at each batch would sort the kept ones again and again.
        if sum(top.values.shape[1] for top, _ in self._waiting) >= max(self.high.values.shape[1], 512):
            self._settle()

    def _settle(self) -> None:
        if self._waiting:
            high, low = (
                _Top(*(torch.cat(parts, 1) for parts in zip(*tops, strict=True)))
                for tops in zip(*self._waiting, strict=True)
            )
            new = high.images[0]  # of all units alike
            later = bool((new.diff() > 0).all() and self.high.images.max() < new[0])
            self.high, self.low = self.high.merged(high, later), self.low.merged(low, later)
            self._waiting = []

    def merge(self, other: "Record") -> None:
        """Add what another record of the same layer saw on other images."""
        self._settle()
        other._settle()
        self.high, self.low = self.high.merged(other.high), self.low.merged(other.low)
        self.wins += other.wins
        self.negative_wins += other.negative_wins
        self.least, self.most = torch.minimum(self.least, other.least), torch.maximum(self.most, other.most)
        self.total += other.total
        self.count += other.count
        self.places = max(self.places, other.places)

    def exemplars(self) -> Exemplars:
        """The ``k`` strongest wins of each unit."""
        self._settle()
        negative = (self.negative_wins * 2 > self.wins) & self.competes
        kept = self.high
        if self.competes:
            kept = _Top(
                *(torch.where(negative[:, None], b, a) for a, b in zip(self.high, self.low, strict=True))
            )
        none = kept.values.isinf()
        values = torch.where(negative[:, None], -kept.values, kept.values).masked_fill(none, 0)
        images, positions = (part.masked_fill(none, -1) for part in kept[1:])
        images, values, positions = (part.T.cpu() for part in (images, values, positions))
        return Exemplars(images, values, self.wins.cpu(), negative.cpu(), self.count, positions)

    @property
    def constant(self) -> Tensor:
        """bool (D,): the same value on every image."""
        return (self.least == self.most).cpu()

    @property
    def mean(self) -> Tensor:
        """(D,), over all images."""
        return (self.total[0] / max(self.count, 1)).float()

    @property
    def std(self) -> Tensor:
        """(D,), over all images."""
        mean = self.total[0] / max(self.count, 1)
        return (self.total[1] / max(self.count, 1) - mean.square()).clamp_min(0).sqrt().float()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, as ``torch.load(weights_only=True)`` takes them."""
        self._settle()
        kept = {
            name: value.cpu() if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
            if name != "_waiting"
        }
        return kept | {name: [part.cpu() for part in getattr(self, name)] for name in ("high", "low")}

    @staticmethod
    def from_state(state: Mapping[str, Any], device: str | torch.device = "cpu") -> "Record":
        """The record of :meth:`state_dict`."""
        record = Record(0, 0, False)
        for name, value in state.items():
            setattr(record, name, value.to(device) if isinstance(value, Tensor) else value)
        record.high, record.low = (
            _Top(*(part.to(device) for part in state[name])) for name in ("high", "low")
        )
        return record
