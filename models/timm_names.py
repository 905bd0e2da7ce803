"""Every architecture of timm by a sparse name.

The names are registered when :mod:`models` is imported, one for each that timm's registry lists::

    timm.create_model("lwta_deit_tiny_patch16_224", competitors=24)

They take what the architecture takes, and what :func:`models.swap.swap` and :class:`lwta.LWTA` do.
"""

import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

import timm
from timm.models import DefaultCfg, register_model, register_notrace_module
from timm.models import get_arch_pretrained_cfgs as pretrained_cfgs
from torch import nn

from lwta.layers import LWTA, TopK
from models.swap import swap

PREFIX = "lwta_"
#: Of the units of each site, where ``competitors`` is no number and ``active_fraction`` is not given.
ACTIVE_FRACTION = 0.04

#: Sparse name -> configurations by tag. timm looks here, by this name, when a name is registered.
default_cfgs: dict[str, DefaultCfg] = {}
__all__ = ["ACTIVE_FRACTION", "PREFIX", "register"]

_OURS = ("competitors", "active_fraction", "sites", "placement", "dim")
_SCALES = tuple(inspect.signature(LWTA).parameters)[2:]


def register() -> None:
    """Register the sparse name of every architecture that has none yet."""
    names = set(timm.list_models())
    for name in names:
        sparse = PREFIX + name
        if name.startswith(PREFIX) or sparse in names:
            continue
        by_tag = {key.partition(".")[2]: config for key, config in pretrained_cfgs(name).items()}
        if by_tag:
            default_cfgs[sparse] = DefaultCfg(tags=deque(by_tag), cfgs=by_tag)
        register_model(_builder(name))


def _builder(name: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        swapped: dict[str, Any] = {key: options.pop(key) for key in (*_OURS, *_SCALES) if key in options}
        if not isinstance(swapped.get("competitors"), int):
            swapped = {"active_fraction": ACTIVE_FRACTION} | swapped
        model = timm.models.model_entrypoint(name)(pretrained=pretrained, **options)
        model.swap_report = swap(model, channels=options.get("in_chans", 3), **swapped)  # type: ignore[assignment]
        for field in ("pretrained_cfg", "default_cfg"):
            if hasattr(model, field):
                setattr(model, field, dict(getattr(model, field), architecture=PREFIX + name))
        return model

    build.__name__ = build.__qualname__ = PREFIX + name
    build.__doc__ = f"``{name}`` with competition in place of activations."
    return build


# What torch.fx traces through timm's networks stops at these: who wins depends on values.
for kind in (LWTA, TopK):
    register_notrace_module(kind)
