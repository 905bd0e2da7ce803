"""Concepts: words to look for with an encoder, or how much of each each probe image shows, from file."""

import csv
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lwta.dissect.embeddings import check_match, read_embeddings
from lwta.errors import InputError

PAIRS = (".npz", ".safetensors")  # of what read_pair() reads


class Concepts(NamedTuple):
    """Concept names and the matrix P (N, K), float32: presence in [0, 1] or a cosine in [-1, 1]."""

    names: list[str]
    presence: Tensor


def read_concepts(path: str | Path, images: int) -> Concepts:
    """Read a table of measured concepts for a probe set of ``images`` images: a column per concept, a row
    per probe image in order.

    Args:
        path: ``.csv`` or ``.parquet``.
        images: N.

    Raises:
        InputError: another suffix, a file that cannot be read, blank or duplicate concepts, missing
            values, or a number of rows that is not ``images``.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no concept file {path}")
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise InputError(
            f"{path} is not a table of concepts; it ends in one of {', '.join(readers)}, "
            f"or, with embeddings, in one of {', '.join(PAIRS)}"
        )
    try:
        names, matrix = readers[path.suffix](path)
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"concept file {path} cannot be read ({reason})") from error
    _check_names(path, names)
    if len(matrix) != images:
        raise InputError(
            f"{path} has {len(matrix)} rows and the probe set {images} images; "
            "it needs one row per image, in order"
        )
    matrix = matrix.astype(np.float32)
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise InputError(f"{path} has no number in row {row + 1} of concept {names[column]!r}; fill it in")
    return Concepts(names, torch.from_numpy(np.ascontiguousarray(matrix)))


class Pair(NamedTuple):
    """Embeddings of images (N, E) and of concepts (K, E), unnormalised, memory-mapped from safetensors."""

    names: list[str]
    images: np.ndarray
    texts: np.ndarray


def read_pair(path: str | Path) -> Pair:
    """Read the embeddings of probe images and of concepts, with the concepts' names, from one file.

    The cosines are :class:`lwta.dissect.presence.Cosines`.

    Args:
        path: ``.npz`` with the arrays ``image`` (N, E), ``text`` (K, E) and ``concepts`` (K,), or
            ``.safetensors`` with the first two and the names as JSON list ``concepts`` in the metadata.

    Raises:
        InputError: another suffix, a part that lacks or does not fit, blank or duplicate concepts, or
            anything that :func:`lwta.dissect.embeddings.read_embeddings` refuses.
    """
    path = Path(path)
    if path.suffix not in PAIRS:
        raise InputError(f"{path} is no pair of embeddings; it ends in one of {', '.join(PAIRS)}")
    images = read_embeddings(path, "image", named=True).vectors
    texts, names = read_embeddings(path, "text", named=True)
    if names is None:
        raise InputError(f"{path} has no 'concepts'; they name its {len(texts)} text embeddings")
    check_match(images, texts)
    _check_names(path, names)
    return Pair([name.strip() for name in names], images, texts)


def _check_names(path: Path, names: list[str]) -> None:
    blank = [i + 1 for i, name in enumerate(names) if not name.strip()]
    if blank:
        raise InputError(f"concept {blank[0]} of {path} is blank; name it or remove it")
    repeated = [name for name, count in Counter(name.strip() for name in names).items() if count > 1]
    if repeated:
        raise InputError(f"{path} names the concept {repeated[0]!r} twice; keep one")
    if len(names) < 2:
        raise InputError(f"{path} holds {len(names)} concepts; labels need at least two to choose from")


def _read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    # utf-8-sig: spreadsheets put a mark before the first name. pandas would rename duplicates.
    with path.open(newline="", encoding="utf-8-sig") as file:
        names = next(csv.reader(file), [])
    table = pd.read_csv(path, header=None, skiprows=1)
    if len(table.columns) != len(names):
        raise InputError(f"{path} names {len(names)} concepts and has {len(table.columns)} columns")
    return names, table.to_numpy(dtype=np.float64)


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    file = pq.ParquetFile(path)
    names = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]
    _check_names(path, names)
    table = file.read(names).to_pandas()
    for name, kind in table.dtypes.items():
        if kind.kind not in "biuf":
            raise InputError(f"concept {name!r} of {path} is not a column of numbers; remove it")
    return names, table.to_numpy(dtype=np.float64)
