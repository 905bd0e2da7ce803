"""What is expensive to make, kept on disk under a name made of everything it depends on."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwta.errors import InputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_folder(folder: str | Path | None = None) -> Path:
    """The folder asked for, else ``$LWTA_CACHE``, else ``lwta`` in the user's cache folder."""
    if folder or (folder := os.environ.get("LWTA_CACHE")):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lwta"


def digest(identity: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of a hash of plain values.

    >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def room(path: Path) -> Iterator[None]:
    """Turn a disk that is full while ``path`` is written into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InputError(
                f"no room left to write {path}; free some, or name other folders with --out and --cache. "
                "What was computed stays, and the same command goes on from there"
            ) from error
        raise


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    Args:
        write: writes to the path it is given.
    """
    part = path.with_name(path.name + ".part")
    with room(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            try:
                torch.save(dict(state), file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # a full disk, behind what torch says of it
                    raise error.__context__ from None
                raise

    write_whole(path, write)


def load(path: Path) -> dict[str, Any] | None:
    """Read what :func:`save` wrote; None where there is none, or nothing that can be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception:  # a file cut short by a crash of the machine: it is made anew
        return None


class Rows:
    """An array (N, E) on disk of which rows are written in any order, and by several processes.

    Written by plain writes and not through a mapping: on a full disk those say so, where a mapping kills
    the process. Rows never written are zeros.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path, self.shape = path, shape
        self._start: int | None = None

    def prepare(self) -> None:
        """Make the file, where it is not there in this shape."""
        if self.path.is_file() and self._header() == self.shape:
            return

        def write(part: Path) -> None:
            with part.open("wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.truncate(file.tell() + 4 * self.shape[0] * self.shape[1])

        write_whole(self.path, write)

    def _header(self) -> tuple[int, ...] | None:
        try:
            with self.path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape = np.lib.format.read_array_header_1_0(file)[0]
                self._start = file.tell()
            return shape
        except (OSError, ValueError):
            return None

    def write(self, indices: Tensor, values: Tensor) -> None:
        """Put ``values`` (n, E) into the rows ``indices`` (n,)."""
        if self._start is None:
            self._header()
        assert self._start is not None
        runs = (indices.diff() != 1).nonzero()[:, 0] + 1
        with room(self.path), self.path.open("r+b", buffering=0) as file:
            for part, rows in zip(
                indices.tensor_split(runs), values.float().cpu().tensor_split(runs), strict=True
            ):
                file.seek(self._start + 4 * self.shape[1] * int(part[0]))
                data = memoryview(rows.contiguous().numpy().tobytes())
                while data:  # a raw write may take a part
                    data = data[file.write(data) :]
