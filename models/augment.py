"""Order and augmentation of training images as functions of seed, epoch and image."""

import random
from collections.abc import Iterator

import numpy as np
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler


class EpochSampler(DistributedSampler):
    """A shuffling sampler whose keys carry the epoch: it yields (epoch, index)."""

    def __init__(self, data: Dataset, world_size: int, rank: int, seed: int) -> None:
        super().__init__(data, world_size, rank, shuffle=True, seed=seed)

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        for index in super().__iter__():
            yield self.epoch, index


class Augmented(Dataset):
    """Gives each image of each epoch its own random state.

    Indexed by (epoch, index). The caller's random state is left as it was, so augmentation and the
    network's noise do not disturb each other.
    """

    def __init__(self, data: Dataset, seed: int) -> None:
        self.data, self.seed = data, seed

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int] | int) -> tuple[Tensor, int]:
        epoch, index = key if isinstance(key, tuple) else (0, key)  # Lightning's overfit_batches
        state = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
        before = _collect_rng_states(include_cuda=False)
        try:
            random.seed(state)
            np.random.seed(state)
            torch.default_generator.manual_seed(state)
            return self.data[index]
        finally:
            _set_rng_states(before)
