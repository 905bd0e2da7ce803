"""The page of one class: which units fire for it, which drive it, and the same of its errors."""

from typing import NamedTuple

from torch import Tensor

from lwta.dissect.portrait import ClassUnits
from lwta.dissect.report.contents import ClassPage
from lwta.dissect.report.page import ENVIRONMENT
from lwta.dissect.report.references import Reference, References

MOST = 10  # units of a list


class LayerUnits(NamedTuple):
    """Of a layer, the units that tell most about a class.

    Attributes:
        fires: (unit, share of the class's images on which it fires, share of the others).
        drives: (unit, mean contribution).
        error_fires: (unit, share of its errors on which it fires, share of all the class's images).
        error_drives: (unit, mean contribution to the wrong class's logit minus the true one's).
    """

    layer: str
    fires: list[tuple[Reference, float, float]]
    drives: list[tuple[Reference, float]]
    error_fires: list[tuple[Reference, float, float]]
    error_drives: list[tuple[Reference, float]]


def render_class(page: ClassPage, run: str, references: References, around: list[ClassPage | None]) -> str:
    """HTML of a class, to be written to its place below the site's folder.

    Args:
        page: the class.
        run: name of the run.
        references: names and pages of units and classes.
        around: the classes before and after, None where there is none.
    """
    layers = list(page.layers)
    errors = layers[0][1].errors if layers else 0
    mistaken = layers[0][1].error_classes if layers else []
    return ENVIRONMENT.get_template("class.html.j2").render(
        run=run,
        root="../",
        page=page,
        errors=errors,
        mistaken=[(*references.class_name(index), count) for index, count in mistaken],
        layers=[_layer(layer, units, references) for layer, units in reversed(layers)],  # last first
        before=around[0],
        after=around[1],
    )


def _layer(layer: str, units: ClassUnits, references: References) -> LayerUnits:
    def shares(here: Tensor, there: Tensor) -> list[tuple[Reference, float, float]]:
        return [(references.unit(layer, k), float(here[k]), float(there[k])) for k in most(here - there)]

    def means(contributions: Tensor) -> list[tuple[Reference, float]]:
        return [(references.unit(layer, k), float(contributions[k])) for k in most(contributions)]

    return LayerUnits(
        layer=layer,
        fires=shares(units.fires, units.elsewhere),
        drives=means(units.drives),
        error_fires=shares(units.error_fires, units.fires),
        error_drives=means(units.error_drives),
    )


def most(scores: Tensor) -> list[int]:
    """The units of the largest scores above 0, at most :data:`MOST`, largest first; NaN is none."""
    scores = scores.nan_to_num(0)
    order = scores.argsort(descending=True, stable=True)[:MOST]
    return [int(k) for k in order if scores[k] > 0]
