"""``explain``: which units fired on an image, what each means, and what each changed in the decision."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from json import dumps
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from commands.label import keep
from commands.options import LabelOptions, NetworkOptions, PassOptions
from commands.question import Question
from commands.subject import Subject, open_subject
from lwta.dissect.activations import Readout, readings
from lwta.dissect.explain import explain
from lwta.dissect.labels import Labels, labels_for, read_labels
from lwta.dissect.report import ExplainedImage, render_input
from lwta.errors import InputError
from models.run import patch_grid


def explain_images(
    network: NetworkOptions,
    labels: LabelOptions,
    run: PassOptions,
    images: list[str],
    layers: str | list[str] | None = None,
    target: str | None = None,
    top: int = 50,
    json: bool = False,
) -> None:
    """Say which units fired on each image and what each changed in the decision.

    Prints a table for each image and writes a page for it. Units that fired and have no label yet are
    labelled, as label does, and the answer is kept beside the others.

    Args:
        images: image files, or SPLIT:INDEX of the run's data, such as test:12.
        layers: glob, or list of globs, over layer names; the last layer where not given.
        target: class to explain; the predicted one where not given.
        top: units listed and silenced in each layer.
        json: print JSON instead of tables.
    """
    subject = open_subject(network)
    if top < 1:
        raise InputError(f"top is at least 1, not {top}")
    pictures = [subject.image(source) for source in images]  # all, before any work
    reading, sites = subject.readout(labels.readout), subject.layers(layers)
    sites = sites if layers else dict(list(sites.items())[-1:])
    subject.check_readout(reading, sites)
    fired, classes = fired_units(subject, pictures, sites, reading)
    names = subject.class_names or [str(k) for k in range(classes)]
    if target is not None and target not in names:
        raise InputError(f"there is no class {target!r}; the network knows {', '.join(names[:20])}")
    known = labels_on_demand(subject, labels, run, sites, fired)
    found = []
    for explained in explanations(subject, images, pictures, sites, reading, known, names, target, top):
        found.append(explained.explanation)
        if not json:
            print(explained.explanation.table())
        print(f"page: {subject.folder / explained.page}", file=sys.stderr)
    if json:
        print(dumps([explanation.to_dict() for explanation in found], indent=1))


def fired_units(
    subject: Subject, pictures: Sequence[Image.Image], sites: Mapping[str, int], reading: Readout
) -> tuple[dict[str, list[int]], int]:
    """Layer -> units that fired on any of the images; and the number of classes."""
    fired: dict[str, torch.Tensor] = {}
    classes = 0
    batches = ((torch.tensor([i]), subject.transform(picture)[None]) for i, picture in enumerate(pictures))

    def count(module: torch.nn.Module, inputs: tuple, out: object) -> None:
        nonlocal classes
        if not isinstance(out, torch.Tensor) or out.ndim != 2:
            raise InputError("explain needs a classifier: a network that returns logits (n, C)")
        classes = out.shape[1]

    handle = subject.model.register_forward_hook(count)
    try:
        for _, read in readings(subject.model, batches, sites, reading):
            for layer, found in read.items():
                won = found.won.any(0).cpu()
                fired[layer] = won | fired[layer] if layer in fired else won
    finally:
        handle.remove()
    return {layer: fired[layer].nonzero()[:, 0].tolist() for layer in sites}, classes


def labels_on_demand(
    subject: Subject,
    options: LabelOptions,
    run: PassOptions,
    sites: Mapping[str, int],
    units: Mapping[str, Sequence[int]],
) -> Labels | None:
    """Labels of the units asked for: those that are there, and the missing ones made and kept.

    Without any option, as the labels that are there were made. Where they were made otherwise, layers that
    were labelled whole are labelled whole again.
    """
    asked = {name: value for name, value in options.asked().items() if name != "readout"}
    known = read_labels(subject.folder) if asked else labels_for(subject.folder, subject.identity["weights"])
    if known is not None and not asked:
        _say_readout(subject, options, known)
        options = LabelOptions(**known.options)
    missing: dict[str, Sequence[int]] = dict(units) if known is None else _missing(known, units)
    if known is not None and not asked and not missing:
        return known
    if known is None and not asked and subject.run is None and options.probe is None:
        print("no labels: name images to label on with --probe", file=sys.stderr)
        return None
    question = Question(subject, options, run)
    if known is not None and known.identity != question.identity:
        print(f"labelled anew: {subject.folder}/labels.parquet", file=sys.stderr)
        missing = dict(units)
        if whole := [layer for layer in known.units if layer not in known.partial]:
            sites = subject.layers(whole) | dict(sites)
            missing = missing | {layer: range(known.units[layer]) for layer in whole}
            missing = {layer: missing[layer] for layer in sites}
    if not missing:
        return known
    return keep(subject.folder, question.label({name: sites[name] for name in missing}, missing))


def _missing(known: Labels, units: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    there = set(known.table[["layer", "unit"]].itertuples(index=False, name=None))
    left: dict[str, Sequence[int]] = {
        layer: [u for u in wanted if (layer, u) not in there] for layer, wanted in units.items()
    }
    return {layer: wanted for layer, wanted in left.items() if wanted}


def _say_readout(subject: Subject, options: LabelOptions, known: Labels) -> None:
    kind = subject.readout(options.readout).kind
    if known.identity["readout"] != kind:
        print(f"the labels were made at {known.identity['readout']}, not at {kind}", file=sys.stderr)


def explanations(
    subject: Subject,
    sources: Sequence[str],
    pictures: Sequence[Image.Image],
    sites: Mapping[str, int],
    reading: Readout,
    labels: Labels | None,
    names: Sequence[str],
    target: str | None,
    top: int,
) -> Iterator[ExplainedImage]:
    """Explain images one by one, and write the page of each."""
    for source, picture, page in zip(sources, pictures, _pages(sources), strict=True):
        pixels = subject.transform(picture)
        explanation = explain(
            subject.model,
            pixels,
            sites,
            reading,
            class_names=names,
            labels=None if labels is None else labels.table,
            grids=lambda n: patch_grid(subject.model, n, subject.image_size),
            name=Path(source).name,
            target=None if target is None else list(names).index(target),
            top=top,
        )
        shown = to_pil_image(subject.denormalise(pixels))
        (subject.folder / page).parent.mkdir(parents=True, exist_ok=True)
        (subject.folder / page).write_text(render_input(explanation, shown), encoding="utf-8")
        yield ExplainedImage(explanation, shown, page)


def _pages(sources: Sequence[str]) -> list[Path]:
    """A page for each image in the folder, named after it; images of the same name are numbered."""
    pages: list[Path] = []
    for source in sources:
        stem = Path(source).stem if Path(source).exists() else Path(source.replace(":", "-")).name
        page, again = Path("explanations") / f"{stem}.html", 1
        while page in pages:
            again += 1
            page = page.with_name(f"{stem}-{again}.html")
        pages.append(page)
    return pages
