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

from lwta.dissect.activations import Readout, reading
from lwta.dissect.tally import Rows, Tally
from lwta.errors import InputError
from lwta.layers import Firing, observe


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
    tallies = {name: Tally(model.get_submodule(name)) for name in sites}
    seen = Rows()  # index, target, predicted
    classes = 0

    def question(images: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        nonlocal classes
        logits = model(images)
        classes = _check(logits, targets)
        seen.add(torch.stack([indices, targets.cpu(), logits.argmax(1).cpu()], 1))
        return _asked(logits, targets)

    modules = [model.get_submodule(name) for name in sites]
    attribution = LayerGradientXActivation(question, modules)  # type: ignore[arg-type]
    with _frozen(model), reading(model, sites, readout) as read, _counted(model, sites, readout, tallies):
        for indices, images, targets in batches:
            if not len(indices):
                continue
            read.clear()
            asked = (targets.to(device), indices)
            found = attribution.attribute(
                images.to(device), additional_forward_args=asked, grad_kwargs={"materialize_grads": True}
            )
            for (name, dim), contribution in zip(sites.items(), found, strict=True):
                tallies[name].add(read[name], cast(Tensor, contribution).detach(), dim)
    if not seen.blocks:
        raise InputError("no image of the probe set decodes; there is nothing to survey")
    layers = {name: _layer(tallies.pop(name)) for name in sites}
    indices, targets, predicted = seen.joined().T.contiguous()
    return Survey(indices, targets, predicted, layers, classes)


def _layer(tally: Tally) -> LayerSurvey:
    competition = tally.competition
    return LayerSurvey(
        competitors=None if competition is None else competition.competitors,
        values=tally.values.joined(),
        won=tally.won.joined(),
        contributions=tally.contributions.joined(),
        win_rate=(tally.fired.double() / tally.places).float(),
        rivals=None if competition is None else tally.rivals,
    )


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


@contextmanager
def _counted(
    model: nn.Module, sites: Mapping[str, int], readout: Readout, tallies: Mapping[str, Tally]
) -> Iterator[None]:
    def seen(name: str, firing: Firing) -> None:
        tallies[name].count(firing, readout)

    with observe(model, sites, seen):
        yield
