"""What a probe set is: its classes, a part of it, and a hash that tells it from any other."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow.compute import call_function
from timm.data.readers.reader_hfds import ReaderHfds
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import Dataset

from models.data import dataset_classes
from models.images import UNDECODABLE, image_name, read_image
from models.shapes import Shapes

_DECODED = 32  # images whose pixels enter the identity


class Slice(Dataset):
    """Consecutive images of a dataset, numbered anew.

    Attributes:
        data: the dataset.
        indices: of its images in ``data``.
        reader: hands out the slice's images undecoded where the dataset has such a reader, else None.
        classes: names, None where there are none.
    """

    def __init__(self, data: Dataset, indices: range) -> None:
        self.data, self.indices = data, indices
        reader = getattr(data, "reader", None)
        self.reader = None if reader is None else Slice(reader, indices)
        self.classes = probe_classes(data)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.data[self.indices[index]]

    def filename(self, index: int) -> str:
        """File name of an image, its number in the whole dataset where it has none."""
        return image_name(self.data, self.indices[index])


def probe_classes(data: Dataset) -> list[str] | None:
    """Class names of a probe set, None where it has none, such as a folder without folders."""
    names = dataset_classes(data)
    if names is None or names == [""]:
        return None
    top = Path(getattr(getattr(data, "reader", None), "root", None) or "").resolve().name
    return [name or top for name in names]  # images beside the folders of others are of the top folder


def probe_identity(data: Dataset) -> str:
    """Hash that changes when the images do, and not with the place where they lie.

    It covers their number, names and classes; of files their size and time of change, of images in a table or
    tar their size; and the decoded pixels of up to 32 images, spread evenly, or of all images of a dataset
    that is none of these.

    Args:
        data: from :func:`open_probe`.
    """
    data, indices = (data.data, data.indices) if isinstance(data, Slice) else (data, range(len(data)))  # type: ignore[arg-type]
    digest = hashlib.sha256(f"{len(indices)} {dataset_classes(data)}\n".encode())
    decoded = len(indices)
    for line in _listing(data, indices):
        decoded = _DECODED  # what tells of all images without decoding them does not miss one
        digest.update(line)
        digest.update(b"\n")
    for place in np.unique(np.linspace(0, len(indices) - 1, decoded).astype(int)).tolist():
        try:
            image, target = read_image(data, indices[place])
            digest.update(f"{image.size} {target}".encode() + image.tobytes())
        except UNDECODABLE:
            digest.update(b"broken")
    return digest.hexdigest()[:16]


def _listing(data: Dataset, indices: range) -> Iterator[bytes]:
    """What is told of all images without decoding them."""
    reader = getattr(data, "reader", None)
    if isinstance(data, Shapes):
        yield f"{data.size} {data.task}".encode()
        yield data.factors[indices.start : indices.stop].numpy().tobytes()
    elif isinstance(reader, ReaderHfds):
        table = reader.dataset.select_columns([reader.image_key]).with_format("arrow")
        for chunk in table[indices.start : indices.stop][reader.image_key].chunks:
            sizes = call_function("binary_length", [chunk.field("bytes")]).to_pylist()
            for held, path in zip(sizes, chunk.field("path").to_pylist(), strict=True):
                yield f"{os.path.basename(path or '')} {held}".encode()
    elif isinstance(reader, ReaderImageInTar):
        for i in indices:
            info = reader.samples[i][0]
            yield f"{info.name} {info.size} {info.mtime} {reader.targets[i]}".encode()
    else:
        yield from _files(reader if isinstance(reader, ReaderImageFolder) else data, indices)


def _files(folder: Any, indices: range) -> Iterator[bytes]:
    """Images that are files, as timm's and torchvision's folders list them; nothing of others."""
    samples = getattr(folder, "samples", None)
    if not isinstance(samples, list):
        return
    top = os.path.join(str(folder.root), "")
    for path, target in (samples[i] for i in indices):
        try:
            state = os.stat(path)
            yield f"{path.removeprefix(top)} {state.st_size} {state.st_mtime_ns} {target}".encode()
        except OSError:
            yield f"{path.removeprefix(top)} missing {target}".encode()
