"""The page of one input: self-contained HTML, no script, no request."""

import base64
import io

import jinja2
import numpy as np
from PIL import Image

from lwta.dissect.explanation import Explanation

_SIDE = 224  # pixels of the shown image
_MAP = 112  # pixels of a position map

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("lwta.dissect.report", "."),
    autoescape=True,  # labels and file names are untrusted text
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
ENVIRONMENT.filters["signed"] = lambda value, digits=2: f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
ENVIRONMENT.filters["percent"] = lambda value: f"{100 * value:.2f} %"


def render_input(explanation: Explanation, image: Image.Image) -> str:
    """HTML of one explanation.

    Args:
        explanation: what to show.
        image: the input as the network saw it, after resizing and cropping.
    """
    maps = {
        (layer.layer, unit.unit): embedded(position_map(image, np.array(unit.map)))
        for layer in explanation.layers
        for unit in layer.fired
        if unit.map is not None
    }
    shown = embedded(enlarged(image))
    return ENVIRONMENT.get_template("input.html.j2").render(e=explanation, image=shown, maps=maps)


def enlarged(image: Image.Image) -> Image.Image:
    """An input at the size that pages show."""
    return image.resize((_SIDE, _SIDE), _resampling(image, _SIDE))


def position_map(image: Image.Image, values: np.ndarray) -> Image.Image:
    """The image with a unit's value over it, (rows, columns): darkened where it did not fire,
    orange where it fired with a positive value, blue with a negative one, by magnitude."""
    size = (_MAP, _MAP)
    pixels = np.asarray(image.convert("RGB").resize(size, _resampling(image, _MAP)), dtype=np.float32)
    peak = np.abs(values).max()
    strength = Image.fromarray((values / peak if peak else values).astype(np.float32))
    strength = np.asarray(strength.resize(size, Image.Resampling.NEAREST))[..., None]
    tint = np.where(strength > 0, (255.0, 140.0, 0.0), (40.0, 120.0, 255.0))
    amount = 0.25 + 0.45 * np.abs(strength)
    lit = (1 - amount) * pixels + amount * tint
    out = np.where(strength != 0, lit, 0.35 * pixels)
    return Image.fromarray(out.round().clip(0, 255).astype(np.uint8))


def _resampling(image: Image.Image, side: int) -> Image.Resampling:
    # A small image is shown as its pixels are, not blurred into what nobody saw.
    return Image.Resampling.NEAREST if image.width < side else Image.Resampling.BICUBIC


def embedded(image: Image.Image, kind: str = "png") -> str:
    """An image as a data URL, so that a page needs no other file; ``jpeg`` where size matters."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=88)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
