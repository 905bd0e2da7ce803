"""What the units of a layer did on a probe set, streamed: nothing of size images x units is kept."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwta.errors import InputError
from lwta.layers import Firing, watch

READOUTS = ("cls", "mean", "max")


@dataclass(frozen=True)
class Readout:
    """What is read of a layer for one image.

    Attributes:
        kind: ``cls`` reads the class token, ``mean`` and ``max`` pool over patches or pixels.
        prefix: number of prefix tokens (class, register, distillation); they are no patches.
    """

    kind: str
    prefix: int = 0

    def __post_init__(self) -> None:
        if self.kind not in READOUTS:
            raise InputError(f"readout is one of {', '.join(READOUTS)}, not {self.kind!r}")

    def positions(self, x: Tensor, dim: int) -> Tensor:
        """(N, ..., D, ...) to (N, T, D): the positions that this readout looks at, T = 1 for ``cls``."""
        tokens = x.ndim == 3 and dim == 2
        x = x.movedim(dim, -1).flatten(1, -2) if x.ndim > 2 else x.unsqueeze(1)
        if self.kind == "cls":
            if not (tokens and self.prefix):
                raise InputError("readout cls needs a class token, and this layer has none; use mean or max")
            return x[:, :1]
        return x[:, self.prefix :] if tokens else x

    def read(self, firing: Firing) -> tuple[Tensor, Tensor]:
        """Value (N, D) of each unit for each image, and whether it won at a position read (N, D)."""
        values = self.positions(firing.values, firing.dim)
        fired = self.positions(firing.fired, firing.dim)
        won = fired.any(1)
        if self.kind == "max":
            # Over the positions where it fired: elsewhere it is 0, which would outrank a negative win.
            return values.masked_fill(~fired, -torch.inf).amax(1).masked_fill(~won, 0), won
        return values.mean(1), won


@dataclass
class Exemplars:
    """Per unit, the images on which it won, the strongest first.

    Attributes:
        images: int64 (k, D), probe index of the r-th exemplar; -1 beyond the unit's wins.
        values: (k, D), the unit's value there; a unit whose wins are mostly negative is ranked by -value.
        wins: int64 (D,), images on which the unit won.
        negative: bool (D,), most wins are negative.
        count: N, images seen.
    """

    images: Tensor
    values: Tensor
    wins: Tensor
    negative: Tensor
    count: int


class _Running:
    """The largest ``k`` values of each unit with their images, and how often it won."""

    def __init__(self, k: int, units: int) -> None:
        # From minus infinity: a buffer of zeros would lose every negative win.
        self.high = (torch.full((k, units), -torch.inf), torch.full((k, units), -1))
        self.low = (torch.full((k, units), -torch.inf), torch.full((k, units), -1))
        self.wins = torch.zeros(units, dtype=torch.long)
        self.negative_wins = torch.zeros(units, dtype=torch.long)

    def add(self, values: Tensor, won: Tensor, images: Tensor) -> None:
        self.high = _merge(*self.high, values.masked_fill(~won, -torch.inf), images)
        self.low = _merge(*self.low, (-values).masked_fill(~won, -torch.inf), images)
        self.wins += won.sum(0)
        self.negative_wins += (won & (values < 0)).sum(0)

    def exemplars(self, count: int) -> Exemplars:
        negative = self.negative_wins * 2 > self.wins
        values = torch.where(negative, -self.low[0], self.high[0])
        images = torch.where(negative, self.low[1], self.high[1])
        images = images.masked_fill(values.isinf(), -1)
        return Exemplars(images, values.masked_fill(values.isinf(), 0), self.wins, negative, count)


def _merge(values: Tensor, kept: Tensor, new: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    all_values = torch.cat([values, new])
    all_images = torch.cat([kept, images[:, None].expand_as(new)])
    best, place = all_values.topk(len(values), dim=0)
    return best, all_images.gather(0, place)


@torch.no_grad()
def readings(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    sites: Mapping[str, int],
    readout: Readout,
) -> Iterator[tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]]:
    """One pass of ``model``, in evaluation mode, over a probe set; batches without images are passed over.

    Args:
        model: any module; moved nowhere, put into evaluation mode.
        batches: yields (image indices (n,), images (n, 3, H, W)).
        sites: module name -> axis of its units.
        readout: what is read of each layer.

    Yields:
        Image indices (n,), and module name -> values (n, D), float32, and who won (n, D), on the CPU.
    """
    device = next(model.parameters()).device
    model.eval()
    with watch(model, sites) as calls:
        for indices, images in batches:
            if not len(indices):
                continue
            model(images.to(device))
            read = {name: readout.read(firing) for name, (firing,) in calls.items()}
            for called in calls.values():
                called.clear()
            yield indices, {name: (values.float().cpu(), won.cpu()) for name, (values, won) in read.items()}


def collect(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    sites: Mapping[str, int],
    readout: Readout,
    k: int = 100,
) -> dict[str, Exemplars]:
    """The exemplars of every unit of ``sites`` over a probe set, in one pass (:func:`readings`).

    Args:
        k: exemplars kept per unit.

    Returns:
        Module name -> its exemplars, on the CPU.
    """
    running: dict[str, _Running] = {}
    count = 0
    for indices, read in readings(model, batches, sites, readout):
        count += len(indices)
        for name, (values, won) in read.items():
            running.setdefault(name, _Running(k, values.shape[1])).add(values, won, indices)
    return {name: state.exemplars(count) for name, state in running.items()}
