"""What a probe set is: its classes, a part of it, and a hash that tells it from any other."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow.compute import SliceOptions, call_function
from timm.data.readers.reader_hfds import ReaderHfds
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch import Tensor
from torch.utils.data import Dataset

from lwta.errors import InputError
from models.data import dataset_classes
from models.images import UNDECODABLE, image_name, read_image
from models.shapes import Shapes

_END = 256  # bytes of an image in a table that tell it from others of its size
_DECODED = 32  # images whose pixels enter the identity


class Slice(Dataset):
    """Some images of a dataset, numbered anew.

    Attributes:
        data: the dataset.
        indices: of its images in ``data``.
        reader: hands out the slice's images undecoded where the dataset has such a reader, else None.
        classes: names, None where there are none.
    """

    def __init__(self, data: Dataset, indices: Sequence[int]) -> None:
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
    data, indices = _whole(data)
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


def _listing(data: Dataset, indices: Sequence[int]) -> Iterator[bytes]:
    """What is told of all images without decoding them."""
    reader = getattr(data, "reader", None)
    if isinstance(data, Shapes):
        yield f"{data.size} {data.task}".encode()
        yield data.factors[_selected(indices)].numpy().tobytes()
    elif isinstance(reader, ReaderHfds):
        table = reader.dataset.select_columns([reader.image_key]).with_format("arrow")
        for chunk in table[_selected(indices)][reader.image_key].chunks:
            sizes = call_function("binary_length", [chunk.field("bytes")]).to_pylist()
            for held, path in zip(sizes, chunk.field("path").to_pylist(), strict=True):
                yield f"{os.path.basename(path or '')} {held}".encode()
    elif isinstance(reader, ReaderImageInTar):
        for i in indices:
            info = reader.samples[i][0]
            yield f"{info.name} {info.size} {info.mtime} {reader.targets[i]}".encode()
    else:
        yield from _files(reader if isinstance(reader, ReaderImageFolder) else data, indices)


def _files(folder: Any, indices: Sequence[int]) -> Iterator[bytes]:
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


def _selected(indices: Sequence[int]) -> slice | list[int]:
    return slice(indices.start, indices.stop) if isinstance(indices, range) else list(indices)


def split_back(data: Dataset, share: float) -> tuple[Slice, Slice]:
    """Two parts of a dataset: the one that stays, and the share of its images that is kept back, drawn from
    all over and always alike.

    Raises:
        InputError: where the share lies outside [0, 1), or leaves a part without images.
    """
    total = len(data)  # type: ignore[arg-type]
    count = round(share * total)
    if not 0 < count < total:
        raise InputError(
            f"keep_back {share:g} of {total} images keeps {count} of them back; it lies between 0 and 1"
        )
    order = np.random.default_rng(0).permutation(total)
    return Slice(data, sorted(order[count:].tolist())), Slice(data, sorted(order[:count].tolist()))


def share_images(one: Dataset, other: Dataset) -> bool:
    """Whether some image is in both, as far as it can be told without decoding them.

    Images of the embedded world by their numbers, files by their paths, images in tables by their size and
    last bytes, those of one dataset of another kind by their numbers in it.
    """
    (a, mine), (b, theirs) = _whole(one), _whole(other)
    if isinstance(a, Shapes) and isinstance(b, Shapes):
        return bool(_rendered(a, mine) & _rendered(b, theirs))
    for told in (_paths, _rows):
        files = told(a, mine), told(b, theirs)
        if files[0] and files[1]:
            return bool(files[0] & files[1])
    return probe_identity(a) == probe_identity(b) and bool(set(mine) & set(theirs))


def true_presence(data: Dataset) -> Tensor | None:
    """Which of :data:`models.shapes.CONCEPTS` each image shows, (N, K), 0 or 1.

    None where the images are not of the embedded world.
    """
    whole, numbers = _whole(data)
    return whole.presence()[list(numbers)] if isinstance(whole, Shapes) else None


def _whole(data: Dataset) -> tuple[Dataset, Sequence[int]]:
    """The dataset that a part of a part is of, and the numbers of its images there."""
    numbers: Sequence[int] = range(len(data))  # type: ignore[arg-type]
    while isinstance(data, Slice):
        numbers = [data.indices[i] for i in numbers]
        data = data.data
    return data, numbers


def _rendered(world: Shapes, numbers: Sequence[int]) -> set[tuple[int, ...]]:
    return {(*world.key, world.numbers[i]) for i in numbers}


def _paths(data: Dataset, numbers: Sequence[int]) -> set[str]:
    """Files of some images; none where images are no files of their own."""
    reader = getattr(data, "reader", None)
    samples = getattr(reader if isinstance(reader, ReaderImageFolder) else data, "samples", None)
    return {os.path.realpath(samples[i][0]) for i in numbers} if isinstance(samples, list) else set()


def _rows(data: Dataset, numbers: Sequence[int]) -> set[tuple[int, bytes]]:
    """Size and last bytes of some images in a table; none where images lie in none."""
    reader = getattr(data, "reader", None)
    if not isinstance(reader, ReaderHfds):
        return set()
    table = reader.dataset.select_columns([reader.image_key]).with_format("arrow")
    found: set[tuple[int, bytes]] = set()
    for chunk in table[_selected(numbers)][reader.image_key].chunks:
        held = chunk.field("bytes")
        sizes = call_function("binary_length", [held]).to_pylist()
        ends = call_function("binary_slice", [held], SliceOptions(start=-_END)).to_pylist()
        found |= {(size, end) for size, end in zip(sizes, ends, strict=True) if size}
    return found
