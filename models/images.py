"""Reading single images of a dataset without putting another in a broken one's place."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from lwta.errors import InputError

#: What PIL and the readers raise for an image that does not decode.
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(data: Dataset, index: int) -> tuple[Image.Image, int]:
    """Image ``index`` of a timm or torchvision dataset, as RGB, and its class.

    timm's own indexing hands out the next image, under the broken one's index.

    Raises:
        One of :data:`UNDECODABLE`.
    """
    reader = getattr(data, "reader", None)
    image, target = (reader or data)[index][:2]
    if reader is not None:
        image = Image.open(image)
    return image.convert("RGB"), int(target)


def image_name(data: Dataset, index: int) -> str:
    """File name of an image where the data has one, else its index."""
    filename = getattr(data, "filename", None)
    # torchvision's CIFAR has an attribute of that name, the name of its archive.
    return str(filename(index) or index) if callable(filename) else str(index)


class IndexedImages(Dataset):
    """(index, image, class) of each image, image None where it does not decode.

    Args:
        data: map-style images; streamed ones have no index.
        transform: PIL image to a tensor, or to a tuple of them.
    """

    def __init__(self, data: Dataset, transform: Callable[[Image.Image], Any]) -> None:
        if isinstance(data, IterableDataset):
            raise InputError(
                "streamed data has no image numbers to dissect by; give a folder, tar or parquet files"
            )
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, int]:
        try:
            image, target = read_image(self.data, index)
        except UNDECODABLE:
            return index, None, -1
        return index, self.transform(image), target

    @staticmethod
    def collate_indexed(items: list[tuple[int, Any, int]]) -> tuple[Tensor, Any, Tensor]:
        """(indices, images, classes), broken images left out; empty tensors where all are broken."""
        kept = [item for item in items if item[1] is not None]
        if not kept:
            none = torch.empty(0, dtype=torch.long)
            return none, torch.empty(0), none
        return tuple(default_collate(kept))  # type: ignore[return-value]

    def collate(self, items: list[tuple[int, Tensor | None, int]]) -> list[Any]:
        """(images, classes), each broken image named in a warning and left out."""
        for index, image, _ in items:
            if image is None:
                rank_zero_warn(f"left out an image that does not decode: {image_name(self.data, index)}")
        _, images, targets = self.collate_indexed(items)
        if not len(targets):
            raise InputError(f"none of {len(items)} images decodes; are these images at all?")
        return [images, targets]
