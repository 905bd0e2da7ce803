"""What the pages of a labelled network show: a survey of its probe images, gathered for the site."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from commands.exemplars import ShownImages, choose, images_of, listed_exemplars, no_longer_there
from commands.options import LabelOptions
from commands.probe import Probe
from commands.subject import Subject
from lwta.dissect.activations import Readout
from lwta.dissect.evaluate import TruthScore
from lwta.dissect.labels import Labels
from lwta.dissect.maps import exemplar_maps
from lwta.dissect.portrait import class_images, class_units, histogram, nearest, pushes
from lwta.dissect.report import ExplainedImage
from lwta.dissect.report.site import ClassPage, Exemplar, LayerPage, Site, UnitPage
from lwta.dissect.survey import Survey, survey
from lwta.errors import InputError
from lwta.layers import Firing, observe
from models.images import UNDECODABLE, IndexedImages, read_image
from models.run import patch_grid

SAMPLE = 2000  # images surveyed, where the probe set has more
_MOST = 5  # rivals, classes and nearest units of a unit
_STEP = 32  # images at a time on a CPU: more would cost memory there and gain nothing
_VALUES = 2**23, 2**27  # of all layers surveyed at once, on a CPU and on a GPU; each costs about 40 bytes


def gather(
    subject: Subject,
    labels: Labels,
    *,
    summary: Sequence[tuple[str, str]] = (),
    score: TruthScore | None = None,
    explained: Sequence[ExplainedImage] = (),
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
        layers=[_layer_page(layer, labels, found) for layer in sites],
        table=labels.table,
        units=_unit_pages(labels, found, shown, maps, classes, partial(_name, probe)),
        classes=[_class_page(k, found, text) for k, text in enumerate(classes)],
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


# --- pages ---------------------------------------------------------------------------------------


def _unit_pages(
    labels: Labels,
    found: Survey,
    shown: Mapping[tuple[str, int], ShownImages],
    maps: Mapping[tuple[str, int, int], np.ndarray],
    classes: Sequence[str],
    name: Callable[[int], str],
) -> Iterator[UnitPage]:
    """The units in the order of the table."""
    near = nearest(found, _MOST)
    pushed = {layer: pushes(found, layer) for layer in found.layers}
    for row in labels.table.to_dict("records"):
        layer, unit = row["layer"], row["unit"]
        done = found.layers[layer]
        kinds = [
            [Exemplar(i, name(i), value, maps.get((layer, unit, i))) for i, value in pairs]
            for pairs in shown[layer, unit]
        ]
        yield UnitPage(
            {str(key): None if pd.isna(value) else value for key, value in row.items()},
            *kinds,
            histogram=histogram(done.values[:, unit], done.won[:, unit]),
            rivals=_rivals(unit, done.competitors, done.rivals),
            pushes=[(classes[k], value) for k, value in _largest(pushed[layer][:, unit])],
            nearest=near[layer][unit],
        )


def _rivals(unit: int, competitors: int | None, rivals: Tensor | None) -> list[tuple[int, float]]:
    if rivals is None or competitors is None:
        return []
    counts = rivals[unit].double()
    first = unit // competitors * competitors
    return [(first + place, share) for place, share in _largest(counts / counts.sum())]


def _largest(values: Tensor) -> list[tuple[int, float]]:
    """Place and value of the largest above 0, the largest first; NaN is none."""
    best = values.nan_to_num(0).topk(min(_MOST, len(values)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(place, value) for place, value in pairs if value > 0]


def _layer_page(layer: str, labels: Labels, found: Survey) -> LayerPage:
    rows, done = labels.table.query("layer == @layer"), found.layers[layer]
    scores = rows.loc[rows["label"].notna(), "score"].tolist()
    return LayerPage(
        layer=layer,
        units=len(rows),
        competitors=done.competitors,
        fired_per_position=float(done.win_rate.mean()),
        dead=rows["alive"].tolist().count(False),
        labelled=len(scores),
        label_score=fmean(scores) if scores else math.nan,
    )


def _class_page(k: int, found: Survey, name: str) -> ClassPage:
    own = class_images(found) == k
    return ClassPage(
        index=k,
        name=name,
        images=int(own.sum()),
        right=int((own & (found.predicted == k)).sum()),
        layers=[(layer, class_units(found, layer, k)) for layer in found.layers],
    )
