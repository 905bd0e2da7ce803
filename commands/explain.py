"""``explain``: which units fired on an image, what each means, and what each changed in the decision."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from json import dumps
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from commands.evidence import Evidence
from commands.label import keep
from commands.options import EvidenceOptions, LabelOptions, NetworkOptions, PassOptions
from commands.question import Question
from commands.subject import Subject, open_subject
from lwta.dissect.explanation import Explanation
from lwta.dissect.labels import Labels, labels_for, read_labels
from lwta.dissect.report import render_gallery, render_input
from lwta.dissect.report.names import file_stem, numbered
from lwta.dissect.report.page import Links, write_page
from lwta.errors import InputError
from models.images import IndexedImages, read_image

_GALLERY = Path("explanations") / "index.html"


def explain_images(
    network: NetworkOptions,
    labels: LabelOptions,
    evidence: EvidenceOptions,
    run: PassOptions,
    images: list[str],
    json: bool = False,
) -> None:
    """Say which units fired on each image and what each changed in the decision.

    Prints a table for each image and writes a page for it, and for several images or a folder a gallery that
    leads to them. Units that fired and have no label yet are labelled, as label does, and the answer is kept
    beside the others. Pages of earlier images of the same name are replaced.

    Args:
        images: image files, folders of them, or SPLIT:INDEX of the run's data, such as test:12.
        json: print JSON instead of tables.
    """
    subject = open_subject(network)
    for source in images:
        if not Path(source).is_dir():
            subject.image(source)  # all that was named, before any work
    sources = [source for asked in images for source in expanded(subject, asked)]
    asked = Evidence(subject, evidence, labels.readout)
    found = list(explained(asked, sources))
    known = labels_on_demand(subject, labels, run, asked.sites, named_units(found))
    pages, several = _pages(sources), len(sources) > 1 or sources != images
    home = ("All images", _GALLERY.name) if several else None
    for explanation, page in zip(found, pages, strict=True):
        if known is not None:
            explanation.label(known.table)
        write_page(subject.folder / page, render_input(explanation, _unit_links(subject.folder), home))
        if not json:
            print(explanation.table())
        print(f"page: {subject.folder / page}", file=sys.stderr)
    if several:
        gallery = subject.folder / _GALLERY
        shown = [(explanation, page.name) for explanation, page in zip(found, pages, strict=True)]
        write_page(gallery, render_gallery(subject.name, shown))
        print(f"gallery: {gallery}", file=sys.stderr)
    if json:
        print(dumps([explanation.to_dict() for explanation in found], indent=1))


def _unit_links(folder: Path) -> Links:
    """From explanations to the pages of units, where report has written them."""

    def link(layer: str, unit: int) -> str | None:
        place = Path("report") / "units" / file_stem(layer) / f"{unit}.html"
        return f"../{place.as_posix()}" if (folder / place).is_file() else None

    return link


def expanded(subject: Subject, source: str) -> list[str]:
    """A folder as the images in it that decode, at any depth."""
    if not Path(source).is_dir():
        return [source]
    found = sorted(str(p) for p in Path(source).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
    decoding, broken = [], []
    for path in found:
        try:
            subject.image(path)
            decoding.append(path)
        except InputError:
            broken.append(path)
    if broken and not decoding:
        raise InputError(f"no image of the folder {source} decodes, such as {broken[0]}; replace them")
    if not decoding:
        raise InputError(f"the folder {source} holds no image; they end in {', '.join(IMG_EXTENSIONS)}")
    if broken:
        print(f"left out {len(broken)} images that do not decode: {', '.join(broken[:5])}", file=sys.stderr)
    return decoding


def first_images(subject: Subject, split: str, count: int) -> list[str]:
    """The first images of a split that decode, as ``SPLIT:INDEX``."""
    images = IndexedImages(subject.probe(split), subject.transform)
    decoding = (index for index in range(len(images)) if images[index][1] is not None)
    return [f"{split}:{index}" for index in islice(decoding, count)]


def explained(evidence: Evidence, sources: Iterable[str]) -> Iterator[Explanation]:
    """Explain images one by one, by the names of their files; their units carry numbers yet."""
    for source in sources:
        found = evidence.explain(evidence.subject.image(source), Path(source).name)
        found.truth = true_class(evidence, source)
        yield found


def true_class(evidence: Evidence, source: str) -> str | None:
    """Name of the class of ``SPLIT:INDEX`` of a run's data; None of a file."""
    split, _, index = source.rpartition(":")
    if evidence.subject.run is None or Path(source).exists() or not index.isdigit():
        return None
    target = read_image(evidence.subject.run.data.dataset(split), int(index))[1]
    return evidence.names[target] if 0 <= target < len(evidence.names) else None


def named_units(explanations: Iterable[Explanation]) -> dict[str, list[int]]:
    """Layer -> units that explanations name."""
    found: dict[str, set[int]] = {}
    for explanation in explanations:
        for layer, word in explanation.words():
            found.setdefault(layer, set()).add(word.unit)
    return {layer: sorted(units) for layer, units in found.items()}


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


def _pages(sources: Sequence[str]) -> list[Path]:
    """A page for each image in the folder, named after it; images of the same name are numbered."""
    stems = [
        Path(source).stem if Path(source).exists() else Path(source.replace(":", "-")).name
        for source in sources
    ]
    # One called index would be the gallery's.
    return [_GALLERY.with_name(f"{stem}.html") for stem in numbered(stems, [_GALLERY.stem])]
