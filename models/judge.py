"""A trained run on every image of a split: what it gets right, how sure it is, and who fired."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassCalibrationError
from tqdm import tqdm

from lwta.errors import InputError
from lwta.layers import competitions, is_stochastic, sampled, watch
from models.activity import Activity, ActivityMeter
from models.data import Transform
from models.images import IndexedImages
from models.measure import evaluation_name, predict_each
from models.run import Run, class_names

EVALUATIONS = (0, 1, 10)  # samples; 0 is the argmax


class Judged(NamedTuple):
    """A run on every image of a split.

    Attributes:
        folder: of the run.
        targets: classes (N,), -1 where an image does not decode.
        digests: SHA-256 of each decoded image (N, 32), zeros where it does not decode.
        right: evaluation name -> whether each image was classified rightly (N,).
        calibration: evaluation name -> expected calibration error, 15 bins.
        differing: layer -> share of winners that differ between two samples; empty where nothing competes.
        activity: who fired, by argmax.
    """

    folder: Path
    targets: Tensor
    digests: Tensor
    right: dict[str, Tensor]
    calibration: dict[str, float]
    differing: dict[str, float]
    activity: Activity


class _Fingerprinted:
    """A transform that returns the tensor and the digest (32,) of the image before it."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Any:
        digest = hashlib.sha256(str(image.size).encode() + image.tobytes()).digest()
        return self.transform(image), torch.tensor(list(digest), dtype=torch.uint8)


def split_images(run: Run, split: str) -> IndexedImages:
    """The images of a split of a run's data, each with the digest of what was decoded."""
    return IndexedImages(run.data.dataset(split), _Fingerprinted(run.data.eval_transform()))


def judge_all(
    runs: list[Run], images: list[IndexedImages], batch_size: int, num_workers: int = 0
) -> list[Judged]:
    """Judge runs on the same images, each run's as :func:`split_images` gives them.

    Raises:
        InputError: where classes or images differ between the runs, or no image decodes.
    """
    _check_comparable(runs, images)
    judged = [judge(runs[0], images[0], batch_size, num_workers)]
    for run, own in zip(runs[1:], images[1:], strict=True):
        judged.append(judge(run, own, batch_size, num_workers, first=judged[0]))
    return judged


def _check_comparable(runs: list[Run], images: list[IndexedImages]) -> None:
    first, known = runs[0].folder, class_names(runs[0])
    for run, own in zip(runs[1:], images[1:], strict=True):
        if class_names(run) != known:
            raise InputError(
                f"{first} and {run.folder} tell different classes apart ({', '.join(known[:3])} ... and "
                f"{', '.join(class_names(run)[:3])} ...); compare runs of the same classes"
            )
        if len(own) != len(images[0]):
            raise InputError(
                f"{first} has {len(images[0])} images to be judged on and {run.folder} has {len(own)}; "
                "compare runs on the same images (--root, --split)"
            )


@torch.inference_mode()
def judge(
    run: Run,
    images: IndexedImages,
    batch_size: int,
    num_workers: int = 0,
    evaluations: Sequence[int] = EVALUATIONS,
    first: Judged | None = None,
) -> Judged:
    """Judge a run on every image of :func:`split_images`.

    Samples are seeded as ``train.py test`` seeds them, and are the same at the same batch size.

    Args:
        evaluations: numbers of samples; 0 is the argmax, and always among them.
        first: a run already judged, whose images these must be.

    Raises:
        InputError: where an image is not ``first``'s, or none decodes.
    """
    tally = _Tally(run, evaluations, len(images))
    targets = torch.full((len(images),), -1)
    digests = torch.zeros(len(images), hashlib.sha256().digest_size, dtype=torch.uint8)
    loader = DataLoader(images, batch_size, num_workers=num_workers, collate_fn=images.collate_indexed)
    for batch, (indices, decoded, classes) in enumerate(tqdm(loader, run.folder.name, disable=None)):
        if not len(indices):
            continue
        pixels, digests[indices] = decoded
        targets[indices] = classes
        if first is not None:  # before the batch is worked on: other data shows in the first one
            _check_same(run.folder, targets, digests, first, indices)
        tally.add(batch, indices, pixels.to(run.model.device), classes.to(run.model.device))
    if first is not None:
        _check_same(run.folder, targets, digests, first, torch.arange(len(images)))
    if not (targets >= 0).any():
        raise InputError(f"no image of the split decodes for {run.folder}; nothing can be compared")
    return Judged(run.folder, targets, digests, *tally.compute())


class _Tally:
    """What :func:`judge` counts over batches."""

    def __init__(self, run: Run, evaluations: Sequence[int], images: int) -> None:
        self.backbone, self.seed = run.model.backbone, run.model.hparams["seed"]
        self.meter = ActivityMeter(run.model.report)
        self.names = {n: evaluation_name(n) for n in sorted({0, *evaluations})}
        self.right = {name: torch.zeros(images, dtype=torch.bool) for name in self.names.values()}
        classes = run.model.hparams["num_classes"]
        self.calibration = {
            name: MulticlassCalibrationError(classes, n_bins=15, norm="l1").to(run.model.device)
            for name in self.names.values()
        }
        self.winners: dict[str, Tensor] = {}

    def add(self, batch: int, indices: Tensor, pixels: Tensor, classes: Tensor) -> None:
        seed = self.seed + 10_000 * batch
        with watch(self.backbone, self.meter.dims) as calls:
            argmax = predict_each(self.backbone, pixels, (0,), seed)[0]
        self.meter.update(calls, len(pixels))
        stochastic = is_stochastic(self.backbone)
        drawn = predict_each(self.backbone, pixels, [n for n in self.names if n and stochastic], seed)
        for n, name in self.names.items():
            probabilities = drawn.get(n, argmax)  # without noise all are the argmax
            self.right[name][indices] = (probabilities.argmax(-1) == classes).cpu()
            self.calibration[name].update(probabilities, classes)
        for name, counts in differing_winners(self.backbone, pixels, seed).items():
            self.winners[name] = self.winners.get(name, 0) + counts

    def compute(self) -> tuple[dict[str, Tensor], dict[str, float], dict[str, float], Activity]:
        calibration = {name: float(metric.compute()) for name, metric in self.calibration.items()}
        differing = {name: float(differ / total) for name, (differ, total) in self.winners.items()}
        return self.right, calibration, differing, self.meter.compute()


def differing_winners(backbone: nn.Module, images: Tensor, seed: int) -> dict[str, Tensor]:
    """Layer -> (winners that differ between two samples of the competition, all winners), (2,)."""
    layers = competitions(backbone)
    if not is_stochastic(backbone):
        return {name: torch.tensor([0, 1]) for name in layers}
    seen = []
    for sample in (seed, seed + 1):
        with sampled(backbone, sample), watch(backbone, dict.fromkeys(layers, 0)) as calls:
            backbone(images)
        seen.append(calls)
    counts = {}
    for name in layers:
        first, second = (torch.cat([f.winner.flatten() for f in calls[name]]) for calls in seen)
        counts[name] = torch.stack([(first != second).sum(), torch.tensor(first.numel()).to(first)])
    return counts


def _check_same(folder: Path, targets: Tensor, digests: Tensor, first: Judged, indices: Tensor) -> None:
    differs = (digests[indices] != first.digests[indices]).any(1) | (
        targets[indices] != first.targets[indices]
    )
    if differs.any():
        raise InputError(
            f"{first.folder} and {folder} are judged on different data: image {int(indices[differs][0])} or "
            "its class is not the same; compare runs on the same images (--root, --split)"
        )
