"""How much of each concept each probe image shows: P (N, K), computed where it is asked for, never kept."""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Presence(Protocol):
    """P (N, K), float32: a cosine in [-1, 1], or a presence in [0, 1].

    Attributes:
        shape: (N, K).
    """

    shape: tuple[int, int]

    def part(self, images: Tensor | slice, concepts: slice = slice(None)) -> Tensor:
        """P of some images (an int64 index, or a slice) and a range of concepts: (n, k), on the CPU."""
        ...


class Cosines:
    """Cosines of image and text embeddings.

    Args:
        images: (N, E), may be memory-mapped and of half precision; of any length but zero.
        texts: (K, E), likewise.
    """

    def __init__(self, images: np.ndarray | Tensor, texts: Tensor) -> None:
        self.images, self.texts = images, F.normalize(texts.float(), dim=1)
        self.shape = (len(images), len(texts))

    def part(self, images: Tensor | slice, concepts: slice = slice(None)) -> Tensor:
        return F.normalize(_rows(self.images, images), dim=1) @ self.texts[concepts].T


class Matrix:
    """A presence matrix that somebody measured.

    Args:
        values: (N, K), may be memory-mapped.
    """

    def __init__(self, values: np.ndarray | Tensor) -> None:
        self.values, self.shape = values, (values.shape[0], values.shape[1])

    def part(self, images: Tensor | slice, concepts: slice = slice(None)) -> Tensor:
        return _rows(self.values, images)[:, concepts]


class Classes:
    """Each image shows its class and nothing else.

    Args:
        classes: int64 (N,), -1 for none.
        count: K.
    """

    def __init__(self, classes: Tensor, count: int) -> None:
        self.classes, self.shape = classes, (len(classes), count)

    def part(self, images: Tensor | slice, concepts: slice = slice(None)) -> Tensor:
        names = torch.arange(self.shape[1])[concepts]
        return (self.classes[images, None] == names).float()


def _rows(values: np.ndarray | Tensor, images: Tensor | slice) -> Tensor:
    if isinstance(values, Tensor):
        return values[images].float()
    # Sorted access would be faster on disk; callers that walk a large file ask in order.
    rows = values[images.numpy() if isinstance(images, Tensor) else images]
    return torch.from_numpy(np.array(rows, dtype=np.float32))  # a copy: mapped files are read-only
