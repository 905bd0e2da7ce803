"""Which layers of a network can be dissected, and along which axis their units lie."""

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from lwta.errors import InputError
from models.trace import Traced, is_activation, trace

_IMAGES = 2  # in the traced pass: more than one, so that a first axis that is not the images shows itself


class Layers(NamedTuple):
    """Layers that globs chose.

    Attributes:
        dims: layer name -> axis of its units, in the network's order; -1 where it is the last.
        shapes: layer name -> shape of what it returns for one image, (1, ...).
        left: layer name -> why a layer that only a wildcard matched was left out.
    """

    dims: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    left: dict[str, str]

    def units(self, name: str) -> int:
        """D of a layer."""
        return self.shapes[name][self.dims[name]]


def find_layers(
    model: nn.Module, image_size: tuple[int, int], globs: str | Iterable[str] | None = None
) -> Layers:
    """The layers that globs choose, each with the axis of its units (:mod:`models.trace`).

    A layer is any module that returns one tensor in one call: an activation, a convolution, a norm, or a
    block such as ``layer4`` or ``blocks.3``.

    Args:
        model: takes images (N, 3, H, W); its mode and statistics are left as they are.
        image_size: (H, W) of the traced pass.
        globs: glob or globs over module names, ``*`` matching dots too; None takes the activations.

    Raises:
        InputError: a glob that matches nothing, or no layer that can be dissected; a layer named in full
            that cannot be; an image size that the network does not take.
    """
    seen = _trace(model, image_size)
    names = [name for name, _ in model.named_modules() if name]
    reasons = {name: _trouble(name, seen.get(name)) for name in names}
    chosen: set[str] = set()
    if globs is None:
        modules = dict(model.named_modules())
        chosen = {name for name in names if name in seen and is_activation(modules[name])}
        if all(reasons[name] for name in chosen):
            why = next((f" ({reasons[name]})" for name in names if name in chosen), "")
            raise InputError(
                f"no activation of this network can be dissected as it is{why}; name layers with --layers, "
                f"such as {_some(names, reasons)}"
            )
    for glob in [globs] if isinstance(globs, str) else globs or ():
        chosen |= _matched(glob, names, reasons)
    told = [name for name in names if name in chosen and reasons[name] is None]
    dims, shapes = {}, {}
    for name in told:
        dim, shape = seen[name].dim, seen[name].returned
        assert dim is not None
        assert shape is not None
        dims[name], shapes[name] = dim, (1, *shape[1:])
    left = {name: reason for name in names if name in chosen and (reason := reasons[name]) is not None}
    return Layers(dims, shapes, left)


def _trace(model: nn.Module, image_size: tuple[int, int]) -> dict[str, Traced]:
    try:
        return trace(model, image_size, _IMAGES)
    except Exception as error:  # whatever the network's own code says of such images
        height, width = image_size
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise InputError(
            f"the network does not take images of {height} x {width} ({reason[:120]}); "
            "set the image size it takes"
        ) from error


def _matched(glob: str, names: list[str], reasons: dict[str, str | None]) -> set[str]:
    """Layers of one glob; refused where none of them can be dissected."""
    hits = [name for name in names if fnmatchcase(name, glob)]
    if not hits:
        raise InputError(f"no layer matches {glob!r}; the nearest are {', '.join(_nearest(glob, names))}")
    if glob in hits and (reason := reasons[glob]):
        raise InputError(reason)
    if first := all(reasons[name] for name in hits) and reasons[hits[0]]:
        raise InputError(f"{glob!r} matches no layer that can be dissected: {first}")
    return set(hits)


def _trouble(name: str, seen: Traced | None) -> str | None:
    """Why a layer cannot be dissected, with what to name instead; None where it can."""
    block = name.rpartition(".")[0]
    around = f"name the block around it, {block}" if block else "name a layer inside or after it"
    if seen is None:
        return f"{name} is never called when an image passes; {around}"
    if seen.calls > 1:
        return f"{name} is called at {seen.calls} places in one pass, each with units of its own; {around}"
    if seen.returned is None:
        return f"{name} returns a {seen.returns}, not one tensor; name a module inside or after it"
    if len(seen.returned) < 2 or seen.returned[0] != _IMAGES:
        shape = " x ".join(map(str, seen.returned))
        return f"{name} returns {shape} for {_IMAGES} images, whose first axis is not the images; {around}"
    if seen.dim is None or seen.dim == 0:
        return f"the axis of the units of {name} cannot be told from how they are made; {around}"
    return None


def _nearest(glob: str, names: list[str]) -> list[str]:
    near = get_close_matches(glob, names, 5, 0.5)
    # Siblings of a last part that is wrong: those that begin alike.
    head = [name for name in names if "." in glob and name.startswith(glob.rpartition(".")[0] + ".")]
    return near or head[:5] or names[:5]


def _some(names: list[str], reasons: dict[str, str | None]) -> str:
    fine = [name for name in names if reasons[name] is None]
    return ", ".join(fine[-3:]) or "none: its operations cannot be followed"
