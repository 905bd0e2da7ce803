"""The embedded world: small images rendered from independent factors, so every concept in them is known.

One textured shape lies on a wall, alone or among small plain ones. Fifty of the 400 combinations of shape,
colour and texture occur in the test split alone, and nothing else occurs there: what a network makes of
them it cannot have memorised. Every pair of values is seen in training.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lwta.errors import InputError
from models.drawing import BACKGROUNDS, COLOURS, OUTLINES, background, outline, photograph, put, shade

_RADIUS = {"small": 0.22, "medium": 0.285, "large": 0.36}  # in shares of the image's side
_CENTRE = {
    "on the left": (0.33, 0.5),
    "on the right": (0.67, 0.5),
    "at the top": (0.5, 0.33),
    "at the bottom": (0.5, 0.67),
    "in the centre": (0.5, 0.5),
}
_DISTRACTORS = {"alone": 0, "accompanied": 2, "crowded": 5}

#: Factor -> its values, each in the words of the concept list.
FACTORS: dict[str, tuple[str, ...]] = {
    "shape": tuple(OUTLINES),
    "colour": tuple(COLOURS),
    "texture": ("plain", "striped", "dotted", "checked", "speckled"),
    "size": tuple(_RADIUS),
    "place": tuple(_CENTRE),
    "background": tuple(f"{colour} background" for colour in BACKGROUNDS),
    "scene": ("smooth", "wavy", "tiled", "cloudy"),
    "company": tuple(_DISTRACTORS),
}
CONCEPTS: list[str] = [value for values in FACTORS.values() for value in values]
TASKS = ("shape", "pairs")
IMAGES = {"train": 20_000, "validation": 2_000, "test": 2_000}  # of a split named without a slice

HELD_OUT = "validation[10000:12000]"  # seen combinations, beyond what a validation split is likely to hold

_MOST = 10_000_000  # images of a split
_KEPT_BYTES = 2**28  # rendered images kept in memory by each dataset


class Shapes(Dataset):
    """Images of one split, rendered when first asked for; image i is the same in every process.

    Args:
        split: ``train``, ``validation`` (the same combinations, other images) or ``test`` (held-out
            combinations only); a slice such as ``train[:5000]`` takes as many as it names.
        size: side of the images in pixels.
        task: ``shape``: the class is the shape. ``pairs``, the harder one: shape and texture
            decide it together, and neither alone tells anything.
        seed: of the world; another seed is another world of images.

    Attributes:
        classes: class names.
        concepts: K concept names.
        factors: int64 (N, F), the value of each of :data:`FACTORS` in each image.
        key, numbers: of the world and split, and of the images there: those of one key and number are alike.
        transform: applied to the PIL image where set.
    """

    def __init__(self, split: str = "train", size: int = 48, task: str = "shape", seed: int = 0) -> None:
        if task not in TASKS:
            raise InputError(f"the task of shapes is one of {', '.join(TASKS)}, not {task!r}")
        for what, value, least in (("size", size, 1), ("seed", seed, 0)):
            if not (isinstance(value, int) and value >= least):
                raise InputError(f"the {what} of shapes is a whole number of at least {least}, not {value!r}")
        if size < 16:
            raise InputError(f"shapes cannot be told apart below 16 pixels; {size} are too few")
        name, indices = _parse(split)
        self.key = (seed, list(IMAGES).index(name))
        self.numbers, self.size, self.task = indices, size, task
        self.factors = torch.from_numpy(
            _draw_factors(self.key, indices.stop, name == "test")[indices.start :]
        )
        self.concepts = CONCEPTS
        self.classes = list(OUTLINES) if task == "shape" else [f"family {k + 1}" for k in range(5)]
        self.transform: Callable[[Image.Image], Any] | None = None
        self._kept: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        image = self._kept.get(index)
        if image is None:
            image = self._render(index)
            if len(self._kept) * 3 * self.size**2 < _KEPT_BYTES:
                self._kept[index] = image
        return (self.transform(image) if self.transform else image), self.target(index)

    def target(self, index: int) -> int:
        """Class of an image."""
        shape, _, texture, *_ = self.factors[index].tolist()
        return shape if self.task == "shape" else (shape + texture) % 5

    def values(self, index: int) -> dict[str, str]:
        """Factor -> its value in an image."""
        row = self.factors[index].tolist()
        return {name: values[k] for (name, values), k in zip(FACTORS.items(), row, strict=True)}

    def caption(self, index: int) -> str:
        """All factors of an image in words, as the world's CLIP was taught."""
        return caption(self.values(index))

    def presence(self) -> Tensor:
        """The true concept vectors (N, K), float32, 0 or 1."""
        columns = [
            self.factors[:, f, None] == torch.arange(len(values)) for f, values in enumerate(FACTORS.values())
        ]
        return torch.cat(columns, 1).float()

    def _render(self, index: int) -> Image.Image:
        rng = np.random.default_rng([*self.key, 1, self.numbers[index]])
        v, size = self.values(index), self.size
        canvas = background(v["background"].removesuffix(" background"), v["scene"], size, rng)
        radius = _RADIUS[v["size"]] * rng.uniform(0.94, 1.06)
        centre = np.array(_CENTRE[v["place"]]) + rng.uniform(-0.03, 0.03, 2)
        for _ in range(_DISTRACTORS[v["company"]]):
            shape, colour = rng.choice(FACTORS["shape"]), rng.choice(FACTORS["colour"])
            place = _beside(centre, radius, rng)
            put(canvas, outline(shape, size, place, 0.075, rng.uniform(0, 2 * np.pi)), colour, "plain", rng)
        patch = outline(v["shape"], size, centre, radius, rng.uniform(-0.3, 0.3))
        shade(canvas, patch)
        put(canvas, patch, v["colour"], v["texture"], rng)
        return photograph(canvas, rng)


def concept_pairs() -> dict[tuple[int, int], str]:
    """Places in :data:`CONCEPTS` of all values of two different factors -> the pair in words.

    >>> len(concept_pairs()), list(concept_pairs().values())[:2]
    (826, ['red circle', 'orange circle'])
    """
    factors = [(factor, value) for factor, values in FACTORS.items() for value in values]
    return {
        (a, b): caption(dict((factors[a], factors[b])))
        for a, b in itertools.combinations(range(len(factors)), 2)
        if factors[a][0] != factors[b][0]
    }


def caption(values: Mapping[str, str]) -> str:
    """Some or all factors in words, in the order of a sentence.

    >>> caption({"colour": "red", "shape": "star", "size": "small"})
    'small red star'
    """
    order = ("size", "colour", "texture", "shape", "place", "company", "scene", "background")
    return " ".join(values[factor] for factor in order if factor in values)


def _parse(split: str) -> tuple[str, range]:
    match = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", split)
    if match is None or match[1] not in IMAGES:
        raise InputError(
            f"shapes has no split {split!r}; it has {', '.join(IMAGES)}, or a slice such as train[:5000]"
        )
    images = range(int(match[2] or 0), int(match[3] or IMAGES[match[1]]))
    if not 0 < images.stop - images.start <= images.stop <= _MOST:
        raise InputError(f"the split {split!r} holds no image, or more than the world's {_MOST:,}")
    return match[1], images


@cache
def _combinations(held_out: bool) -> np.ndarray:
    """Shape, colour and texture (n, 3) of the combinations in the test split, or of all others."""
    every = np.indices([len(FACTORS[name]) for name in ("shape", "colour", "texture")]).reshape(3, -1).T
    return every[(every.sum(1) % len(COLOURS) == 0) == held_out]


def _draw_factors(key: tuple[int, int], count: int, held_out: bool) -> np.ndarray:
    """Row i does not depend on ``count``."""
    draws = np.random.default_rng([*key, 0]).random((count, len(FACTORS)))
    rows = (draws * [len(values) for values in FACTORS.values()]).astype(np.int64)
    combinations = _combinations(held_out)
    rows[:, :3] = combinations[(draws[:, 0] * len(combinations)).astype(np.int64)]
    return rows


def _beside(centre: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """A place off the main shape; a large one leaves little room, and then may cover a distractor."""
    for _ in range(20):
        place = rng.uniform(0.08, 0.92, 2)
        if np.hypot(*(place - centre)) > radius + 0.1:
            break
    return place
