"""Which images are shown of each unit: those on which it won hardest, some in the middle, and random ones."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from torch import Tensor

from lwta.dissect.labels import Labels
from lwta.dissect.portrait import at_random, middling
from lwta.dissect.survey import Survey
from lwta.errors import InputError

TOP, FEW = 8, 4  # hardest wins; those in the middle, and random ones


class ShownImages(NamedTuple):
    """Exemplars of a unit: (probe index, value) of each."""

    top: list[tuple[int, float]]
    middle: list[tuple[int, float]]
    random: list[tuple[int, float]]


def no_longer_there(layer: str) -> InputError:
    """What is said where an exemplar cannot be shown."""
    return InputError(
        f"an image that units of {layer} were labelled on is no longer there or does not decode; "
        "bring the probe images back or label the run anew"
    )


def listed_exemplars(labels: Labels, count: int) -> pd.DataFrame:
    """The exemplars to show of those written beside the labels, the hardest wins first.

    Args:
        labels: of a probe set.
        count: images that this set has now.

    Raises:
        InputError: where it has become too short.
    """
    rows = labels.exemplars.query("rank < @TOP").sort_values(["layer", "unit", "rank"])
    gone = rows.loc[rows["image"] >= count, "layer"]
    if len(gone):
        raise no_longer_there(gone.iloc[0])
    return rows


def choose(labels: Labels, listed: pd.DataFrame, found: Survey) -> dict[tuple[str, int], ShownImages]:
    """(layer, unit) -> its exemplars: the hardest wins as listed, the others of the images surveyed."""
    top: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for row in listed[["layer", "unit", "image", "value"]].itertuples(index=False, name=None):
        top.setdefault(row[:2], []).append(row[2:])
    shown: dict[tuple[str, int], ShownImages] = {}
    for layer, unit, negative in labels.table[["layer", "unit", "negative"]].itertuples(index=False):
        values, won = (part[:, unit] for part in found.layers[layer][1:3])

        def pairs(rows: Tensor, values: Tensor = values) -> list[tuple[int, float]]:
            return list(zip(found.images[rows].tolist(), values[rows].tolist(), strict=True))

        middle, random = middling(values, won, FEW, negative), at_random(won, FEW, seed=unit)
        shown[layer, unit] = ShownImages(top.get((layer, unit), []), pairs(middle), pairs(random))
    return shown


def images_of(shown: Mapping[tuple[str, int], ShownImages]) -> dict[str, dict[int, list[int]]]:
    """Layer -> probe index -> units of which the image is an exemplar."""
    wanted: dict[str, dict[int, list[int]]] = {}
    for (layer, unit), kinds in shown.items():
        asked = wanted.setdefault(layer, {})
        for image in {image for pairs in kinds for image, _ in pairs}:
            asked.setdefault(image, []).append(unit)
    return wanted
