"""The page of a run: what it scores, what its units mean, and explanations of single images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from PIL import Image, ImageOps

from lwta.dissect.evaluate import TruthScore
from lwta.dissect.explanation import Explanation
from lwta.dissect.report.page import ENVIRONMENT, embedded

_TILE = 72  # pixels of an exemplar
_UNITS = 5  # named beside an explained image


class LayerUnits(NamedTuple):
    """Units of a layer, to be shown.

    Attributes:
        layer: its name.
        units: D.
        labelled: how many carry a label.
        rows: of the label table, those shown.
        strips: the exemplars of each as one image (:func:`strip`).
    """

    layer: str
    units: int
    labelled: int
    rows: list[dict[str, Any]]
    strips: list[Image.Image]


class ExplainedImage(NamedTuple):
    """An explanation, and its page relative to the run folder."""

    explanation: Explanation
    page: Path


def strip(images: Sequence[Image.Image]) -> Image.Image:
    """Images side by side in one row, each cropped to a square."""
    row = Image.new("RGB", (_TILE * max(1, len(images)), _TILE))
    for place, image in enumerate(images):
        small = image.width < _TILE
        method = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
        row.paste(ImageOps.fit(image, (_TILE, _TILE), method), (place * _TILE, 0))
    return row


def render_report(
    run: str,
    summary: Sequence[tuple[str, str]],
    score: TruthScore | None,
    layers: Sequence[LayerUnits],
    explained: Sequence[ExplainedImage],
) -> str:
    """HTML of a run, to be written to ``report/index.html`` in its folder.

    Args:
        run: its name.
        summary: titles and values, as ``compare`` prints them.
        score: of its labels, where the truth is known.
        layers: units to show.
        explained: images to show, each linked to its page.
    """
    return ENVIRONMENT.get_template("index.html.j2").render(
        run=run,
        summary=summary,
        score=score,
        layers=[
            (
                layer,
                [(row, embedded(tiles, "jpeg")) for row, tiles in zip(layer.rows, layer.strips, strict=True)],
            )
            for layer in layers
        ],
        explained=[
            (e.explanation, embedded(e.explanation.picture), f"../{quote(e.page.as_posix())}", _fired(e))
            for e in explained
        ],
    )


def _fired(explained: ExplainedImage) -> list[Any]:
    """The units that changed most in the last layer explained."""
    fired = explained.explanation.layers[-1].fired  # by contribution
    return sorted(fired, key=lambda unit: -abs(unit.silenced or 0))[:_UNITS]
