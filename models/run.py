"""A trained run: its folder, network, data and identity."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
import yaml
from PIL import Image
from torch import nn

from lwta.errors import InputError
from models.checkpoint import run_checkpoint
from models.classifier import Classifier
from models.data import ImageData
from models.images import UNDECODABLE, IndexedImages, read_image


class Run(NamedTuple):
    """What ``--run runs/NAME`` opens.

    Attributes:
        folder: where the run lies.
        model: the network, in evaluation mode, from its best checkpoint.
        data: its data, with its transforms; nothing is read from disk before it is asked for.
        weights: hash of the checkpoint file.
    """

    folder: Path
    model: Classifier
    data: ImageData
    weights: str


def load_run(folder: str | Path, root: str | None = None, device: str = "auto") -> Run:
    """Open a run folder.

    Args:
        folder: made by ``train.py fit --run``.
        root: data folder, where the data has moved since training.
        device: where to put the network; ``auto`` takes the GPU where there is one.

    Raises:
        InputError: where the folder holds no run, its checkpoint cannot be read, or there is no such device.
    """
    place = find_device(device)
    folder = Path(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        raise InputError(
            f"{folder} is no run: it has no config.yaml; train one with train.py fit --run {folder}"
        )
    try:
        fields: dict[str, Any] = dict(yaml.safe_load(config.read_text())["data"])
    except (yaml.YAMLError, OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{config} is damaged; bring back the config.yaml that training wrote") from error
    if root is not None:
        fields["root"] = root
    checkpoint = run_checkpoint(folder)
    model = Classifier.from_checkpoint(checkpoint).to(place)
    try:
        data = ImageData(**fields)
    except TypeError as error:
        raise InputError(
            f"{config} does not describe the data ({error}); bring it back as written"
        ) from error
    return Run(folder, model, data, hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16])


def find_device(name: str) -> torch.device:
    """A device by PyTorch's name, ``auto`` for the GPU where there is one.

    Raises:
        InputError: where it is no device, or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # as a device that holds no values cannot
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"the device {name!r} is not there ({str(error).splitlines()[0][:100]}); use --device cpu or auto"
        ) from None
    return device


def class_names(run: Run) -> list[str]:
    """Names of the classes the network tells apart; their numbers where the data has no names."""
    names = run.model.hparams["class_names"]
    return names or [str(k) for k in range(run.model.hparams["num_classes"])]


def head_readout(model: nn.Module) -> tuple[str, int]:
    """What a network's head reads, ``cls`` or ``mean`` or ``max``, and its number of prefix tokens.

    timm's networks tell it; torchvision's ViT reads its class token, the one prefix token; of any other
    network nothing is known, and its positions are averaged.
    """
    if isinstance(model, torchvision.models.VisionTransformer):
        return "cls", 1
    prefix = getattr(model, "num_prefix_tokens", 0)
    pool = getattr(model, "global_pool", "avg")  # a name in token models, a module in others
    pool = getattr(pool, "pool_type", pool)
    if pool == "token" and prefix:
        return "cls", prefix
    return ("max" if pool == "max" else "mean"), prefix


def patch_grid(
    model: nn.Module, patches: int, image_size: tuple[int, int] | None = None
) -> tuple[int, int] | None:
    """(rows, columns) of a token layer's patches, None where there is no grid.

    Args:
        model: with timm's patch embedding, or torchvision's ViT; of any other no grid is known.
        patches: tokens without the prefix tokens.
        image_size: (H, W) of the images, where they are not of the size the network was built for.
    """
    for grid in _patch_grids(model, image_size):
        if grid[0] * grid[1] == patches:
            return grid
    return None


def _patch_grids(model: nn.Module, image_size: tuple[int, int] | None) -> list[tuple[int, int]]:
    """The grids that a network's patches may form: of these images, and of those it was built for."""
    if isinstance(model, torchvision.models.VisionTransformer):
        built, side = (model.image_size // model.patch_size,) * 2, (model.patch_size,) * 2
    else:
        embedding = getattr(model, "patch_embed", getattr(model, "stem", None))
        built, side = getattr(embedding, "grid_size", None), getattr(embedding, "patch_size", None)
    grids = []
    if image_size is not None and isinstance(side, tuple):
        grids.append((image_size[0] // side[0], image_size[1] // side[1]))
    if built:
        grids.append((built[0], built[1]))
    return grids


def open_image(source: str, data: ImageData | None = None) -> Image.Image:
    """An image file, or ``SPLIT:INDEX`` of a run's data (``test:12``), as RGB.

    Raises:
        InputError: where there is no such image, or it does not decode.
    """
    path = Path(source)
    split, _, index = source.rpartition(":")
    try:
        if data is not None and not path.exists() and split and index.isdigit():
            images = IndexedImages(data.dataset(split), data.eval_transform())
            if int(index) >= len(images):
                raise InputError(f"{source}: the split has {len(images)} images, the first is 0")
            return read_image(images.data, int(index))[0]
        return Image.open(path).convert("RGB")
    except FileNotFoundError:
        raise InputError(f"there is no image {source}; give a file, or SPLIT:INDEX such as test:12") from None
    except InputError:
        raise
    except UNDECODABLE as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"image {source} does not decode ({reason}); replace or leave it out") from None
