"""Any network to dissect: of timm, of torchvision, or made by a function of yours."""

import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor, nn

from lwta.errors import InputError
from models.run import find_device
from models.weights import load_weights, weights_hash
from models.zoo import Built, Transform, first_line, from_timm, from_torchvision, imagenet_transform, seeded

_FORMS = "timm:NAME, torchvision:NAME or package.module:function"
_LIBRARIES = {"timm": from_timm, "torchvision": from_torchvision}


class Network(NamedTuple):
    """A network and how it sees an image.

    Attributes:
        name: as it was asked for.
        model: in evaluation mode, on the device.
        transform: PIL image (RGB) to normalised tensor (3, H, W), without randomness.
        image_size: (H, W).
        weights: hash of its state dict.
        mean, std: per-channel normalisation of values in [0, 1], for showing what it sees.
        class_names: of its outputs, None where they are not known.
    """

    name: str
    model: nn.Module
    transform: Transform
    image_size: tuple[int, int]
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: list[str] | None


def load_network(
    spec: str,
    weights: str | None = None,
    device: str = "auto",
    image_size: int | None = None,
    args: dict[str, Any] | None = None,
) -> Network:
    """Build a network and load its weights.

    Args:
        spec: ``timm:NAME`` (also ``timm:hf-hub:OWNER/NAME`` and ``timm:local-dir:FOLDER``),
            ``torchvision:NAME``, or ``package.module:function``, a function that returns a module or a pair
            (module, transform) and is looked for in the current folder too.
        weights: None for the library's pretrained ones or a function's own; ``random`` for an initialisation
            that is the same every time; or a file, see :func:`models.weights.load_weights`.
        device: by PyTorch's name; ``auto`` takes the GPU where there is one.
        image_size: side of the square images in pixels; None takes what the network was trained on.
        args: further arguments of ``timm.create_model``, of torchvision's builder, or of the function.

    Raises:
        InputError: in one sentence, with the remedy, whatever of these does not fit.
    """
    place, args = find_device(device), dict(args or {})
    scheme, _, name = spec.partition(":")
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is at least 1, not {image_size}")
    if weights not in (None, "random") and not Path(weights).is_file():
        raise InputError(f"there is no file of weights {weights}; name one that exists, or random")
    if scheme in _LIBRARIES and name:
        built = _LIBRARIES[scheme](name, weights, image_size, args)
    elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec):
        built = _from_function(scheme, name, weights, image_size, args)
    else:
        raise InputError(f"{spec!r} names no network; give {_FORMS}")
    if weights not in (None, "random"):
        load_weights(built.model, weights)
    return wrap_network(built.model.to(place), built.transform, spec, built.class_names)


def wrap_network(
    model: nn.Module,
    transform: Transform | None = None,
    name: str = "the network",
    class_names: list[str] | None = None,
    image_size: int | None = None,
) -> Network:
    """A module that is there already as a :class:`Network`, put into evaluation mode.

    Args:
        transform: None takes ImageNet's evaluation transform at ``image_size``, 224 where not given.

    Raises:
        InputError: a transform that makes no tensor (3, H, W) of an image.
    """
    transform = transform or imagenet_transform(image_size)
    seen, (mean, std) = _image_size(transform, name), _normalisation(transform)
    return Network(name, model.eval(), transform, seen, weights_hash(model), mean, std, class_names)


def _from_function(
    module: str, name: str, weights: str | None, image_size: int | None, args: dict[str, Any]
) -> Built:
    spec = f"{module}:{name}"
    with _current_folder():
        try:
            function: Any = importlib.import_module(module)
            for part in name.split("."):
                function = getattr(function, part)
        except Exception as error:
            raise InputError(f"{spec} cannot be imported ({first_line(error)}); give {_FORMS}") from error
        try:
            made = seeded(weights, function)(**args)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{spec} fails with {args} ({first_line(error)}); correct it or its arguments"
            ) from error
    model, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{spec} returns a {type(model).__name__}; "
            "it returns a torch.nn.Module, or a pair (module, transform)"
        )
    if transform is not None and image_size is not None:
        raise InputError(f"{spec} brings its own transform; leave image_size away")
    return Built(model, transform or imagenet_transform(image_size))


@contextmanager
def _current_folder() -> Iterator[None]:
    """Within this context modules of the current folder can be imported."""
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


def _image_size(transform: Transform, spec: str) -> tuple[int, int]:
    """(H, W) of what a transform makes of an image."""
    try:
        pixels = transform(Image.new("RGB", (300, 200)))
    except Exception as error:
        raise InputError(
            f"the transform of {spec} fails on an image ({first_line(error)}); it takes a PIL image"
        ) from error
    if not isinstance(pixels, Tensor) or pixels.ndim != 3 or len(pixels) != 3:
        shape = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise InputError(f"the transform of {spec} makes {shape} of an image; it makes a tensor (3, H, W)")
    return pixels.shape[1], pixels.shape[2]


def _normalisation(transform: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that a transform normalises by; 0 and 1 where it does not."""
    for step in reversed(getattr(transform, "transforms", [transform])):
        mean, std = getattr(step, "mean", None), getattr(step, "std", None)
        if mean is not None and std is not None:
            return tuple(float(value) for value in mean), tuple(float(value) for value in std)
    return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
