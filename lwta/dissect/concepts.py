"""Concepts: words to look for with an encoder, or a matrix of how much of each each probe image shows."""

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lwta.errors import InputError

if TYPE_CHECKING:
    from lwta.dissect.encoder import Encoder  # open_clip takes a second to import


class Concepts(NamedTuple):
    """Concept names and the matrix P (N, K), float32: presence in [0, 1] or a cosine in [-1, 1]."""

    names: list[str]
    presence: Tensor


class ConceptSource(NamedTuple):
    """Where the concepts of a probe set come from: an encoder, a matrix, or else the images' classes.

    Attributes:
        names: K concepts.
        identity: what the labels made from it depend on.
        encoder: looks for the words in images.
        texts: embeddings (K, E) of the words.
        matrix: (N, K), from file.
    """

    names: list[str]
    identity: dict[str, str]
    encoder: "Encoder | None" = None
    texts: Tensor | None = None
    matrix: Tensor | None = None

    def concepts(self, seen: Tensor | None, classes: Tensor) -> Concepts:
        """The concept matrix of a probe set, from its images' embeddings (N, E) or classes (N,)."""
        if self.matrix is not None:
            return Concepts(self.names, self.matrix)
        if self.texts is not None and seen is not None:
            return Concepts(self.names, seen @ self.texts.T)
        return Concepts(self.names, (classes[:, None] == torch.arange(len(self.names))).float())


def words_source(names: list[str], encoder: "Encoder", templates: Sequence[str]) -> ConceptSource:
    """Concepts that an encoder looks for, each as the mean of its prompts."""
    identity = {
        "concepts": _digest(names),
        "clip": encoder.identity(),
        "templates": " | ".join(templates),
    }
    return ConceptSource(names, identity, encoder, encoder.texts(names, templates))


def classes_source(names: list[str]) -> ConceptSource:
    """The classes of the probe images as concepts, present or not."""
    return ConceptSource(names, {"concepts": f"classes {_digest(names)}"})


def file_source(path: str | Path, images: int) -> ConceptSource:
    """The matrix of :func:`read_concepts`."""
    names, matrix = read_concepts(path, images)
    return ConceptSource(names, {"concepts": _digest(names, matrix.numpy().tobytes())}, matrix=matrix)


def _digest(names: list[str], content: bytes = b"") -> str:
    return hashlib.sha256("\n".join(names).encode() + content).hexdigest()[:16]


def read_concepts(path: str | Path, images: int) -> Concepts:
    """Read a concept matrix for a probe set of ``images`` images.

    ``.csv`` and ``.parquet``: an N x K table, a column per concept, a row per probe image in order.
    ``.npz``: arrays ``image`` (N, E), ``text`` (K, E) and ``concepts`` (K,), embeddings of a
    CLIP-like model; the matrix is their cosine.

    Raises:
        InputError: another suffix, a file that cannot be read, blank or duplicate concepts, missing
            values, or a number of rows that is not ``images``.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no concept file {path}")
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".npz": _read_embeddings}
    if path.suffix not in readers:
        raise InputError(f"{path} is not a concept file; it ends in one of {', '.join(readers)}")
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


def read_words(path: str | Path) -> list[str]:
    """Read a concept list, a concept per line of a ``.txt`` file.

    Raises:
        InputError: no such file, not text, blank or duplicate concepts.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no concept list {path}")
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"concept list {path} is not text in UTF-8; save it as such") from error
    _check_names(path, names)
    return [name.strip() for name in names]


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


def _read_embeddings(path: Path) -> tuple[list[str], np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        missing = {"image", "text", "concepts"} - set(arrays)
        if missing:
            raise InputError(
                f"{path} lacks the array {sorted(missing)[0]!r}; it needs image, text and concepts"
            )
        image, text = (arrays[name].astype(np.float64) for name in ("image", "text"))
        names = arrays["concepts"].astype(str).tolist()
    flat = image.ndim == text.ndim == 2 and np.ndim(names) == 1
    if not flat or len(names) != len(text) or image.shape[1] != text.shape[1]:
        raise InputError(
            f"in {path}, image {image.shape}, text {text.shape} and {len(names)} concepts do not fit together"
        )
    for what, rows in (("image", image), ("text", text)):
        if not np.linalg.norm(rows, axis=1).all():
            raise InputError(f"in {path}, an {what} embedding is all zeros; it has no direction to compare")
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text)]
    return names, unit[0] @ unit[1].T
