"""What the pages of a run are made from."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from lwta.dissect.evaluation import Evaluation
from lwta.dissect.explanation import Explanation
from lwta.dissect.portrait import ClassUnits, Histogram


class Exemplar(NamedTuple):
    """A probe image on which a unit fired.

    Attributes:
        image: probe index.
        name: for the reader: a file name, or such as ``validate:12``.
        value: what the readout reads of the unit there.
        map: (rows, columns), the unit's value at each patch or pixel, 0 where it did not fire; None where
            the layer has no grid.
    """

    image: int
    name: str
    value: float
    map: np.ndarray | None


class UnitPage(NamedTuple):
    """A unit.

    Attributes:
        row: of the label table (:data:`lwta.dissect.labels.COLUMNS`), missing values None.
        top: exemplars on which it won hardest.
        middle: exemplars around the median of its wins.
        random: exemplars drawn from its wins.
        histogram: of its values where it fired.
        rivals: (unit of its block, share of this unit's wins at which that one was the runner-up).
        pushes: (class name, mean contribution to that class's logit), largest first.
        nearest: (layer, unit, cosine of the values), largest first.
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
    """A layer, as a row of the network page.

    Attributes:
        units: D.
        competitors: U, None where nothing competes.
        readout: what was read of it, cls, mean, max or patches.
        fired_per_position: fraction of the units that fire at a position read.
        dead: units that never won.
        labelled: units that carry a label.
        label_score: mean score of those labels, NaN where there are none.
    """

    layer: str
    units: int
    competitors: int | None
    readout: str
    fired_per_position: float
    dead: int
    labelled: int
    label_score: float


class ClassPage(NamedTuple):
    """A class.

    Attributes:
        index: its place in the logits.
        images: of this class, among those surveyed; predicted as it, where their true class is unknown.
        right: how many of them are predicted as it; None where their true class is unknown.
        layers: (layer, what its units do on those images); taken once, so they need not exist before.
    """

    index: int
    name: str
    images: int
    right: int | None
    layers: Iterable[tuple[str, ClassUnits]]


class Site(NamedTuple):
    """All pages of a run.

    Attributes:
        run: its name.
        summary: titles and values, as ``compare`` prints them.
        score: of its labels, where they were judged.
        layers: in the order of the network.
        table: the label table, all units of all layers.
        units: a page for each row of the table; taken one by one, so they need not exist at once.
        classes: those that have a page.
        explained: images explained singly, labelled.
        picture: probe index to the image as the network saw it.
    """

    run: str
    summary: list[tuple[str, str]]
    score: Evaluation | None
    layers: list[LayerPage]
    table: pd.DataFrame
    units: Iterable[UnitPage]
    classes: list[ClassPage]
    explained: list[Explanation]
    picture: Callable[[int], Image.Image]
