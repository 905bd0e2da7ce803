"""The label table and the exemplars beside it: one schema for every labeler, dead units included."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lwta.dissect.store import digest, write_whole
from lwta.errors import InputError

NEXT = 4  # labels kept beside the best

COLUMNS: dict[str, str] = {
    "layer": "string",
    "unit": "int64",
    "block": "Int64",  # missing where units do not compete
    "alive": "bool",  # won on at least one probe image
    "wins": "int64",  # probe images on which it won
    "win_rate": "float64",
    "negative": "bool",  # wins mostly with negative values; the label describes those
    "label": "string",  # missing where the unit has none
    "score": "float64",
    **{
        f"{name}_{n}": kind
        for n in range(2, NEXT + 2)
        for name, kind in (("label", "string"), ("score", "float64"))
    },
    "reason": "string",  # why there is no label
    # Of the label, on images that it was not chosen from, where it was judged (evaluate).
    "held_out_correlation": "float64",
    "held_out_auroc": "float64",
    "held_out_q_value": "float64",  # of chance to be as good, corrected for the number of units
    "labeler": "string",
    "fingerprint": "string",  # of everything the label depends on
}

JUDGED = [name for name in COLUMNS if name.startswith("held_out")]

EXEMPLARS: dict[str, str] = {
    "layer": "string",
    "unit": "int64",
    "rank": "int64",  # 0 is the image on which it won hardest
    "image": "int64",  # probe index
    "name": "string",  # file name, where the probe set has them
    "value": "float64",
    "position": "int64",  # patch or pixel at which it was strongest, counted over those read
}


class Labels(NamedTuple):
    """Labels of units.

    Attributes:
        table: :data:`COLUMNS`, a row for each unit, layer by layer.
        exemplars: :data:`EXEMPLARS`, the images on which each won hardest.
        identity: what the labels were made from (weights, probe images, readout, concepts, ...); of another
            identity they are never shown as these.
        options: how they were asked for, so that more can be asked alike.
        units: layer -> D; where the table has fewer rows, only some units were asked for.
    """

    table: pd.DataFrame
    exemplars: pd.DataFrame
    identity: dict[str, Any]
    options: dict[str, Any]
    units: dict[str, int]

    @property
    def partial(self) -> list[str]:
        """Layers of which not every unit was asked for."""
        rows = self.table["layer"].tolist()
        return [layer for layer, units in self.units.items() if rows.count(layer) < units]

    def judged_as(self, others: "Labels") -> "Labels":
        """These, with what an evaluation found of the same labels in ``others``."""
        keys = ["layer", "unit", "label"]
        table = self.table.drop(columns=[name for name in JUDGED if name in self.table])
        return self._replace(table=table.merge(others.table[[*keys, *JUDGED]], "left", keys).astype(COLUMNS))

    def joined(self, others: "Labels") -> "Labels":
        """These, and what ``others``, made alike, have of other units.

        In the order of these layers where they are all, else the others' first.
        """
        covered = others.units.keys() <= self.units.keys()
        units = self.units if covered else others.units | self.units
        mine = set(zip(self.table["layer"], self.table["unit"], strict=True))
        order = {layer: place for place, layer in enumerate(units)}

        def together(own: pd.DataFrame, other: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
            pairs = zip(other["layer"], other["unit"], strict=True)
            frame = pd.concat([own, other.loc[[pair not in mine for pair in pairs]]])
            frame = frame.assign(place=[order[layer] for layer in frame["layer"]]).sort_values(
                ["place", *keys]
            )
            return frame.drop(columns="place").reset_index(drop=True)

        table = together(self.table, others.table, ["unit"])
        exemplars = together(self.exemplars, others.exemplars, ["unit", "rank"])
        return self._replace(table=table, exemplars=exemplars, units=units)


def write_labels(folder: str | Path, labels: Labels) -> list[Path]:
    """Write ``labels.parquet`` and ``.csv`` and ``exemplars.parquet``, each whole or not at all."""
    folder = Path(folder)
    kept = {"identity": labels.identity, "options": labels.options, "units": labels.units}
    exemplars = pa.Table.from_pandas(
        labels.exemplars.astype(EXEMPLARS)[list(EXEMPLARS)], preserve_index=False
    )
    exemplars = exemplars.replace_schema_metadata({"lwta": digest(labels.identity)})
    table = labels.table.astype(COLUMNS)[list(COLUMNS)]
    parquet = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(
        {"lwta": json.dumps(kept)}
    )
    paths = [folder / name for name in ("exemplars.parquet", "labels.csv", "labels.parquet")]
    writers: list[Callable[[Path], object]] = [
        lambda part: pq.write_table(exemplars, part),
        lambda part: table.to_csv(part, index=False),
        lambda part: pq.write_table(parquet, part),
    ]
    whole = [path.with_name(path.name + ".new") for path in paths]
    try:
        for path, write in zip(whole, writers, strict=True):
            write_whole(path, write)
        for path, place in zip(whole, paths, strict=True):  # only when all are written
            path.replace(place)
    finally:
        for path in whole:
            path.unlink(missing_ok=True)
    return paths


def read_labels(folder: str | Path) -> Labels | None:
    """The labels of a folder, or None where it has none yet.

    Raises:
        InputError: where a file cannot be read, or the two do not belong together.
    """
    path = Path(folder) / "labels.parquet"
    if not path.is_file():
        return None
    try:
        table, exemplars = pq.read_table(path), pq.read_table(path.with_name("exemplars.parquet"))
        kept: Mapping[str, Any] = json.loads((table.schema.metadata or {})[b"lwta"])
        identity, options, units = kept["identity"], kept["options"], kept["units"]
        if (exemplars.schema.metadata or {})[b"lwta"].decode() != digest(identity):
            raise ValueError("exemplars of other labels")
        for name in JUDGED:  # tables of earlier versions lack these
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table), pa.float64()))
        tables = [
            read.select(list(columns)).to_pandas().astype(columns)
            for read, columns in ((table, COLUMNS), (exemplars, EXEMPLARS))
        ]
        return Labels(tables[0], tables[1], identity, options, units)
    except (pa.ArrowInvalid, OSError, KeyError, ValueError, TypeError) as error:
        remedy = "make it anew with dissect.py label"
        raise InputError(f"{path} or its exemplars cannot be read; remove it and {remedy}") from error


def labels_for(folder: str | Path, weights: str, whole: bool = False) -> Labels | None:
    """:func:`read_labels`, refusing labels made from other weights than ``weights``, a hash.

    Args:
        whole: leave out layers of which only some units are labelled, as explain came upon them.
    """
    labels = read_labels(folder)
    if labels is not None and labels.identity.get("weights") != weights:
        raise InputError(
            f"{folder}/labels.parquet was made from other weights than the network's; make it anew "
            f"with dissect.py label --run {folder}, or with the --model it is of"
        )
    if labels is None or not whole or not (partial := labels.partial):
        return labels
    if len(partial) == len(labels.units):
        raise InputError(
            f"only some units of {partial[0]} are labelled, those that explain came upon; label all "
            f"with dissect.py label --run {folder}"
        )
    table, exemplars = (frame[~frame["layer"].isin(partial)] for frame in labels[:2])
    units = {layer: count for layer, count in labels.units.items() if layer not in partial}
    return labels._replace(
        table=table.reset_index(drop=True), exemplars=exemplars.reset_index(drop=True), units=units
    )


def plain(text: str) -> str:
    """A word as it is compared with others, without regard to case and to blanks around it."""
    return text.strip().casefold()


def texts_of(rows: pd.DataFrame) -> list[str | None]:
    """The labels of rows of a label table, None where one is missing."""
    return [None if pd.isna(label) else str(label) for label in rows["label"].tolist()]
