"""Networks of timm and torchvision by name, with the transform and the class names of their weights."""

import hashlib
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision.models as zoo
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_model_data_config
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.transforms._presets import ImageClassification

from lwta.errors import InputError
from models.input_size import fixed_image_size
from models.timm_names import FOLDER, HUB, PREFIX

Transform = Callable[[Image.Image], Tensor]
_IMAGE_SIZE = 224  # where neither the caller nor the library says one


class Built(NamedTuple):
    """A network, its transform, and the names of its classes where the weights tell them."""

    model: nn.Module
    transform: Transform
    class_names: list[str] | None = None


def from_timm(name: str, weights: str | None, image_size: int | None, args: dict[str, Any]) -> Built:
    """``timm.create_model``; arguments as of :func:`models.network.load_network`."""
    if not name.startswith((*HUB, FOLDER)) and not timm.is_model(name.split(".")[0]):
        alike = [known for known in timm.list_models() if known.startswith(PREFIX) == name.startswith(PREFIX)]
        raise InputError(f"timm knows no network {name!r}{_nearest(name.split('.')[0], alike)}")
    build = seeded(weights, timm.create_model)
    try:
        model = build(name, pretrained=weights is None, **args)
    except InputError:
        raise
    except Exception as error:
        raise _timm_refusal(name, weights, args, error) from error
    if image_size is not None and fixed_image_size(model) not in (None, (image_size, image_size)):
        if not hasattr(model, "set_input_size"):
            raise InputError(
                f"{name} takes images of {fixed_image_size(model)} pixels only; leave image_size away"
            )
        model.set_input_size(img_size=(image_size, image_size))  # type: ignore[operator]
    side = (image_size, image_size) if image_size else fixed_image_size(model)
    config = resolve_model_data_config(model, {"input_size": (3, *side)} if side else None)
    return Built(model, create_transform(**config), _timm_classes(model) if weights is None else None)  # type: ignore[arg-type]


def _timm_refusal(name: str, weights: str | None, args: dict[str, Any], error: Exception) -> InputError:
    """What went wrong: the arguments, which fail without weights too, or the way to the weights."""
    reason, hub = first_line(error), name.startswith(HUB)
    if name.startswith(FOLDER):
        return InputError(
            f"timm cannot build {name} ({reason}); the folder holds config.json and model.safetensors"
        )
    if hub:
        return InputError(
            f"{name} cannot be fetched ({reason}); download its config.json and model.safetensors into a "
            "folder and name it: timm:local-dir:FOLDER"
        )
    if weights is None and not str(error).startswith(("Invalid pretrained tag", "No pretrained weights")):
        try:
            timm.create_model(name, pretrained=False, **args)
        except Exception as other:
            return InputError(
                f"timm cannot build {name} with {args} ({first_line(other)}); correct the arguments"
            )
        known = timm.get_pretrained_cfg(name)
        place = known and (known.hf_hub_id or known.url)
        return InputError(
            f"the weights of {name} cannot be fetched ({reason}); download those of {place} and "
            "name the file: --weights FILE, or take --weights random"
        )
    return InputError(
        f"timm cannot build {name} with {args} ({reason}); its weights are {_tags(name)}, or --weights random"
    )


def _tags(name: str) -> str:
    return ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")[:5]) or "none"


def _timm_classes(model: nn.Module) -> list[str] | None:
    """Class names that come with pretrained weights."""
    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    classes: Any = getattr(model, "num_classes", None)
    if classes != config.get("num_classes"):  # a head of its own
        return None
    names = config.get("label_names")
    subset = infer_imagenet_subset(model)
    if names is None and subset is not None:
        names = ImageNetInfo(subset).label_descriptions()
    return [str(name) for name in names] if names and len(names) == classes else None


def from_torchvision(name: str, weights: str | None, image_size: int | None, args: dict[str, Any]) -> Built:
    """``torchvision.models.get_model``; arguments as of :func:`models.network.load_network`."""
    known = zoo.list_models(zoo)  # classifiers: the others take no plain image, or return no tensor
    if name not in known:
        raise InputError(f"torchvision knows no classifier {name!r}{_nearest(name, known)}")
    published = zoo.get_model_weights(name)
    chosen = published.DEFAULT if weights is None else _published(published, weights)  # type: ignore[attr-defined]
    build = seeded(weights, zoo.get_model)
    try:
        model = build(name, weights=chosen if weights is None else None, **args)
    except OSError as error:
        raise InputError(
            f"the weights of {name} cannot be fetched ({first_line(error)}); download {chosen.url} and "
            "name the file: --weights FILE, or take --weights random"
        ) from error
    except Exception as error:
        raise InputError(
            f"torchvision cannot build {name} with {args} ({first_line(error)}); correct the arguments"
        ) from error
    if chosen is None:
        return Built(model, imagenet_transform(image_size or getattr(model, "image_size", None)))
    transform = chosen.transforms()
    if image_size is not None:
        resize = round(image_size * transform.resize_size[0] / transform.crop_size[0])
        transform = chosen.transforms(crop_size=image_size, resize_size=resize)
    return Built(model, transform, list(chosen.meta["categories"]))


def _published(weights: Any, file: str) -> Any:
    """torchvision's entry of a file that was downloaded by hand; its name holds the start of its hash."""
    for entry in () if file == "random" else weights:
        if entry.url.rpartition("/")[2] == Path(file).name:
            start = Path(file).stem.rpartition("-")[2]
            if hashlib.sha256(Path(file).read_bytes()).hexdigest().startswith(start):
                return entry
    return None


def seeded(weights: str | None, build: Callable[..., Any]) -> Callable[..., Any]:
    """``build``, for ``random`` weights from a fixed seed that leaves the global random state alone."""
    if weights != "random":
        return build

    def build_seeded(*args: Any, **kwargs: Any) -> Any:
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(0)
        try:
            return build(*args, **kwargs)
        finally:
            torch.set_rng_state(state)

    return build_seeded


def imagenet_transform(size: int | None) -> Transform:
    """ImageNet's usual evaluation transform: the middle of the image, normalised."""
    size = size or _IMAGE_SIZE
    return ImageClassification(
        crop_size=size, resize_size=round(size / 0.875), mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD
    )


def first_line(error: Exception) -> str:
    """What an error says, in brief."""
    said = [line.strip() for line in str(error).strip().splitlines()]
    if len(said) > 1 and said[0].startswith("Error(s) in loading state_dict"):
        said = said[1:]  # what does not fit follows
    return f"{type(error).__name__}: {said[0][:160]}" if said else type(error).__name__


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 5)
    return f"; the nearest are {', '.join(near)}" if near else ", nor one like it"
