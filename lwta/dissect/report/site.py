"""The pages of a labelled network: itself, its units, its classes and single inputs."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from pandas import DataFrame
from PIL import Image

from lwta.dissect.evaluate import TruthScore
from lwta.dissect.portrait import ClassUnits, Histogram
from lwta.dissect.report.index import ExplainedImage


class Exemplar(NamedTuple):
    """An image on which a unit won.

    Attributes:
        image: probe index.
        name: for the reader.
        value: what the readout reads of the unit there.
        map: where it fired, (rows, columns), 0 where it did not; None where its layer has no grid.
    """

    image: int
    name: str
    value: float
    map: np.ndarray | None


class UnitPage(NamedTuple):
    """A unit, to be shown.

    Attributes:
        row: of the label table, None for what is missing.
        top, middle, random: images on which it won hardest, about as hard as it mostly does, and any.
        histogram: of its values where it fired.
        rivals: (unit of its block, share of its wins at which that one came second), the most frequent first.
        pushes: (class, mean contribution to its logit), the largest first.
        nearest: (layer, unit, cosine of their values over the images), the nearest first.
    """

    row: dict[str, Any]
    top: list[Exemplar]
    middle: list[Exemplar]
    random: list[Exemplar]
    histogram: Histogram
    rivals: list[tuple[int, float]]
    pushes: list[tuple[str, float]]
    nearest: list[tuple[str, int, float]]


class LayerPage(NamedTuple):
    """A layer, to be shown.

    Attributes:
        layer: its name.
        units: D.
        competitors: U, None where nothing competes.
        fired_per_position: share of the units that fire at a position read, averaged.
        dead: units that won on no probe image.
        labelled: units that carry a label.
        label_score: mean of the labels' scores, NaN where there are none.
    """

    layer: str
    units: int
    competitors: int | None
    fired_per_position: float
    dead: int
    labelled: int
    label_score: float


class ClassPage(NamedTuple):
    """A class, to be shown.

    Attributes:
        index: its number.
        name: its name.
        images: of it, among those looked at.
        right: of those, rightly predicted.
        layers: (layer, what its units do on them).
    """

    index: int
    name: str
    images: int
    right: int
    layers: list[tuple[str, ClassUnits]]


class Site(NamedTuple):
    """All that the pages show.

    Attributes:
        run: name.
        summary: titles and values.
        score: of the labels, where the truth is known.
        layers: in the network's order.
        table: of the labels (:data:`lwta.dissect.labels.COLUMNS`).
        units: made one by one.
        classes: all that the network tells apart.
        explained: single inputs.
        picture: probe index -> image as the network saw it.
    """

    run: str
    summary: list[tuple[str, str]]
    score: TruthScore | None
    layers: list[LayerPage]
    table: DataFrame
    units: Iterable[UnitPage]
    classes: list[ClassPage]
    explained: list[ExplainedImage]
    picture: Callable[[int], Image.Image]
