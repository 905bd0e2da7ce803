"""Readout ``patches``: the exemplars of a unit are the patches where it was strongest, looked at alone."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

from commands.sources import Source
from lwta.dissect.presence import Cosines, Presence
from lwta.dissect.record import Exemplars
from lwta.dissect.store import digest
from lwta.dissect.stream import Embeddings, run_pass
from lwta.errors import InputError
from models.images import UNDECODABLE, read_image
from models.run import patch_grid

if TYPE_CHECKING:
    from commands.question import Question

CONTEXT = 1  # patches shown around the one that is meant, on each side: alone it is a few pixels


def crop_box(position: int, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of a patch and its neighbours.

    Args:
        position: of the patch, row by row.
        grid: (rows, columns) of patches.
        size: (H, W) of the image as the network sees it.

    >>> crop_box(5, (4, 4), (64, 64))
    (0, 0, 48, 48)
    """
    row, column = divmod(position, grid[1])
    height, width = size[0] / grid[0], size[1] / grid[1]
    left, top = max(0, column - CONTEXT) * width, max(0, row - CONTEXT) * height
    right, bottom = min(grid[1], column + 1 + CONTEXT) * width, min(grid[0], row + 1 + CONTEXT) * height
    return round(left), round(top), round(right), round(bottom)


class _Crops(Dataset):
    """(number, crop as the encoder takes it, -1) of each patch (image, position), as the network sees it."""

    def __init__(self, question: "Question", patches: Tensor, grid: tuple[int, int], transform) -> None:
        self.data, self.subject = question.data, question.subject
        self.patches, self.grid, self.transform = patches, grid, transform

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, number: int) -> tuple[int, tuple[Tensor] | None, int]:
        image, position = self.patches[number].tolist()
        try:
            seen = self.subject.transform(read_image(self.data, image)[0])
        except UNDECODABLE:  # it did decode when the network saw it
            return number, None, -1
        shown: Image.Image = to_pil_image(self.subject.denormalise(seen))
        box = crop_box(position, self.grid, self.subject.image_size)
        return number, (self.transform(shown.crop(box)),), -1


def patch_evidence(
    question: "Question", layer: str, exemplars: Exemplars, source: Source
) -> tuple[Exemplars, Presence]:
    """The exemplars numbered by patch, and the presence of the concepts in those patches.

    Raises:
        InputError: where the layer has no grid of patches.
    """
    encoder = source.encoder
    assert encoder is not None  # refused before the pass
    assert source.texts is not None
    subject, listed = question.subject, exemplars.images >= 0
    grid = patch_grid(subject.model, question.positions(layer), subject.image_size)
    if grid is None:
        raise InputError(f"the layer {layer} has no grid of patches; use readout max")
    assert exemplars.positions is not None
    pairs = torch.stack([exemplars.images[listed], exemplars.positions[listed]], 1)
    patches, numbers = pairs.unique(dim=0, return_inverse=True)
    own = {
        "patches": digest({"pairs": patches.tolist()}),
        "images": question.probe,
        "clip": source.identity["clip"],
    }
    path = (
        question.cache / "patches" / f"{digest(own | {'context': CONTEXT, 'as': str(subject.transform)})}.npy"
    )
    if question.run.force or not path.is_file():
        crops = _Crops(question, patches, grid, encoder.transform)
        consumer = Embeddings(encoder.images, path, (len(patches), source.width))
        loader, size = question.loader(crops, "patches"), question.run.batch_size
        run_pass([consumer], loader, len(patches), size, step=question.step, every=question.run.save_every)
    images = torch.full_like(exemplars.images, -1)
    images[listed] = numbers
    return replace(exemplars, images=images), Cosines(np.load(path, mmap_mode="r"), source.texts)
