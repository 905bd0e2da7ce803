"""Labelers: each takes what units did on a probe set and returns rows of the one label table."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from torch import Tensor

from lwta.dissect.labels import COLUMNS, EXEMPLARS
from lwta.dissect.presence import Presence
from lwta.dissect.record import Exemplars
from lwta.dissect.stream import ImageNames

_KEPT = 20  # exemplars written beside the labels of a unit


class LayerData(NamedTuple):
    """What a labeler is told of a layer.

    Attributes:
        layer: its name.
        exemplars: of every unit.
        evidence: the same, numbered as the rows of ``presence``: images, or crops of them.
        constant: bool (D,), units of the same value on every image.
        presence: of the concepts in what evidence and values number.
        competitors: U, None where the units do not compete.
        values: (N, D), what was read of every image, mapped and not loaded; None where not kept.
        seen: int64, the images that decode, those of which values and presence mean something.
        key: hash of everything above.
    """

    layer: str
    exemplars: Exemplars
    evidence: Exemplars
    constant: Tensor
    presence: Presence
    competitors: int | None
    values: np.ndarray | None
    seen: Tensor
    key: str


class Labeler(Protocol):
    """Finds words for units.

    Attributes:
        name: as the label table shows it.
    """

    name: str

    def label(self, data: LayerData, units: Sequence[int] | None = None) -> pd.DataFrame:
        """Rows of the label table for the units asked for, all where not given.

        Those of one call with all units and of several calls with some are the same.
        """
        ...


def unit_rows(data: LayerData, units: Sequence[int]) -> pd.DataFrame:
    """Rows of the label table with what is known of units without any labeler; the rest is missing."""
    e = data.exemplars
    index = list(units)
    wins = e.wins[index].tolist()
    rows = {
        "layer": data.layer,
        "unit": index,
        "block": [None if data.competitors is None else unit // data.competitors for unit in index],
        "alive": [n > 0 for n in wins],
        "wins": wins,
        "win_rate": [n / e.count for n in wins],
        "negative": e.negative[index].tolist(),
    }
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def exemplar_rows(data: LayerData, units: Sequence[int], names: ImageNames) -> pd.DataFrame:
    """Rows of the exemplar table for units; ``names`` of the probe images."""
    e = data.exemplars
    assert e.positions is not None
    rows = [
        (
            data.layer,
            unit,
            rank,
            int(e.images[rank, unit]),
            float(e.values[rank, unit]),
            int(e.positions[rank, unit]),
        )
        for unit in units
        for rank in range(min(_KEPT, len(e.images)))
        if e.images[rank, unit] >= 0
    ]
    table = pd.DataFrame(rows, columns=["layer", "unit", "rank", "image", "value", "position"])
    table["name"] = [names[i] for i in table["image"].tolist()]
    return table.reindex(columns=list(EXEMPLARS)).astype(EXEMPLARS)
