"""Probe sets: images of any kind to show a network, opened by one line of text, and their identity."""

import re
from pathlib import Path
from typing import Any

import datasets
import datasets.config
from timm.data import ImageDataset, create_dataset
from timm.data.readers.reader_hfds import ReaderHfds
from torch.utils.data import Dataset, IterableDataset

from lwta.errors import InputError
from models.identity import (
    Slice,
    probe_classes,
    probe_identity,
    share_images,
    split_back,
    true_presence,
)
from models.shapes import Shapes

__all__ = ["open_probe", "probe_classes", "probe_identity", "share_images", "split_back", "true_presence"]

_IMAGES = ".png;.jpg;.jpeg;.webp;.bmp;.gif;.tif;.tiff;.ppm"
_NAMED = ("torch", "hfds")  # first part of timm's names of data that is not streamed
_STREAMED = ("wds", "hfids", "tfds")
_ERRORS = (ValueError, TypeError, RuntimeError, OSError, AssertionError, KeyError, IndexError)


class _Unlabelled(ReaderHfds):
    """A table without classes; all its images are of one."""

    def _get_target(self, item: Any) -> int:
        return 0


def open_probe(spec: str, size: int = 224, args: dict[str, Any] | None = None) -> Dataset:
    """Open images for :class:`models.images.IndexedImages`.

    Args:
        spec: a folder of images at any depth, where an image's class is the folder it lies in; a .tar of
            such folders; a folder of parquet files, ``PATH`` or ``PATH:SPLIT``; ``shapes:validation``, the
            embedded world; or timm's name of a dataset with its split, ``torch/cifar10:test``,
            ``hfds/OWNER/NAME:SPLIT``. ``[a:b]`` at the end takes a part: ``PATH[:2000]``.
        size: side of the images of the embedded world, in pixels.
        args: further arguments of the dataset: ``root`` (where torchvision's files lie), ``input_key`` and
            ``target_key`` (columns of a table; by default the first of images and the first of classes; for
            a folder ``input_key`` is the file endings, ``.png;.jpg``), ``task`` and ``seed`` of the world.

    Raises:
        InputError: where there are no such images, they are streamed, or the arguments do not fit.
    """
    args = dict(args or {})
    if spec == "shapes" or spec.startswith("shapes:"):
        try:
            options: dict[str, Any] = {"size": size} | args
            return Shapes(spec.partition(":")[2] or "validation", **options)
        except TypeError as error:
            raise InputError(f"the arguments {args} do not fit shapes ({error})") from error
    whole, wanted = (spec, None) if Path(spec).exists() else split_part(spec)
    try:
        data = _open(whole, args)
    except _ERRORS as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise InputError(
            f"cannot read images from {whole} ({reason}); check the name and its files"
        ) from error
    return take_part(data, spec, wanted or slice(None))


def split_part(spec: str) -> tuple[str, slice | None]:
    """What a spec names, and the part of it that ``[a:b]`` at its end takes.

    >>> split_part("photos[:2000]"), split_part("photos")
    (('photos', slice(0, 2000, None)), ('photos', None))
    """
    found = re.fullmatch(r"(.+)\[(\d*):(\d*)\]", spec)
    if not found:
        return spec, None
    name, start, stop = found.groups()
    return name, slice(int(start or 0), int(stop) if stop else None)


def take_part(data: Dataset, spec: str, wanted: slice) -> Dataset:
    """A part of a dataset; InputError where it holds no image."""
    total = len(data)  # type: ignore[arg-type]
    indices = range(total)[wanted]
    if not indices:
        raise InputError(f"{spec} holds no image; {split_part(spec)[0]} holds {total}")
    return data if len(indices) == total else Slice(data, indices)


def _open(spec: str, args: dict[str, Any]) -> Dataset:
    scheme = spec.partition("/")[0].lower() if "/" in spec else ""
    if scheme in _STREAMED:
        raise InputError(
            f"{spec} is streamed, and its images have no numbers to dissect by; "
            "give a folder, tar or parquet files"
        )
    path, split = spec, ""
    if scheme in _NAMED or not Path(spec).exists():
        head, _, tail = spec.rpartition(":")
        path, split = (head, tail) if head else (spec, "")
    if scheme in _NAMED:
        return _open_named(scheme, path, split, args)
    root = Path(path)
    if not root.exists():
        raise InputError(
            f"there are no images at {spec}; give a folder, a .tar file, a folder of parquet files, "
            "shapes:SPLIT, or a dataset of timm such as torch/cifar10:test"
        )
    if root.is_dir() and any(next(root.glob(glob), None) for glob in ("*.parquet", "data/*.parquet")):
        return _open_table(str(root.resolve()), split or _only_split(root), args)
    if split:
        raise InputError(
            f"{root} holds no parquet files, so it has no split {split!r}; name the folder itself"
        )
    if root.is_file() and root.suffix != ".tar":
        raise InputError(f"{root} is a file; give the folder it lies in, or a .tar file")
    if root.is_dir():
        args = {"input_key": _IMAGES} | args
    return create_dataset("", root=str(root), search_split=False, **args)


def _open_named(scheme: str, name: str, split: str, args: dict[str, Any]) -> Dataset:
    if not split:
        raise InputError(f"{name} needs its split: {name}:test")
    if scheme == "hfds":
        return _open_table(name.partition("/")[2], split, args)
    if not args.get("root"):
        raise InputError(f"{name} needs the folder where its files lie: give root among the arguments")
    data = create_dataset(name, split=split, **args)
    if isinstance(data, IterableDataset):
        raise InputError(f"{name} is streamed, and its images have no numbers to dissect by; give a folder")
    return data


def _only_split(root: Path) -> str:
    splits = [str(name) for name in datasets.load_dataset_builder(str(root)).config.data_files or {}]
    if len(splits) != 1:
        raise InputError(f"{root} holds the splits {', '.join(splits)}; name one: {root}:{splits[-1]}")
    return splits[0]


def _open_table(name: str, split: str, args: dict[str, Any]) -> Dataset:
    """A table of the datasets library; its cache stays outside the folder, where it would be read as data."""
    args, cache = dict(args), args.pop("root", None) or str(datasets.config.HF_DATASETS_CACHE)
    features: dict[str, Any] = datasets.load_dataset(name, split=split, cache_dir=cache).features
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    args.setdefault("input_key", images[0] if images else None)
    target = args.setdefault("target_key", classes[0] if classes else None)
    for key in (args["input_key"], target):
        if key is not None and key not in features:
            raise InputError(f"{name} has no column {key!r}; it has {', '.join(features)}")
    if args["input_key"] is None:
        raise InputError(f"{name} has no column of images; name one with input_key: {', '.join(features)}")
    if (
        target is not None
        and target not in classes
        and "int" not in str(getattr(features[target], "dtype", ""))
    ):
        raise InputError(f"the column {target!r} of {name} holds no class numbers; leave target_key away")
    kind = _Unlabelled if target is None else ReaderHfds
    args["target_key"] = target or args["input_key"]
    return ImageDataset(root="", reader=kind(name, root=cache, split=split, **args))
