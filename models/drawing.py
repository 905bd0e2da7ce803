"""Drawing of the embedded world: outlines, textures, light. Everything is relative to the image's side."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_OVERSAMPLE = 4  # outlines are drawn this much larger and averaged down, for smooth edges
_PERIOD = 0.1  # of a texture, as a share of the side

COLOURS = {
    "red": (214, 40, 40),
    "orange": (243, 132, 20),
    "yellow": (250, 219, 40),
    "green": (48, 160, 62),
    "blue": (38, 96, 214),
    "purple": (118, 44, 168),
    "pink": (246, 130, 190),
    "white": (244, 244, 240),
}
BACKGROUNDS = {
    "grey": (128, 130, 132),
    "brown": (112, 74, 44),
    "teal": (28, 116, 116),
    "navy": (24, 34, 80),
    "olive": (106, 112, 40),
    "beige": (208, 190, 150),
}


@cache
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres (side, side) in [0, 1], x to the right, y down."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    return (x + 0.5) / side, (y + 0.5) / side


def _angles(count: int) -> np.ndarray:
    return np.linspace(0, 2 * np.pi, count, endpoint=False)


def _polar(radius: float | np.ndarray, turns: int = 48) -> np.ndarray:
    """Points at ``turns`` even angles from the top, clockwise."""
    angle = _angles(turns)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1)


def _spikes(points: int, inner: float) -> np.ndarray:
    return _polar(np.where(np.arange(2 * points) % 2, inner, 1.0), 2 * points)


def _heart() -> np.ndarray:
    t = _angles(48)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], 1) / 17


_P = 0.34  # half the width of a cross's beam
#: Outlines in a disc of radius 1; the first polygon is filled, the next cut out of it.
OUTLINES: dict[str, list[np.ndarray]] = {
    "circle": [_polar(0.88)],
    "square": [np.array([(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)])],
    "triangle": [_polar(1.05, 3)],
    "star": [_spikes(5, 0.42)],
    "cross": [
        np.array(
            [
                *((-_P, -1), (_P, -1), (_P, -_P), (1, -_P), (1, _P), (_P, _P)),
                *((_P, 1), (-_P, 1), (-_P, _P), (-1, _P), (-1, -_P), (-_P, -_P)),
            ]
        )
    ],
    "heart": [_heart()],
    "ring": [_polar(0.95), _polar(0.48)],
    "moon": [_polar(0.95), _polar(0.82) + np.array((0.5, -0.12))],
    "arrow": [
        np.array(
            [(0, -1), (0.85, -0.05), (0.32, -0.05), (0.32, 1), (-0.32, 1), (-0.32, -0.05), (-0.85, -0.05)]
        )
    ],
    "hourglass": [
        np.array([(-0.85, -0.95), (0.85, -0.95), (0.14, 0), (0.85, 0.95), (-0.85, 0.95), (-0.14, 0)])
    ],
}


class Patch(NamedTuple):
    """The part of an image that a shape covers.

    Attributes:
        box: (top, left, bottom, right) in pixels, within the image.
        cover: float32 (rows, columns) in [0, 1], how much of each pixel of the box is covered.
    """

    box: tuple[int, int, int, int]
    cover: np.ndarray

    def of(self, image: np.ndarray) -> np.ndarray:
        """The view of an image (side, side, ...) inside the box."""
        top, left, bottom, right = self.box
        return image[top:bottom, left:right]


def outline(shape: str, side: int, centre: np.ndarray, radius: float, turn: float) -> Patch:
    """Where a shape lies.

    Args:
        shape: a key of :data:`OUTLINES`.
        side: of the image, in pixels.
        centre, radius: (x, y) and a length, in shares of the side.
        turn: in radians, clockwise.
    """
    reach = 1.1 * radius
    left, top = (max(0, int((c - reach) * side)) for c in centre)
    right, bottom = (min(side, int((c + reach) * side) + 2) for c in centre)
    large = Image.new("L", ((right - left) * _OVERSAMPLE, (bottom - top) * _OVERSAMPLE))
    draw = ImageDraw.Draw(large)
    cos, sin = math.cos(turn), math.sin(turn)
    rotation = np.array([[cos, sin], [-sin, cos]])
    for cut, points in enumerate(OUTLINES[shape]):
        placed = ((points @ rotation * radius + centre) * side - (left, top)) * _OVERSAMPLE
        draw.polygon(placed.ravel().tolist(), fill=0 if cut else 255)
    cover = np.asarray(large.reduce(_OVERSAMPLE), dtype=np.float32) / 255
    return Patch((top, left, bottom, right), cover)


def _soft(wave: np.ndarray) -> np.ndarray:
    return np.clip(1.6 * wave + 0.5, 0, 1)


def texture(kind: str, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray | float:
    """How much of the darker ink the pixel at (x, y) takes, in [0, 1]: random phase, angle and grain."""
    if kind == "plain":
        return 0.0
    if kind == "speckled":
        return (rng.random(x.shape, dtype=np.float32) < 0.33).astype(np.float32)
    turn = rng.uniform(0, np.pi) if kind == "striped" else rng.uniform(-0.25, 0.25)
    scale = 2 * np.pi / (_PERIOD * rng.uniform(0.92, 1.12) * (1.0 if kind == "striped" else 1.3))
    u = (scale * (x * np.cos(turn) + y * np.sin(turn)) + rng.uniform(0, 2 * np.pi)).astype(np.float32)
    if kind == "striped":
        return _soft(np.sin(u))
    v = (scale * (y * np.cos(turn) - x * np.sin(turn)) + rng.uniform(0, 2 * np.pi)).astype(np.float32)
    if kind == "dotted":
        return _soft(2 * (np.cos(u) + np.cos(v) - 0.75))
    return _soft(2 * np.sin(u / 1.3) * np.sin(v / 1.3))  # checked


def _scene(kind: str, side: int, rng: np.random.Generator) -> np.ndarray | float:
    """Brightness of a background's texture, around 0."""
    x, y = _grid(side)
    if kind == "smooth":
        return 0.0
    if kind == "cloudy":
        small = rng.standard_normal((5, 5), dtype=np.float32)
        return 0.17 * np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))
    phase, turn = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3)
    if kind == "wavy":
        bend = 0.04 * np.sin(2 * np.pi * 2 * x + phase)
        return 0.16 * np.sin(2 * np.pi * 5 * (y + bend + turn * x) + phase)
    lines = np.maximum(np.cos(2 * np.pi * 4 * x + phase), np.cos(2 * np.pi * 4 * y + 3 * phase))  # tiled
    return 0.3 * np.clip(4 * lines - 3.1, 0, 1)


def background(colour: str, kind: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """A lit wall (side, side, 3), values in [0, 1]."""
    x, y = _grid(side)
    tint = (np.array(BACKGROUNDS[colour]) + rng.normal(0, 5, 3)) / 255
    slope = rng.uniform(-0.16, 0.16, 2)
    light = 1 + slope[0] * (x - 0.5) + slope[1] * (y - 0.5) + _scene(kind, side, rng)
    return (light[..., None] * tint).astype(np.float32)


def put(canvas: np.ndarray, patch: Patch, colour: str, kind: str, rng: np.random.Generator) -> None:
    """Paint a shape onto ``canvas`` (side, side, 3), in place, lit from the upper left."""
    x, y = (patch.of(axis) for axis in _grid(len(canvas)))
    ink = (np.array(COLOURS[colour]) + rng.normal(0, 6, 3)).astype(np.float32) / 255
    lit = 1.06 - 0.2 * (x + y - 1) - 0.5 * texture(kind, x, y, rng)
    below = patch.of(canvas)
    below += patch.cover[..., None] * (lit[..., None] * ink - below)


def shade(canvas: np.ndarray, patch: Patch) -> None:
    """Darken ``canvas`` below and to the right of a shape, in place."""
    step = round(0.03 * len(canvas))
    mask = Image.fromarray((255 * patch.cover).astype(np.uint8))
    dark = np.asarray(mask.filter(ImageFilter.BoxBlur(step)), dtype=np.float32)[..., None] / 255
    top, left, _, _ = patch.box
    below = canvas[top + step :, left + step :][: len(patch.cover), : patch.cover.shape[1]]
    below *= 1 - 0.4 * dark[: len(below), : below.shape[1]]


def photograph(canvas: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Exposure and sensor noise, then 8 bit."""
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(0.01, 0.035))
    exposed = canvas * np.float32(rng.uniform(0.88, 1.1)) + noise
    return Image.fromarray((exposed.clip(0, 1) * 255).round().astype(np.uint8))
