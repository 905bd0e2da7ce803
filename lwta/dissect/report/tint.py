"""A position map as a few pixels of tint, to be laid over the picture."""

import numpy as np
from PIL import Image

_POSITIVE, _NEGATIVE, _SILENT = (255, 140, 0), (40, 120, 255), (0, 0, 0)


def tint(values: np.ndarray) -> Image.Image:
    """One pixel for each position: orange where the unit fired with a positive value, blue with a negative
    one, the stronger the denser; dark where it was silent.

    Args:
        values: (rows, columns), 0 where silent.

    Returns:
        RGBA image of that size.
    """
    peak = np.abs(values).max()
    strength = np.abs(values / peak if peak else values)
    colour = np.where(
        (values == 0)[..., None], _SILENT, np.where((values > 0)[..., None], _POSITIVE, _NEGATIVE)
    )
    opacity = np.where(values == 0, 0.65, 0.25 + 0.45 * strength)
    pixels = np.concatenate([colour, 255 * opacity[..., None]], -1)
    return Image.fromarray(pixels.round().astype(np.uint8), "RGBA")
