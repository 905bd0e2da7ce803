"""The images that units are labelled on."""

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from commands.options import LabelOptions
from commands.subject import Subject
from lwta.errors import InputError
from models.images import IndexedImages, image_name
from models.probes import probe_identity, split_back


class Probe:
    """A probe set.

    Args:
        subject: the network; a run has splits of its own.
        labels: name the images.
        data: the images, in place of those.

    Attributes:
        spec: what was asked for.
        own: whether it is a split of the run's data.
        data: map-style images.
        whole: how many were named, of which some may be kept back.
        numbers: of the images among those; None for all.

    Raises:
        InputError: where no images were named, or there are none.
    """

    def __init__(self, subject: Subject, labels: LabelOptions, data: Dataset | None = None) -> None:
        spec = labels.probe or ("given images" if data is not None else "validate" if subject.run else None)
        if spec is None:
            raise InputError("name the images to label on with --probe, such as a folder")
        self.spec, self.own = spec, data is None and subject.is_split(spec)
        self.data = subject.probe(spec, labels.probe_args) if data is None else data
        self.whole, self.numbers = len(self), None
        if labels.keep_back:
            if data is not None:
                raise InputError(
                    "keep_back is of images that --probe names; split images of your own yourself"
                )
            self.data = part = split_back(self.data, labels.keep_back)[0]
            self.numbers = part.indices
        if not len(self):
            raise InputError(f"the probe set {spec} holds no image; name another with --probe")

    def __len__(self) -> int:
        return len(IndexedImages(self.data, lambda image: image))

    def rows(self, values: np.ndarray) -> np.ndarray:
        """The rows of these images from those of all that were named."""
        return values if self.numbers is None else values[np.array(self.numbers)]

    @cached_property
    def identity(self) -> str:
        """Hash of the images."""
        return probe_identity(self.data)

    @property
    def name(self) -> str:
        """What was asked for, without the place where it lies."""
        path, bracket, part = self.spec.partition("[")
        place = self.spec if Path(self.spec).exists() else path
        return Path(place).name + (bracket + part) * (place == path) if Path(place).exists() else self.spec

    @property
    def told(self) -> str:
        """For the reader."""
        return f"the split {self.spec}" if self.own else self.spec

    @property
    def names(self) -> "Names":
        """File name of each image, None where it has none."""
        return Names(self.data)


class Names:
    """File name of each image, None where the set has none; asked for one by one."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __getitem__(self, index: int) -> str | None:
        name = image_name(self.data, index)
        return None if name == str(index) else name


class Each(NamedTuple):
    """An image for each of several takers; loader processes take it along."""

    transforms: tuple[Callable[[Image.Image], Tensor], ...]

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        return tuple(transform(image) for transform in self.transforms)


def transform_identity(transform: Callable[[Image.Image], Tensor]) -> str:
    """Hash of what a transform makes of two fixed images: many a transform does not say what it does."""
    rng, found = np.random.default_rng(0), hashlib.sha256()
    for height, width in ((97, 160), (48, 31)):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        made = transform(Image.fromarray(pixels)).contiguous()
        found.update(f"{made.dtype} {tuple(made.shape)}".encode() + made.numpy().tobytes())
    return found.hexdigest()[:16]
