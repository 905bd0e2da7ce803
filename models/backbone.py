"""timm backbones made sparse, from nothing, from timm's weights or from a file of them."""

from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lwta.errors import InputError
from models.swap import SwapReport, swap
from models.timm_names import NOT_BUILT, PREFIX, is_spread
from models.weights import read_weights, without_prefix
from models.zoo import first_line

_TRIED = 12  # architectures of like names, for weights that do not fit


def create_backbone(
    name: str,
    num_classes: int,
    *,
    pretrained: bool | str = False,
    backbone_args: dict[str, Any] | None = None,
    **swap_args: Any,
) -> tuple[nn.Module, SwapReport]:
    """Build ``timm.create_model(name)`` and swap its activations.

    Args:
        name: timm architecture, or ``hf-hub:...`` / ``local-dir:...`` as timm takes them.
        num_classes: size of the head.
        pretrained: load timm's weights, or those of a file; they stay in place, the swap holds no parameters.
            As timm does: a head of another size starts anew, and position embeddings and input channels are
            fitted. Every other weight of the network must be there.
        backbone_args: further arguments of ``timm.create_model``.
        swap_args: arguments of :func:`models.swap.swap`.

    Returns:
        The network and what was swapped and left in it.

    Raises:
        InputError: what timm cannot build, a file that is none or does not fit, and what ``swap`` refuses.
    """
    args = backbone_args or {}
    if isinstance(pretrained, str):
        model = _from_file(name, num_classes, pretrained, args)
    else:
        model = _build(name, num_classes, args, pretrained=pretrained)
    built = getattr(model, "pretrained_cfg", {}).get("architecture") or ""
    if built.startswith(PREFIX):
        own = {k: v for k, v in getattr(model, "_model_args", {}).items() if k not in NOT_BUILT}
        dense = built.removeprefix(PREFIX) + (f" with backbone_args {own}" if own else "")
        raise InputError(
            f"{name} is sparse already, and here its config says how units compete; name model.backbone "
            f"{dense}, and a file of weights, if any, as model.pretrained"
        )
    return model, swap(model, channels=args.get("in_chans", 3), **swap_args)


def _build(name: str, num_classes: int, args: dict[str, Any], **weights: Any) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=num_classes, **weights, **args)
    except InputError:
        raise
    except Exception as error:  # whatever the architecture's own code says of its arguments
        if "Unknown model" in str(error):
            raise InputError(f"timm knows no model {name!r}; timm.list_models('*') lists them") from None
        reason = str(error).strip().split("\n")[0]
        if weights.get("pretrained") is True and not str(error).startswith("Invalid pretrained tag"):
            _build(name, num_classes, args)  # says so itself if it is not the weights
            raise InputError(
                f"the weights of {name} cannot be fetched ({reason[:160]}); download them and set "
                "model.pretrained FILE"
            ) from error
        told = f" with {args}" if args else ""
        raise InputError(f"timm cannot build {name!r}{told} ({reason})") from error


def _from_file(name: str, num_classes: int, file: str, args: dict[str, Any]) -> nn.Module:
    """A network with the weights of a file, fitted by timm."""
    plain = _build(name, num_classes, args)
    state = without_prefix(read_weights(file), set(plain.state_dict()))
    state = {key: value for key, value in state.items() if not is_spread(key)}
    classifier = getattr(plain, "pretrained_cfg", {}).get("classifier") or ()
    heads = [f"{head}.weight" for head in ([classifier] if isinstance(classifier, str) else classifier)]
    held = next((len(state[head]) for head in heads if head in state), 0)
    # Where the head is new, timm passes over whatever else is missing; so once with the file's own head.
    for classes in dict.fromkeys((held, num_classes)):
        source = {"state_dict": dict(state), "source": None, "num_classes": held}
        try:
            model = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay=source, num_classes=classes, **args
            )
        except Exception as error:
            raise _misfit(name, file, state, held, args, error) from error
    for field in ("pretrained_cfg", "default_cfg"):  # or each copy of the network would hold the file again
        setattr(model, field, getattr(plain, field))
    return model


def _misfit(
    name: str, file: str, state: dict[str, Tensor], held: int, args: dict[str, Any], error: Exception
) -> InputError:
    of = next((other for other in _like(name) if _fits(state, other, held, args)), None)
    remedy = f"they fit {of}" if of else "name the architecture they were trained in"
    return InputError(f"the weights {file} do not fit {name} ({first_line(error).rstrip('.')}); {remedy}")


def _like(name: str) -> list[str]:
    """Architectures of the same module of timm, the nearest names first."""
    if not timm.is_model(name.split(".")[0]):
        return []
    module = timm.models.model_entrypoint(name.split(".")[0]).__module__.rpartition(".")[2]
    names = [other for other in timm.list_models(module=module) if not other.startswith(PREFIX)]
    return get_close_matches(name.split(".")[0], names, _TRIED, cutoff=0)


def _fits(state: dict[str, Tensor], name: str, classes: int, args: dict[str, Any]) -> bool:
    try:
        with torch.device("meta"):
            own = timm.create_model(name, num_classes=classes, **args).state_dict()
    except Exception:  # an architecture that does not take these arguments
        return False
    return {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in state.items()}
