"""The label table: one schema for every labeler, dead units included."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lwta.errors import InputError

COLUMNS = {
    "layer": "string",
    "unit": "int64",
    "text": "string",  # missing where the unit has no label
    "score": "float64",
    "runner_up": "string",
    "runner_up_score": "float64",
    "alive": "bool",  # won on at least one probe image
    "wins": "int64",  # probe images on which it won
    "win_rate": "float64",
    "negative": "bool",  # wins mostly with negative values; the label describes those
    "reason": "string",  # why there is no label
    "exemplars": "object",  # probe indices of the images on which it won hardest, at most nine
}


def write_labels(folder: str | Path, labels: pd.DataFrame, identity: dict[str, Any]) -> list[Path]:
    """Write ``labels.parquet`` and ``labels.csv`` into a run folder, whole or not at all.

    Args:
        identity: what the labels were made from (weights, probe set, readout, concepts); kept in the
            parquet file, so that labels are never shown beside other weights.
    """
    # Plain lists, also of rows read before: the CSV would write numpy's in another way.
    labels = labels.assign(exemplars=labels["exemplars"].map(lambda row: [int(i) for i in row]))
    table = pa.Table.from_pandas(labels.astype(COLUMNS)[list(COLUMNS)], preserve_index=False)
    lists = pa.array(labels["exemplars"].tolist(), pa.list_(pa.int64()))  # also where all are empty
    table = table.set_column(table.schema.get_field_index("exemplars"), "exemplars", lists)
    table = table.replace_schema_metadata({"lwta": json.dumps(identity)})
    paths = [Path(folder) / "labels.parquet", Path(folder) / "labels.csv"]
    parts = [path.with_suffix(path.suffix + ".part") for path in paths]
    pq.write_table(table, parts[0])
    labels.to_csv(parts[1], index=False)
    for part, path in zip(parts, paths, strict=True):
        part.replace(path)
    return paths


def read_labels(folder: str | Path) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """The labels of a run and their identity, or None where it has none yet.

    Raises:
        InputError: where the file cannot be read.
    """
    path = Path(folder) / "labels.parquet"
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        identity = json.loads((table.schema.metadata or {})[b"lwta"])
        return table.select(list(COLUMNS)).to_pandas(), identity
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        remedy = f"make it anew with dissect.py label --run {folder}"
        raise InputError(f"{path} cannot be read; remove it and {remedy}") from error


def labels_for(folder: str | Path, weights: str) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """:func:`read_labels`, refusing labels made from other weights than ``weights``, a hash."""
    labels = read_labels(folder)
    if labels is not None and labels[1].get("weights") != weights:
        raise InputError(
            f"{folder}/labels.parquet was made from other weights than the run's checkpoint; make it anew "
            f"with dissect.py label --run {folder}"
        )
    return labels
