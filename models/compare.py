"""Judge runs side by side, on the same images: accuracy, activity, and whether they differ."""

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lwta.errors import InputError
from lwta.layers import competitions, watch
from models.activity import Activity, ActivityMeter
from models.data import Transform
from models.images import IndexedImages
from models.measure import evaluation_name, predict
from models.run import Run, class_names

EVALUATIONS = (0, 1, 10)  # samples; 0 is the argmax


class Judged(NamedTuple):
    """A run on every image of a split.

    Attributes:
        folder: of the run.
        targets: classes (N,), -1 where an image does not decode.
        digests: SHA-256 of each decoded image (N, 32), zeros where it does not decode.
        right: evaluation name -> whether each image was classified rightly (N,).
        activity: who fired, by argmax.
    """

    folder: Path
    targets: Tensor
    digests: Tensor
    right: dict[str, Tensor]
    activity: Activity


class Paired(NamedTuple):
    """A run against the first on the same images, both by argmax.

    Attributes:
        difference: its top-1 less the first's, in points.
        difference_error: standard error of that, paired.
        right_alone: images that only this run classifies rightly.
        wrong_alone: images that only the first does.
        p_value: exact McNemar test, two-sided.
    """

    difference: float
    difference_error: float
    right_alone: int
    wrong_alone: int
    p_value: float


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


def run_names(folders: list[str]) -> list[str]:
    """A short name for each run; raises InputError where a folder is given twice."""
    paths = [Path(folder).resolve() for folder in folders]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise InputError(f"the run {folders[place]} is given twice; name each run once")
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else folders


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
        judged.append(judge(run, own, batch_size, num_workers, judged[0]))
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
    run: Run, images: IndexedImages, batch_size: int, num_workers: int = 0, first: Judged | None = None
) -> Judged:
    """Judge a run on every image of :func:`split_images`.

    Samples are seeded as ``train.py test`` seeds them, and are the same at the same batch size.

    Args:
        first: a run already judged, whose images these must be.

    Raises:
        InputError: where an image is not ``first``'s, or none decodes.
    """
    meter = ActivityMeter(run.model.report)
    targets = torch.full((len(images),), -1)
    digests = torch.zeros(len(images), hashlib.sha256().digest_size, dtype=torch.uint8)
    right = {evaluation_name(n): torch.zeros(len(images), dtype=torch.bool) for n in EVALUATIONS}
    loader = DataLoader(images, batch_size, num_workers=num_workers, collate_fn=images.collate_indexed)
    for batch, (indices, decoded, classes) in enumerate(tqdm(loader, run.folder.name, disable=None)):
        if not len(indices):
            continue
        pixels, digests[indices] = decoded
        targets[indices] = classes
        if first is not None:  # before the batch is worked on: other data shows in the first one
            _check_same(run.folder, targets, digests, first, indices)
        probabilities = _probabilities(run, pixels.to(run.model.device), batch, meter)
        for name, p in probabilities.items():
            right[name][indices] = p.argmax(-1).cpu() == classes
    if first is not None:
        _check_same(run.folder, targets, digests, first, torch.arange(len(images)))
    if not (targets >= 0).any():
        raise InputError(f"no image of the split decodes for {run.folder}; nothing can be compared")
    return Judged(run.folder, targets, digests, right, meter.compute())


def _probabilities(run: Run, pixels: Tensor, batch: int, meter: ActivityMeter) -> dict[str, Tensor]:
    backbone, seed = run.model.backbone, run.model.hparams["seed"] + 10_000 * batch
    with watch(backbone, meter.dims) as calls:
        argmax = predict(backbone, pixels, 0, seed)
    meter.update(calls, len(pixels))
    samples = EVALUATIONS if competitions(backbone) else ()  # without competition all are the argmax
    drawn = {evaluation_name(n): predict(backbone, pixels, n, seed) for n in samples if n}
    return {evaluation_name(n): argmax for n in EVALUATIONS} | drawn


def _check_same(folder: Path, targets: Tensor, digests: Tensor, first: Judged, indices: Tensor) -> None:
    differs = (digests[indices] != first.digests[indices]).any(1) | (
        targets[indices] != first.targets[indices]
    )
    if differs.any():
        raise InputError(
            f"{first.folder} and {folder} are judged on different data: image {int(indices[differs][0])} or "
            "its class is not the same; compare runs on the same images (--root, --split)"
        )


def describe(run: Run, judged: Judged, first: Judged) -> dict[str, Any]:
    """What a run is and how it was judged, also against ``first``: columns of the comparison.

    Top-1 comes with its 95 % Wilson interval.
    """
    h, report = run.model.hparams, run.model.report
    row: dict[str, Any] = {
        "weights": run.weights,
        "backbone": h["backbone"],
        "activation": ", ".join(sorted({site.kind for site in report.chosen})),
        "competitors": h["competitors"],
        "parameters": sum(p.numel() for p in run.model.backbone.parameters()),
        "images": int((judged.targets >= 0).sum()),
    }
    for name, right in judged.right.items():
        low, high = wilson(int(right.sum()), row["images"])
        row |= {f"top1_{name}": int(right.sum()) / row["images"]}
        row |= {f"top1_{name}_low": low, f"top1_{name}_high": high}
    return row | judged.activity._asdict() | paired(first, judged)._asdict()


def wilson(right: int, images: int) -> tuple[float, float]:
    """95 % Wilson interval of a proportion."""
    interval = binomtest(right, images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def paired(first: Judged, other: Judged) -> Paired:
    """Whether a run and the first differ, on the images that decode."""
    a, b = first.right["argmax"], other.right["argmax"]
    images = int((first.targets >= 0).sum())
    wrong_alone, right_alone = int((a & ~b).sum()), int((b & ~a).sum())
    discordant, mean = wrong_alone + right_alone, (right_alone - wrong_alone) / images
    error = math.sqrt((discordant / images - mean**2) / images)
    p = float(binomtest(wrong_alone, discordant, 0.5).pvalue) if discordant else 1.0
    return Paired(100 * mean, 100 * error, right_alone, wrong_alone, p)
