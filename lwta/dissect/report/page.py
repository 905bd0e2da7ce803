"""The page of one input, and the same as a fragment for notebooks and the app: no script, no request."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import jinja2
from PIL import Image

from lwta.dissect.explanation import Explanation, FiredUnit
from lwta.dissect.report.tint import tint
from lwta.dissect.store import write_whole

_SIDE = 224  # pixels of the shown image
_NAMED = 5  # units named on a card

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("lwta.dissect.report", "."),
    autoescape=True,  # labels and file names are untrusted text
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def changed_most(explanation: Explanation) -> list[FiredUnit]:
    """The units of the last layer explained whose silencing changes the score most, the largest first."""
    return sorted(explanation.layers[-1].measured, key=lambda unit: -abs(unit.silenced or 0))[:_NAMED]


def picture_url(picture: Image.Image) -> str:
    """A picture as a data URL: small ones to the pixel, others as JPEG."""
    return embedded(picture, "png" if _small(picture) else "jpeg")


def _small(picture: Image.Image) -> bool:
    """Shown larger than it is, and so as its pixels are, not blurred into what nobody saw."""
    return picture.width < _SIDE


ENVIRONMENT.tests["small"] = _small
ENVIRONMENT.filters["changed_most"] = changed_most
ENVIRONMENT.filters["embedded"] = picture_url
ENVIRONMENT.filters["place"] = lambda value: f"{value:.2f}%"
ENVIRONMENT.filters["signed"] = lambda value, digits=2: f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
ENVIRONMENT.filters["percent"] = lambda value, digits=2: f"{100 * value:.{digits}f} %"

#: (layer, unit) -> where the page of a unit lies.
Links = Callable[[str, int], str | None]


def render_input(
    explanation: Explanation,
    links: Links = lambda layer, unit: None,
    home: tuple[str, str] | None = None,
) -> str:
    """HTML of one explanation, a page of its own.

    Args:
        explanation: what to show.
        links: to the pages of units, relative to this one.
        home: title and place of the page that leads here.
    """
    return ENVIRONMENT.get_template("input.html.j2").render(_shown(explanation, links), home=home)


def render_explanation(explanation: Explanation) -> str:
    """HTML of one explanation with its style, to stand in a page of somebody else's."""
    return ENVIRONMENT.get_template("fragment.html.j2").render(_shown(explanation, lambda layer, unit: None))


def _shown(explanation: Explanation, links: Links) -> dict[str, object]:
    picture = explanation.picture
    return {
        "e": explanation,
        "links": links,
        "picture": None if picture is None else picture_url(picture),
        "map": lambda values: embedded(tint(values)),
    }


def write_page(path: Path, html: str) -> None:
    """Write a page, whole or not at all."""
    write_whole(path, lambda part: part.write_text(html, encoding="utf-8"))


def enlarged(image: Image.Image) -> Image.Image:
    """An input at the size that pages show; a small one as its pixels are, not blurred."""
    method = Image.Resampling.NEAREST if _small(image) else Image.Resampling.BICUBIC
    return image.resize((_SIDE, _SIDE), method)


def embedded(image: Image.Image, kind: str = "png") -> str:
    """An image as a data URL, so that a page needs no other file; ``jpeg`` where size matters."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=88)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
