"""What is shown of units, layers and classes, from a survey and the label table."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np
import pandas as pd
from torch import Tensor

from commands.exemplars import ShownImages
from lwta.dissect.labels import Labels
from lwta.dissect.portrait import class_images, class_units, histogram, nearest, pushes
from lwta.dissect.report.site import ClassPage, Exemplar, LayerPage, UnitPage
from lwta.dissect.survey import Survey

_MOST = 5  # rivals, classes and nearest units of a unit


def unit_pages(
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
    best = values.nan_to_num(0).sort(descending=True, stable=True)
    pairs = zip(best.indices[:_MOST].tolist(), best.values[:_MOST].tolist(), strict=True)
    return [(place, value) for place, value in pairs if value > 0]


def layer_page(layer: str, labels: Labels, found: Survey) -> LayerPage:
    """A layer, by its rows of the table and at the positions surveyed."""
    rows, done = labels.table.query("layer == @layer"), found.layers[layer]
    scores = rows.loc[rows["label"].notna(), "score"].tolist()
    return LayerPage(
        layer=layer,
        units=len(rows),
        competitors=done.competitors,
        readout=labels.identity["readout"],
        fired_per_position=float(done.win_rate.mean()),
        dead=rows["alive"].tolist().count(False),
        labelled=len(scores),
        label_score=fmean(scores) if scores else math.nan,
    )


def class_pages(found: Survey, names: Sequence[str]) -> list[ClassPage]:
    """The classes by the images surveyed; what units do on them is counted when it is asked for."""
    fired_on = {name: layer.won.sum(0) for name, layer in found.layers.items()}
    return [_class_page(k, found, name, fired_on) for k, name in enumerate(names)]


def _class_page(k: int, found: Survey, name: str, fired_on: Mapping[str, Tensor]) -> ClassPage:
    own = class_images(found) == k
    known = bool((found.targets >= 0).any())
    return ClassPage(
        index=k,
        name=name,
        images=int(own.sum()),
        right=int((own & (found.predicted == k)).sum()) if known else None,
        layers=((layer, class_units(found, layer, k, fired_on[layer])) for layer in found.layers),
    )
