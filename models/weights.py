"""Weights of any network: read from a file without running code from it, fitted by name, and hashed."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lwta.errors import InputError
from models.checkpoint import read_checkpoint, run_checkpoint
from models.timm_names import is_spread
from models.zoo import first_line

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the weights
_PREFIXES = ("module.", "model.", "backbone.")  # of wrappers around the network
_MOST_PREFIXES = 3


def weights_hash(model: nn.Module) -> str:
    """Hash of the names, types, shapes and bytes of a network's state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def code_hash(model: nn.Module, *others: str) -> str:
    """Hash of the files that define the classes of a network's modules, torch's own left out.

    Args:
        others: names of further modules, such as that of the function which built the network.

    Weights alone do not say what is computed with them: a forward that was edited gives other activations.
    """
    names = {type(module).__module__ for module in model.modules()} | set(others)
    digest = hashlib.sha256()
    for name in sorted(name for name in names if name.partition(".")[0] != "torch"):
        file = getattr(sys.modules.get(name), "__file__", None)
        digest.update(name.encode() + (Path(file).read_bytes() if file and Path(file).is_file() else b""))
    return digest.hexdigest()[:16]


def load_weights(
    model: nn.Module,
    file: str | Path,
    remedy: Callable[[], str] = lambda: "build the network they were trained in",
) -> None:
    """Load a file of weights into a network, every weight of both by its name.

    Args:
        model: any network.
        file: .safetensors, or .pt, .pth, .bin, .ckpt as ``torch.save`` writes them: a state dict, alone or
            as ``{"state_dict": ...}`` or ``{"model": ...}``; the prefixes ``module.``, ``model.`` and
            ``backbone.`` are dropped where the names fit without.
        remedy: what to do about weights that do not fit.

    Raises:
        InputError: where the file is missing, holds more than tensors and plain values, or does not fit.
    """
    own = model.state_dict()
    state = without_prefix(read_weights(file), set(own))
    state = {name: value for name, value in state.items() if name in own or not is_spread(name)}
    for name, value in state.items():
        if name in own and own[name].shape != value.shape:
            held, wanted = (" x ".join(map(str, shape)) for shape in (value.shape, own[name].shape))
            raise InputError(
                f"the weights {file} do not fit: {name} is {held or 'a number'} there and "
                f"{wanted or 'a number'} in the network; {remedy()}"
            )
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for names, what in ((missing, "missing"), (unexpected, "that the network does not have"))
        if names
    ]
    if wrong:
        raise InputError(f"the weights {file} do not fit: {' and '.join(wrong)}; {remedy()}")


def load_start(backbone: nn.Module, weights: str | Path) -> None:
    """Load what a training starts from.

    Args:
        backbone: dense or sparse.
        weights: a run folder, of the same network, dense or sparse, or a file of weights.

    Raises:
        InputError: where it is missing, or of another network.
    """
    if not Path(weights).exists():
        raise InputError(
            f"there is no run or file {weights} to start from; train it first, or set model.weights"
        )
    file = run_checkpoint(weights) if Path(weights).is_dir() else weights
    load_weights(backbone, file, remedy=lambda: _what_fits(backbone, file))


def _what_fits(backbone: nn.Module, file: str | Path) -> str:
    """What to do with weights that do not fit a network."""
    heads = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    own, held = backbone.state_dict(), without_prefix(read_weights(file), set(backbone.state_dict()))
    differ = {name for name in own.keys() & held.keys() if own[name].shape != held[name].shape}
    if differ and all(name.rpartition(".")[0] in heads for name in differ):
        return f"the head is of other classes, so set model.pretrained {file}, which makes a new one"
    try:
        trained = read_checkpoint(file)["hyper_parameters"]
    except InputError:  # no checkpoint of a run
        return "set model.backbone to the network they were trained in"
    args = trained["backbone_args"] or {}
    return f"they are of model.backbone {trained['backbone']} with backbone_args {args}"


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name; nothing in it is run.

    Raises:
        InputError: where the file is missing, of another kind, damaged, or holds pickled code.
    """
    path = Path(file)
    if not path.is_file():
        held = " but a folder, name the file in it" if path.is_dir() else "; name one that exists"
        raise InputError(f"there is no file of weights {file}{held}")
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{file} is no file of weights; it ends in one of {', '.join(_SUFFIXES)}")
    try:
        if path.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{file} is damaged, or holds code, which is never run ({first_line(error)}); "
            "save the state_dict() alone with torch.save or safetensors"
        ) from None
    return _tensors(held, file)


def _tensors(held: Any, file: str | Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(held, dict) and isinstance(held.get(wrapper), dict):
            held = held[wrapper]
    if (
        not isinstance(held, dict)
        or not held
        or not all(isinstance(value, Tensor) for value in held.values())
    ):
        raise InputError(
            f"{file} holds no state dict, alone or under {' or '.join(_WRAPPERS)}; "
            "save the network's state_dict()"
        )
    return held


def without_prefix(state: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """The weights without wrappers' prefixes, where more of their names fit so."""
    best = state
    for _ in range(_MOST_PREFIXES):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        if len(names & set(state)) > len(names & set(best)):
            best = state
    return best
