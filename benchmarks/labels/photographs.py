"""CIFAR-10 as a probe set: concepts that its classes and pixels tell, and embeddings made without a CLIP."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import rgb_to_hsv
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from commands.options import NetworkOptions
from commands.subject import open_subject
from models.images import IndexedImages
from models.probes import open_probe

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
GROUPS = {
    "animal": ("bird", "cat", "deer", "dog", "frog", "horse"),
    "vehicle": ("airplane", "automobile", "ship", "truck"),
    "mammal": ("cat", "deer", "dog", "horse"),
    "pet": ("cat", "dog"),
    "hoofed animal": ("deer", "horse"),
    "road vehicle": ("automobile", "truck"),
    "flies": ("airplane", "bird"),
}
FEW = 0.1  # of the images show each of the concepts below: those with the most of it


def _share(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    """Share of the pixels of a picture whose hue, in turns, lies in a range; greyish ones have none."""

    def measure(pixels: np.ndarray) -> np.ndarray:
        hue, saturation, value = np.moveaxis(rgb_to_hsv(pixels), -1, 0)
        return (((hue - low) % 1 < high - low) & (saturation * value > 0.15)).mean((1, 2))

    return measure


PIXELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bright picture": lambda pixels: pixels.mean((1, 2, 3)),
    "dark picture": lambda pixels: -pixels.mean((1, 2, 3)),
    "grey picture": lambda pixels: -(pixels.max(-1) - pixels.min(-1)).mean((1, 2)),
    "blue picture": _share(0.5, 0.72),
    "green picture": _share(0.19, 0.45),
    "red picture": _share(-0.04, 0.05),
    "rough picture": lambda pixels: np.abs(np.diff(pixels.mean(-1), axis=2)).mean((1, 2)),
}
CONCEPTS = [*CLASSES, *GROUPS, *PIXELS]


def annotations(data: Dataset) -> np.ndarray:
    """Which concepts each picture shows, (N, K), 0 or 1."""
    pictures, classes = zip(*((np.asarray(image), label) for image, label in _each(data)), strict=True)
    pixels, own = np.stack(pictures).astype(np.float32) / 255, np.eye(len(CLASSES))[list(classes)]
    groups = np.stack([[float(name in of) for name in CLASSES] for of in GROUPS.values()])
    measured = np.stack([measure(pixels) for measure in PIXELS.values()], 1)
    most = measured > np.quantile(measured, 1 - FEW, axis=0)
    return np.concatenate([own, own @ groups.T, most], 1).astype(np.float32)


def write_embeddings(path: Path, encoder: Path, root: str, probe: str) -> None:
    """Embeddings of probe pictures, and of the concepts, in the features of a network of its own.

    Pictures are the features of its stages, averaged over positions and made white on 20,000 training
    pictures; a concept is the mean of the training pictures that show it: a linear discriminant, but for
    the length of a picture. So the embeddings learn each concept from the rule that judges labels too, on
    other pictures.

    Args:
        path: .npz to write.
        encoder: run of a network whose units are not looked at.
        root: folder of the photographs.
        probe: which of them to embed.
    """
    known = open_probe(f"{root}:train[:20000]")
    seen = _features(encoder, root, known)
    middle, width = seen.mean(0), seen.shape[1]
    covariance = torch.from_numpy(np.cov((seen - middle).T.numpy()))
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)
    white = vectors / values.sqrt()
    shown = torch.from_numpy(annotations(known)).double()
    text = shown.T @ ((seen - middle) @ white) / shown.sum(0)[:, None]
    image = (_features(encoder, root, open_probe(probe)) - middle) @ white
    part = path.with_name(f"part-{path.name}")
    np.savez(part, image=image.float(), text=text.float(), concepts=np.array(CONCEPTS))
    part.replace(path)


def _features(run: Path, root: str, data: Dataset) -> Tensor:
    """What each stage gives, averaged over positions, (N, E), float64."""
    subject = open_subject(NetworkOptions(run=str(run), root=root))
    images = IndexedImages(data, subject.transform)
    found = []
    with torch.no_grad():
        for _, pixels, _ in DataLoader(images, 256, collate_fn=images.collate_indexed):
            stages = subject.model.forward_intermediates(pixels, intermediates_only=True)
            found.append(torch.cat([stage.mean((2, 3)) for stage in stages], 1).double())
    return torch.cat(found)


def _each(data: Dataset) -> Iterator[tuple[object, int]]:
    for index in range(len(data)):  # type: ignore[arg-type]
        image, label = data[index]
        yield image.convert("RGB"), int(label)
