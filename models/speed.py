"""How fast runs classify, measured side by side in one process."""

import time
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from models.images import IndexedImages
from models.run import Run

_WARM_UP, _ROUNDS = 3, 15


@torch.inference_mode()
def images_per_second(runs: list[Run], images: list[IndexedImages], batch_size: int) -> list[dict[str, Any]]:
    """``images_per_second`` of each run's forward pass (argmax) on its first batch, median of the rounds,
    and the ``device`` and ``timed_images`` of a pass.

    The runs take turns in each round, so that what else the machine does slows all of them alike.
    """
    batches = [_first_batch(run, own, batch_size) for run, own in zip(runs, images, strict=True)]
    seconds: list[list[float]] = [[] for _ in runs]
    for place in range(_WARM_UP + _ROUNDS):
        for run, batch, times in zip(runs, batches, seconds, strict=True):
            spent = _timed(run, batch)
            if place >= _WARM_UP:
                times.append(spent)
    return [
        {
            "images_per_second": len(batch) / median(times),
            "timed_images": len(batch),
            "device": batch.device.type,
        }
        for batch, times in zip(batches, seconds, strict=True)
    ]


def _first_batch(run: Run, images: IndexedImages, batch_size: int) -> Tensor:
    loader = DataLoader(images, batch_size, collate_fn=images.collate_indexed)
    pixels, _ = next(decoded for indices, decoded, _ in loader if len(indices))
    return pixels.to(run.model.device)


def _timed(run: Run, batch: Tensor) -> float:
    start = time.perf_counter()
    run.model.backbone(batch)
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
    return time.perf_counter() - start
