"""The colours of position maps: a few pixels that lie over the picture of an input."""

import numpy as np
from PIL import Image

_POSITIVE, _NEGATIVE = (255, 140, 0), (40, 120, 255)  # orange, blue: told apart by the colour-blind too
_SILENT = (0, 0, 0, 0.65)
_FAINTEST, _STRONGEST = 0.25, 0.70  # opacity of a value near 0, and of the map's peak


def tint(values: np.ndarray) -> Image.Image:
    """A unit's map as RGBA, a pixel for each position, to be laid over the picture.

    Orange where it fired with a positive value, blue with a negative one, the deeper the larger against
    the map's own peak; dark where it was silent.

    Args:
        values: (rows, columns), 0 where the unit did not fire.
    """
    values = np.asarray(values, dtype=np.float64)
    peak = np.abs(values).max()
    strength = np.abs(values) / peak if peak else np.zeros_like(values)
    opacity = np.where(values == 0, _SILENT[3], _FAINTEST + (_STRONGEST - _FAINTEST) * strength)
    colour = np.where((values > 0)[..., None], _POSITIVE, _NEGATIVE)
    colour = np.where((values == 0)[..., None], _SILENT[:3], colour)
    pixels = np.concatenate([colour, 255 * opacity[..., None]], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8))
