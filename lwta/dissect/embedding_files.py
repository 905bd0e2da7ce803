"""Files that hold embeddings: numpy, safetensors, parquet, and folders as clip-retrieval writes them."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open

from lwta.errors import InputError

What = Literal["image", "text"]

#: Names of arrays and columns, the first wins. clip-retrieval's folders are ``img_emb`` and ``text_emb``.
NAMES: dict[What, tuple[str, ...]] = {
    "image": ("image", "images", "image_embedding", "image_embeddings", "img_embedding", "img_emb"),
    "text": ("text", "texts", "text_embedding", "text_embeddings", "text_emb"),
}
_FOLDERS: dict[What, str] = {"image": "img_emb", "text": "text_emb"}
_EITHER = ("embedding", "embeddings")  # what embedding-reader and autofaiss call the column
_WORDS = ("concept", "concepts", "caption", "text", "word")  # columns that say what a text embedding is of
_MAPPED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}


class Held(NamedTuple):
    """What a file holds, unchecked: vectors (rows, E) of whatever kind, and names of the rows."""

    vectors: np.ndarray
    names: list[str] | None


def open_file(path: Path, what: What, named: bool) -> Held:
    """Open a file or folder; ``named`` refuses an array that does not bear the name of ``what``.

    Raises:
        InputError: nothing there, nothing of that kind in it, or it cannot be read.
    """
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors, ".parquet": _parquet}
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    files = [path] if path.is_file() else _inside(path, what)
    suffix = files[0].suffix.lower()
    if suffix not in readers:
        raise InputError(f"{path} is no file of embeddings; it ends in one of {', '.join(readers)}")
    try:
        found = readers[suffix](files, what, named)
        captions = _sorted((path / "metadata").glob("*.parquet"))
        if captions and files[0].parent == path / _FOLDERS["text"]:
            return found._replace(names=_column(captions, ("caption",)))
        return found
    except InputError:
        raise
    except Exception as error:  # whatever numpy, arrow or safetensors say of a broken file
        reason = shorten(str(error).strip().split("\n")[0], 200, placeholder=" ...")
        raise InputError(f"{path} cannot be read ({reason}); is it whole? write it anew") from error


def _inside(folder: Path, what: What) -> list[Path]:
    part = folder / _FOLDERS[what]
    part = part if part.is_dir() else folder
    kinds = {suffix: _sorted(part.glob(f"*{suffix}")) for suffix in (".npy", ".parquet")}
    held = [files for files in kinds.values() if files]
    if len(held) != 1:
        said = "both .npy and .parquet" if held else "neither .npy nor .parquet"
        raise InputError(f"the folder {part} holds {said} files; it needs {what} embeddings of one kind")
    return held[0]


def _sorted(files: Iterable[Path]) -> list[Path]:
    """By the numbers in their names: 2 before 10, also where nobody padded them with zeros."""
    parts = {file: re.split(r"(\d+)", file.name) for file in files}
    return sorted(parts, key=lambda file: [int(p) if p.isdecimal() else p for p in parts[file]])


def _pick(path: Path, what: What, held: list[str], named: bool) -> str:
    for name in NAMES[what] if named else (*NAMES[what], *_EITHER):
        if name in held:
            return name
    other = NAMES["text" if what == "image" else "image"]
    if len(held) == 1 and held[0] not in other and not named:
        return held[0]
    said = shorten(", ".join(held), 100, placeholder=" ...") or "nothing of the kind"
    raise InputError(f"{path} holds no {what} embeddings, only {said}; call them {what!r}")


def _npy(files: list[Path], what: What, named: bool) -> Held:
    parts = [np.lib.format.open_memmap(file, mode="r") for file in files]
    if len(parts) == 1:
        return Held(parts[0], None)
    for file, part in zip(files, parts, strict=True):
        if part.ndim != 2 or part.shape[1] != parts[0].shape[-1]:
            raise InputError(
                f"{file} is {part.shape} and {files[0].name} {parts[0].shape}; one folder needs one width"
            )
    return Held(np.concatenate(parts), None)


def _npz(files: list[Path], what: What, named: bool) -> Held:
    with np.load(files[0], allow_pickle=False) as arrays:
        vectors = arrays[_pick(files[0], what, [name for name in arrays if name != "concepts"], named)]
        names = arrays["concepts"] if what == "text" and "concepts" in arrays else None
    if names is not None and names.ndim != 1:
        raise InputError(f"in {files[0]}, concepts is {names.shape} and no list; give a name per text")
    return Held(vectors, None if names is None else names.astype(str).tolist())


def _safetensors(files: list[Path], what: What, named: bool) -> Held:
    path = files[0]
    with safe_open(path, framework="pt") as held:  # numpy knows no bfloat16
        name = _pick(path, what, list(held.keys()), named)
        part, said = held.get_slice(name), (held.metadata() or {}).get("concepts")
        kind, shape = part.get_dtype(), tuple(part.get_shape())
        vectors: Any = None if kind in _MAPPED else held.get_tensor(name).float().numpy()
    if vectors is None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            start = json.loads(file.read(length))[name]["data_offsets"][0]
        vectors = np.memmap(path, _MAPPED[kind], "r", 8 + length + start, shape)
    names = json.loads(said) if what == "text" and said else None
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise InputError(f"the metadata 'concepts' of {path} is no JSON list of names; write one")
    return Held(vectors, names)


def _parquet(files: list[Path], what: What, named: bool) -> Held:
    schema = pq.read_schema(files[0])
    name = _pick(files[0], what, [field.name for field in schema if _is_vector(field.type)], named)
    rows, vectors = sum(pq.read_metadata(file).num_rows for file in files), np.empty((0, 0))
    for start, block in _blocks(files, name):
        if not start:
            vectors = np.empty((rows, block.shape[1]), block.dtype)
        if block.shape[1] != vectors.shape[1]:
            raise InputError(
                f"row {start + 1} in {files[0].parent} is {block.shape[1]} wide and row 1 "
                f"{vectors.shape[1]}; all embeddings need one width"
            )
        vectors[start : start + len(block)] = block
    return Held(vectors, _column(files, _WORDS) if what == "text" else None)


def _blocks(files: list[Path], name: str) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of a column of lists, each block with the number of its first row."""
    start = 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(4096, columns=[name]):
            column = batch.column(0)
            lengths = pc.call_function("list_value_length", [column]).fill_null(-1).to_numpy(False)
            odd = np.flatnonzero((lengths < 0) | (lengths != lengths[0]))
            if len(odd):
                said = "nothing" if lengths[odd[0]] < 0 else f"{lengths[odd[0]]} numbers"
                raise InputError(
                    f"row {start + odd[0] + 1} of {name!r} in {file} holds {said}; "
                    "all embeddings need one width"
                )
            yield start, column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), lengths[0])
            start += len(column)


def _is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _column(files: list[Path], names: tuple[str, ...]) -> list[str] | None:
    """The first column of text among ``names``; a missing text is empty."""
    schema = pq.read_schema(files[0])
    for name in names:
        if name in schema.names and schema.field(name).type in (pa.string(), pa.large_string()):
            rows = [pq.read_table(file, columns=[name])[name].to_pylist() for file in files]
            return [row or "" for part in rows for row in part]
    return None
