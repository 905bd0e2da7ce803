"""What the pages of a labelled network show: a survey of its probe images, gathered for the site."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from commands.exemplars import choose, images_of, listed_exemplars, no_longer_there
from commands.options import LabelOptions
from commands.pages import class_pages, layer_page, unit_pages
from commands.probe import Probe
from commands.subject import Subject
from lwta.dissect.activations import Readout
from lwta.dissect.evaluation import Evaluation
from lwta.dissect.explanation import Explanation
from lwta.dissect.labels import Labels
from lwta.dissect.maps import exemplar_maps
from lwta.dissect.report.site import Site
from lwta.dissect.survey import survey
from lwta.errors import InputError
from lwta.layers import Firing, observe
from models.images import UNDECODABLE, IndexedImages, read_image
from models.run import patch_grid

SAMPLE = 2000  # images surveyed, where the probe set has more
_STEP = 32  # images at a time on a CPU: more would cost memory there and gain nothing
_VALUES = 2**23, 2**27  # of all layers surveyed at once, on a CPU and on a GPU; each costs about 40 bytes


def gather(
    subject: Subject,
    labels: Labels,
    *,
    summary: Sequence[tuple[str, str]] = (),
    score: Evaluation | None = None,
    explained: Sequence[Explanation] = (),
    sample: int = SAMPLE,
    batch_size: int = 128,
    num_workers: int = 0,
) -> Site:
    """Survey the layers of a labelled network and gather what the pages of its units and classes show.

    Two passes: one forward and back over an evenly spaced sample of the images that the labels were made
    from, and one forward over the exemplars.

    Args:
        subject: the network.
        labels: of all units of some layers.
        summary, score, explained: handed on.
        sample: images surveyed at most.
        batch_size: images per pass.
        num_workers: loader processes.

    Raises:
        InputError: an exemplar is no longer there or does not decode, or no image does.
    """
    probe = Probe(subject, LabelOptions(**labels.options))
    images = IndexedImages(probe.data, subject.transform)
    sites = subject.layers(list(labels.units))
    readout = subject.readout(labels.identity["readout"])
    most = min(batch_size, _STEP) if subject.device.type == "cpu" else batch_size
    load = partial(_load, images, num_workers)
    listed = listed_exemplars(labels, len(images))
    count = min(sample, len(images))
    spaced = [place * len(images) // count for place in range(count)]
    batches = load("survey", spaced, surveyed_at_once(subject, sites, most))
    # Elsewhere than in a run's own data a class is not one of the network's.
    known = ((i, x, k if probe.own else k.new_full(k.shape, -1)) for i, x, k in batches)
    found = survey(subject.model, known, sites, readout)
    shown = choose(labels, listed, found)
    maps = _maps(subject, partial(load, batch_size=most), sites, readout, images_of(shown))
    classes = subject.class_names or [str(k) for k in range(found.classes)]
    return Site(
        run=subject.name,
        summary=list(summary),
        score=score,
        layers=[layer_page(layer, labels, found) for layer in sites],
        table=labels.table,
        units=unit_pages(labels, found, shown, maps, classes, partial(_name, probe)),
        classes=class_pages(found, classes),
        explained=list(explained),
        picture=partial(_picture, subject, probe),
    )


# --- images --------------------------------------------------------------------------------------


def surveyed_at_once(subject: Subject, sites: Mapping[str, int], most: int) -> int:
    """Images of a batch, at most ``most``: a pass back keeps what all layers do on all of them."""
    values = 0

    def count(name: str, firing: Firing) -> None:
        nonlocal values
        values += firing.values[0].numel()

    with torch.no_grad(), observe(subject.model.eval(), sites, count):
        subject.model(torch.zeros(1, 3, *subject.image_size, device=subject.device))
    return max(1, min(most, _VALUES[subject.device.type != "cpu"] // values))


def _load(
    images: IndexedImages, num_workers: int, title: str, indices: Sequence[int], batch_size: int
) -> Iterator[Any]:
    """Batches (indices, images, classes) of some of the images."""
    loader = DataLoader(
        Subset(images, indices),
        batch_size,
        num_workers=num_workers,
        collate_fn=images.collate_indexed,
    )
    yield from tqdm(loader, title, disable=None)


def _maps(
    subject: Subject,
    load: Callable[[str, Sequence[int]], Iterable[Any]],
    sites: Mapping[str, int],
    readout: Readout,
    wanted: Mapping[str, Mapping[int, Sequence[int]]],
) -> dict[tuple[str, int, int], np.ndarray]:
    """Maps of exemplars (:func:`lwta.dissect.maps.exemplar_maps`), all of which must decode."""
    seen: set[int] = set()

    def batches() -> Iterator[Any]:
        for batch in load("maps", sorted({image for asked in wanted.values() for image in asked})):
            seen.update(batch[0].tolist())
            yield batch

    def grid(patches: int) -> tuple[int, int] | None:
        return patch_grid(subject.model, patches, subject.image_size)

    maps = exemplar_maps(subject.model, batches(), sites, readout, grid, wanted)
    for layer, asked in wanted.items():
        if not asked.keys() <= seen:
            raise no_longer_there(layer)
    return maps


def _name(probe: Probe, index: int) -> str:
    return probe.names[index] or f"{probe.name}:{index}"


def _picture(subject: Subject, probe: Probe, index: int) -> Image.Image:
    """An image as the network saw it."""
    try:
        pixels = subject.transform(read_image(probe.data, index)[0])
    except UNDECODABLE as error:  # it did decode when it was surveyed
        raise InputError(f"the image {_name(probe, index)} no longer decodes; bring it back") from error
    return to_pil_image(subject.denormalise(pixels))
