"""``dissect`` and ``explain``: what the commands find out, from Python."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from commands.evidence import Evidence
from commands.options import EvidenceOptions, LabelOptions, NetworkOptions, PassOptions
from commands.question import Question
from commands.subject import Subject, open_subject, subject_of
from lwta.dissect.explanation import Explanation
from lwta.dissect.labels import Labels, labels_for
from lwta.errors import InputError


def dissect(
    model: nn.Module | str | Path,
    *,
    layers: str | list[str] | None = None,
    probe: str | Path | Dataset | None = None,
    concepts: str | list[str] | None = None,
    clip: str | None = None,
    transform: Callable[[Image.Image], Tensor] | None = None,
    image_size: int | None = None,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int = 128,
    num_workers: int = 0,
    cache: str | None = None,
    force: bool = False,
    **options: Any,
) -> Labels:
    """Label the units of a network; nothing is written but the cache, and a module keeps its mode.

    Args:
        model: a module; or as the command line names one: a run folder, ``timm:NAME``, ``torchvision:NAME``,
            ``package.module:function``.
        layers: glob, or list of globs, over module names; all activations where not given.
        probe: images to label on: as ``--probe`` names them, or a map-style dataset of (PIL image, class). To
            know such a dataset again all its images are read once more, before the pass.
        concepts: word lists, or a file, as ``--concepts`` takes them.
        clip: open_clip model that looks for the words.
        transform: PIL image to what a module takes, (3, H, W); ImageNet's evaluation transform at
            ``image_size`` (224) where not given.
        weights: of a model named by text.
        options: the others of :class:`commands.options.LabelOptions`: readout, similarity, prior, tag, ...

    Returns:
        The label table, the exemplars beside it, and what they were made from.

    Raises:
        InputError: for whatever the command would refuse.

    >>> labels = dissect("runs/quickstart", probe="validation[:3000]", prior=0.75)  # doctest: +SKIP
    >>> labels.table[["layer", "unit", "label", "score"]]  # doctest: +SKIP
    """
    data = None if probe is None or isinstance(probe, str | Path) else probe
    if data is not None:
        check_images(data)
    asked = LabelOptions(
        probe=str(probe) if probe and data is None else None, concepts=concepts, clip=clip, **options
    )
    images = PassOptions(batch_size=batch_size, num_workers=num_workers, cache=cache, force=force)
    with _opened(model, transform, image_size, weights, device) as subject:
        return Question(subject, asked, images, data=data).label(subject.layers(layers))


def explain(
    model: nn.Module | str | Path,
    image: Image.Image | str | Path,
    *,
    labels: Labels | None = None,
    readout: str | None = None,
    class_names: Sequence[str] | None = None,
    transform: Callable[[Image.Image], Tensor] | None = None,
    image_size: int | None = None,
    weights: str | None = None,
    device: str = "auto",
    **question: Any,
) -> Explanation:
    """Explain the decision on one image; nothing is written, and a module keeps its mode.

    Args:
        model: as for :func:`dissect`, a classifier.
        image: a picture, its file, or ``SPLIT:INDEX`` of a run's data.
        labels: of :func:`dissect`; those in the folder of a run where not given. Units they do not tell carry
            numbers only.
        readout: cls, mean, max or patches; what the network's head reads where not given.
        class_names: C names, of a module.
        transform, image_size, weights: as for :func:`dissect`.
        question: :class:`commands.options.EvidenceOptions`: layers, target, against, top, samples, silence,
            winner.

    Returns:
        The evidence; in a notebook it shows itself, ``print(found.table())`` shows it elsewhere.

    Raises:
        InputError: for whatever the command would refuse.

    >>> found = explain("runs/quickstart", "test:0", target="circle", against="square")  # doctest: +SKIP
    >>> [(unit.unit, unit.label, unit.silenced) for unit in found.layers[-1].fired]  # doctest: +SKIP
    """
    if not isinstance(image, Image.Image | str | Path):
        raise InputError(f"give one picture, its file, or SPLIT:INDEX, not a {type(image).__name__}")
    with _opened(model, transform, image_size, weights, device) as subject:
        if class_names is not None:
            subject = subject._replace(class_names=list(class_names))
        evidence = Evidence(subject, EvidenceOptions(**question), readout)
        picture = image.convert("RGB") if isinstance(image, Image.Image) else subject.image(str(image))
        name = "image" if isinstance(image, Image.Image) else Path(image).name
        found = evidence.explain(picture, name)
        if labels is None and subject.run is not None:
            labels = labels_for(subject.folder, subject.run.weights)
    return found if labels is None else found.label(labels.table)


@contextmanager
def _opened(
    model: nn.Module | str | Path,
    transform: Callable[[Image.Image], Tensor] | None,
    image_size: int | None,
    weights: str | None,
    device: str,
) -> Iterator[Subject]:
    """The network that somebody has or names; a module gets its mode back."""
    if isinstance(model, nn.Module) and weights is not None:
        raise InputError("weights are of a model named by text; load them into the module yourself")
    if not isinstance(model, nn.Module) and transform is not None:
        raise InputError(f"{model} has a transform of its own; leave transform away, or give a module")
    if not isinstance(model, nn.Module):
        run, name = (str(model), None) if Path(model).is_dir() else (None, str(model))
        yield open_subject(
            NetworkOptions(run=run, model=name, weights=weights, image_size=image_size, device=device)
        )
        return
    modes = {module: module.training for module in model.modules()}
    place = next(model.parameters()).device if device == "auto" else torch.device(device)
    try:
        yield subject_of(model.to(place), transform, image_size)
    finally:
        for module, training in modes.items():
            module.training = training


def check_images(data: Any) -> None:
    """Refuse what is no map-style dataset of (PIL image, class), going by its first image.

    Raises:
        InputError: it is not.
    """
    try:
        first = data[0] if len(data) else (Image.new("RGB", (1, 1)), 0)
        image, _ = first[:2]
    except (TypeError, ValueError, KeyError, AttributeError):
        image = None
    if not isinstance(image, Image.Image):
        raise InputError(
            "the probe images need to be a dataset with len() and [i] that gives (PIL image, class); "
            "leave its own transform away"
        )
