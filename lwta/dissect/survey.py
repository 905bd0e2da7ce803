"""A survey: what every unit of some layers did on a sample of images, whom it beat and what it contributed.

Contributions are gradient x activation (first order, as in :mod:`lwta.dissect.explain`) of the question that
an image raises: where the network is right, why that class and no other; where it is wrong, why that class
and not the truth. Layers are taken together, so that an image costs one forward and one backward pass.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from captum.attr import LayerGradientXActivation
from torch import Tensor, nn

from lwta.dissect.activations import Reading, Readout, reading
from lwta.errors import InputError
from lwta.functional import to_blocks
from lwta.layers import LWTA, Firing, observe


class LayerSurvey(NamedTuple):
    """What the D units of a layer did on n images.

    Attributes:
        competitors: U, None where nothing competes.
        values: float32 (n, D), what the readout reads of each unit.
        won: bool (n, D), whether it fired at a position read.
        contributions: float32 (n, D), gradient x activation of the image's question (:func:`survey`), summed
            over all positions, those that are not read included.
        win_rate: float32 (D,), share of the positions read, of all images, at which it fired.
        rivals: int64 (D, U), at how many positions read, where it won, the u-th unit of its block came
            second; None where nothing competes.
    """

    competitors: int | None
    values: Tensor
    won: Tensor
    contributions: Tensor
    win_rate: Tensor
    rivals: Tensor | None


class Survey(NamedTuple):
    """What a network did on n images.

    Attributes:
        images: int64 (n,), probe index.
        targets: int64 (n,), true class, -1 where it is unknown.
        predicted: int64 (n,).
        layers: name -> what its units did.
        classes: C, that the network tells apart.
    """

    images: Tensor
    targets: Tensor
    predicted: Tensor
    layers: dict[str, LayerSurvey]
    classes: int


def survey(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    sites: Mapping[str, int],
    readout: Readout,
) -> Survey:
    """Survey layers of a classifier, with argmax competition; one forward and one backward pass per batch.

    The question of an image is the logit of the predicted class against the mean over classes where the
    prediction is right or the truth unknown, and against the true class's logit where it is wrong.

    Args:
        model: classifier of images (n, 3, H, W) into logits (n, C); put into evaluation mode.
        batches: yields (image indices (n,), images, true classes (n,), -1 where unknown), without the images
            that do not decode.
        sites: layer name -> axis of its units.
        readout: what is read of each layer.

    Raises:
        InputError: where there is no image, the network returns no logits or has no such class, or a layer is
            called at several places.
    """
    device = next(model.parameters()).device
    model.eval()
    gathered = {name: _Gathered(model.get_submodule(name)) for name in sites}
    seen: list[Tensor] = []  # (3, n) of each batch: index, target, predicted
    classes = 0

    def question(images: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        nonlocal classes
        logits = model(images)
        classes = _check(logits, targets)
        seen.append(torch.stack([indices, targets.cpu(), logits.argmax(1).cpu()]))
        return _asked(logits, targets)

    modules = [model.get_submodule(name) for name in sites]
    attribution = LayerGradientXActivation(question, modules)  # type: ignore[arg-type]
    with _frozen(model), reading(model, sites, readout) as read, _counted(model, sites, readout, gathered):
        for indices, images, targets in batches:
            if not len(indices):
                continue
            read.clear()
            asked = (targets.to(device), indices)
            found = attribution.attribute(images.to(device), additional_forward_args=asked)
            for (name, dim), contribution in zip(sites.items(), found, strict=True):
                gathered[name].add(read[name], cast(Tensor, contribution).detach(), dim)
    if not seen:
        raise InputError("no image of the probe set decodes; there is nothing to survey")
    images, targets, predicted = torch.cat(seen, 1)
    layers = {name: gathered.pop(name).survey() for name in sites}
    return Survey(images, targets, predicted, layers, classes)


def _check(logits: Tensor, targets: Tensor) -> int:
    if logits.ndim != 2:
        raise InputError("a survey needs a classifier: a network that returns logits (n, C)")
    if len(targets) and int(targets.max()) >= logits.shape[1]:
        raise InputError(
            f"an image is of class {int(targets.max())}, and the network tells {logits.shape[1]} apart; give "
            "images of its own classes, or -1 where the class is unknown"
        )
    return logits.shape[1]


def _asked(logits: Tensor, targets: Tensor) -> Tensor:
    """The question of each image, (n,), of logits (n, C)."""
    predicted = logits.argmax(1)
    wrong = (targets >= 0) & (targets != predicted)
    own, true = (logits.gather(1, k[:, None])[:, 0] for k in (predicted, targets.clamp_min(0)))
    return own - torch.where(wrong, true, logits.mean(1))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients of parameters: what only they need, such as a linear layer's input, is not kept then."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class _Gathered:
    """What is known so far of one layer."""

    def __init__(self, module: nn.Module) -> None:
        self.competition = module.competition if isinstance(module, LWTA) else None
        self.values: list[Tensor] = []
        self.won: list[Tensor] = []
        self.contributions: list[Tensor] = []
        self.fired = self.rivals = torch.zeros((), dtype=torch.long)
        self.places = 0

    def count(self, firing: Firing, readout: Readout) -> None:
        """Add what happened at the positions read."""
        fired = readout.positions(firing.fired, firing.dim)  # (n, T, D)
        self.fired = self.fired + fired.sum((0, 1)).cpu()
        self.places += fired.shape[0] * fired.shape[1]
        if self.competition is not None:
            u, beta = self.competition.competitors, self.competition.beta
            self.rivals = self.rivals + count_rivals(firing, readout, u, beta).cpu()

    def add(self, read: Reading, contribution: Tensor, dim: int) -> None:
        """Add what was read, and the contribution of every unit at every position."""
        axis = dim if self.competition is None else self.competition.dim
        summed = contribution.movedim(axis, 1).flatten(2).sum(2) if contribution.ndim > 2 else contribution
        self.values.append(read.values.float().cpu())
        self.won.append(read.won.cpu())
        self.contributions.append(summed.float().cpu())

    def survey(self) -> LayerSurvey:
        return LayerSurvey(
            competitors=None if self.competition is None else self.competition.competitors,
            values=torch.cat(self.values),
            won=torch.cat(self.won),
            contributions=torch.cat(self.contributions),
            win_rate=(self.fired.double() / self.places).float(),
            rivals=None if self.competition is None else self.rivals,
        )


def count_rivals(firing: Firing, readout: Readout, competitors: int, beta: float) -> Tensor:
    """How often each unit of a block came second to each, int64 (D, U), over the positions read.

    Args:
        firing: a call of a competing layer.
        competitors: U.
        beta: logit scale of the competition.
    """
    assert firing.inputs is not None
    assert firing.winner is not None
    logits = beta * to_blocks(readout.positions(firing.inputs, firing.dim), competitors, 2)  # (n, T, B, U)
    winner = readout.positions(firing.winner, firing.dim)  # (n, T, B)
    second = logits.scatter_(3, winner[..., None], -torch.inf).argmax(3)
    blocks = logits.shape[2]
    units = winner + competitors * torch.arange(blocks, device=winner.device)
    pairs = (units * competitors + second).flatten()
    return pairs.bincount(minlength=blocks * competitors**2).view(-1, competitors)


@contextmanager
def _counted(
    model: nn.Module, sites: Mapping[str, int], readout: Readout, gathered: Mapping[str, _Gathered]
) -> Iterator[None]:
    @torch.no_grad()
    def seen(name: str, firing: Firing) -> None:
        gathered[name].count(firing, readout)

    with observe(model, sites, seen):
        yield
