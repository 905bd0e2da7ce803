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

    def part(
        self,
        images: Tensor | slice,
        concepts: Tensor | slice = slice(None),
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """P of some images and concepts (an int64 index, or a slice): (n, k), on ``device``."""
        ...


def as_presence(presence: Presence | np.ndarray | Tensor) -> Presence:
    """A presence as it is, or a matrix (N, K) as one."""
    return Matrix(presence) if isinstance(presence, np.ndarray | Tensor) else presence


class Cosines:
    """Cosines of image and text embeddings.

    Args:
        images: (N, E), may be memory-mapped and of half precision; of any length but zero.
        texts: (K, E), likewise.
    """

    def __init__(self, images: np.ndarray | Tensor, texts: Tensor) -> None:
        self.images, self.texts = images, F.normalize(texts.float(), dim=1)
        self.shape = (len(images), len(texts))

    def directions(self, images: Tensor | slice, device: str | torch.device = "cpu") -> Tensor:
        """Image embeddings of length 1: (n, E)."""
        return F.normalize(rows_of(self.images, images).to(device), dim=1)

    def part(
        self,
        images: Tensor | slice,
        concepts: Tensor | slice = slice(None),
        device: str | torch.device = "cpu",
    ) -> Tensor:
        return self.directions(images, device) @ self.texts[concepts].to(device).T


class Matrix:
    """A presence matrix that somebody measured.

    Args:
        values: (N, K), may be memory-mapped.
    """

    def __init__(self, values: np.ndarray | Tensor) -> None:
        self.values, self.shape = values, (values.shape[0], values.shape[1])

    def part(
        self,
        images: Tensor | slice,
        concepts: Tensor | slice = slice(None),
        device: str | torch.device = "cpu",
    ) -> Tensor:
        return rows_of(self.values, images)[:, concepts].to(device)


class Classes:
    """Each image shows its class and nothing else.

    Args:
        classes: int64 (N,), -1 for none.
        count: K.
    """

    def __init__(self, classes: Tensor, count: int) -> None:
        self.classes, self.shape = classes, (len(classes), count)

    def part(
        self,
        images: Tensor | slice,
        concepts: Tensor | slice = slice(None),
        device: str | torch.device = "cpu",
    ) -> Tensor:
        names = torch.arange(self.shape[1])[concepts]
        return (self.classes[images, None] == names).float().to(device)


class Part:
    """Some images and some concepts of a presence, numbered anew.

    Args:
        presence: P (N, K).
        images: int64, all where not given; one may be there several times.
        concepts: likewise.
    """

    def __init__(
        self, presence: Presence, images: Tensor | None = None, concepts: Tensor | None = None
    ) -> None:
        self.presence = presence
        self.images = torch.arange(presence.shape[0]) if images is None else images
        self.concepts = torch.arange(presence.shape[1]) if concepts is None else concepts
        self.shape = (len(self.images), len(self.concepts))

    def part(
        self,
        images: Tensor | slice,
        concepts: Tensor | slice = slice(None),
        device: str | torch.device = "cpu",
    ) -> Tensor:
        return self.presence.part(self.images[images], self.concepts[concepts], device)


def rows_of(values: np.ndarray | Tensor, images: Tensor | slice) -> Tensor:
    """Some rows of an array or tensor, as float32; read where they are asked for, so it may be mapped."""
    if isinstance(values, Tensor):
        return values[images].float()
    # Sorted access would be faster on disk; callers that walk a large file ask in order.
    rows = values[images.numpy() if isinstance(images, Tensor) else images]
    return torch.from_numpy(np.array(rows, dtype=np.float32))  # a copy: mapped files are read-only
