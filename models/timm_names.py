"""Every architecture of timm by a sparse name.

The names are registered when :mod:`models` is imported, one for each that timm's registry lists::

    timm.create_model("lwta_deit_tiny_patch16_224", competitors=24)

They take what the architecture takes, and what :func:`models.swap.swap` and :class:`lwta.LWTA` do.
"""

import inspect
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import timm
from timm.models import (
    DefaultCfg,
    load_state_dict,
    load_state_dict_from_hf,
    register_model,
    register_notrace_module,
)
from timm.models import get_arch_pretrained_cfgs as pretrained_cfgs
from timm.models._hub import load_state_dict_from_path  # timm.models leaves this one out
from torch import Tensor, nn

from lwta.errors import InputError
from lwta.layers import LWTA, TopK
from models.swap import SwapReport, swap

PREFIX = "lwta_"
#: Of the units of each site, where ``competitors`` is no number and ``active_fraction`` is not given.
ACTIVE_FRACTION = 0.04
#: How timm names a model that lies elsewhere: in a repository of the hub, or a folder.
HUB, FOLDER = ("hf-hub:", "hf_hub:"), "local-dir:"

#: Sparse name -> configurations by tag. timm looks here, by this name, when a name is registered.
default_cfgs: dict[str, DefaultCfg] = {}
__all__ = ["ACTIVE_FRACTION", "FOLDER", "HUB", "PREFIX", "is_spread", "register"]

_OURS = ("kind", "competitors", "active_fraction", "sites", "placement", "dim")
_SCALES = tuple(inspect.signature(LWTA).parameters)[2:]
_OF_PARTS = (
    "features_only",
    "out_indices",
    "feature_cls",
    "num_classes",
    "global_pool",
    "pretrained_model_args",
)
_HOLDERS = ("model.", "body.", "graph_module.")
_OF_U = ("competitors", "active_fraction")
#: Arguments of a sparse name that its dense architecture does not take, or that the data decides.
NOT_BUILT = (*_OURS, *_SCALES, "num_classes", "in_chans", "global_pool")
_CFGS = ("pretrained_cfg", "default_cfg")  # the second is timm's older name of the first


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
        ours = {key: options.pop(key) for key in (*_OURS, *_SCALES) if key in options}
        state = _stored(options) if pretrained else None
        spreads: dict[str, Tensor] = {}
        if state is not None:  # what competitions keep has no place before the swap
            spreads = {key: state.pop(key) for key in list(state) if is_spread(key)}
        model = _dense(name, pretrained, state, options)
        chosen = _as_asked(ours, options.get("pretrained_model_args") or {})
        if options.get("features_only") or options.get("num_classes") == 0:
            # The rule looks at a whole network: what reads an activation may be left out of this one.
            rest = {key: value for key, value in options.items() if key not in _OF_PARTS}
            report = swap(timm.models.model_entrypoint(name)(**rest), **chosen)
            chosen |= _of_part(model, report)
        model.swap_report = swap(model, **chosen)  # type: ignore[assignment]
        strangers = _load_spreads(model, spreads)
        if strangers and not options.get("features_only"):
            site = strangers[0].rpartition(".competition.")[0]
            raise InputError(
                f"the weights hold a competition at {site}, where the network has none; leave sites and "
                "placement as the weights' config.json has them"
            )
        for field in _CFGS:
            if hasattr(model, field):
                setattr(model, field, dict(getattr(model, field), architecture=PREFIX + name))
        return model

    build.__name__ = build.__qualname__ = PREFIX + name
    build.__doc__ = f"``{name}`` with competition in place of activations."
    return build


def _as_asked(ours: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`models.swap.swap`; what is not said of U is an active fraction.

    What a config.json stores of U gives way to what the caller says otherwise.
    """
    asked = dict(ours)
    said = {key for key in ("kind", *_OF_U) if key in asked and asked[key] != stored.get(key)}
    for key in _OF_U:
        if key not in said and (said & set(_OF_U) or asked.get("kind") in ("relu", "gelu")):
            asked.pop(key, None)
    if asked.get("kind", "lwta") in ("relu", "gelu"):
        asked.setdefault("competitors", None)
    elif isinstance(asked.get("competitors"), dict) or asked.get("competitors") is None:
        asked = {"active_fraction": ACTIVE_FRACTION} | asked
    elif asked.get("active_fraction") is not None:
        raise InputError("competitors and active_fraction both say U; give one of them, or U by glob")
    return asked


def _dense(
    name: str, pretrained: bool, state: dict[str, Tensor] | None, options: dict[str, Any]
) -> nn.Module:
    """The network as timm builds it, with the weights that were read."""
    build = timm.models.model_entrypoint(name)
    if state is None:
        return build(pretrained=pretrained, **options)
    cfg, overlay = options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay") or {}
    held = {"state_dict": state, "source": None, "file": None}
    model = build(pretrained=True, **options | {"pretrained_cfg_overlay": {**overlay, **held}})
    for field in _CFGS:  # as read, or each copy of the network would hold the weights again
        if hasattr(model, field):
            given = dict(cfg) if isinstance(cfg, dict) else {}
            setattr(model, field, dict(getattr(model, field), state_dict=None) | given)
    return model


def _stored(options: dict[str, Any]) -> dict[str, Tensor] | None:
    """Weights that may be of a sparse network: beside a config.json, or those a configuration brings."""
    cfg, overlay = options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay") or {}
    if overlay.get("state_dict") is not None:
        return dict(overlay["state_dict"])
    if overlay.get("file") is not None and not overlay.get("custom_load"):
        return load_state_dict(overlay["file"], weights_only=True)
    if not isinstance(cfg, dict) or cfg.get("source") not in ("hf-hub", "local-dir"):
        return None
    if cfg["source"] == "local-dir":
        return load_state_dict_from_path(cfg["file"])
    return load_state_dict_from_hf(cfg["hf_hub_id"], cache_dir=options.get("cache_dir"))


def _of_part(model: nn.Module, report: SwapReport) -> dict[str, Any]:
    """Sites and U of a whole network by the names that a part of it has for them."""
    own = _by_flat_name(name for name, _ in model.named_modules())
    sites = {own[_flat(s.name)]: s for s in report.swapped if _flat(s.name) in own}
    if not sites:
        raise InputError(
            "none of the competing layers of the network lies before the features that are asked for"
        )
    competitors = {name: site.competitors for name, site in sites.items()}
    lwta = all(competitors.values())
    return {"sites": list(sites), "competitors": competitors if lwta else None, "active_fraction": None}


def is_spread(key: str) -> bool:
    """Whether a weight is what a competition keeps of its inputs, which dense networks have not."""
    return key.endswith((".competition.spread", ".competition.batches"))


def _load_spreads(model: nn.Module, spreads: dict[str, Tensor]) -> list[str]:
    """Buffers of competitions by name; returns those that the network has not."""
    buffers = dict(model.named_buffers())
    own = _by_flat_name(name for name in buffers if is_spread(name))
    for name, value in spreads.items():
        if _flat(name) in own:
            buffers[own[_flat(name)]].copy_(value)
    return [name for name in spreads if _flat(name) not in own]


def _by_flat_name(names: Iterable[str]) -> dict[str, str]:
    """Names by those of the whole network, which networks of features keep within them, or flattened."""
    found: dict[str, str] = {}
    for name in names:
        for holder in ("", *(holder for holder in _HOLDERS if name.startswith(holder))):
            found.setdefault(_flat(name.removeprefix(holder)), name)
    return found


def _flat(name: str) -> str:
    return name.replace(".", "_")


# What torch.fx traces through timm's networks stops at these: who wins depends on values.
for kind in (LWTA, TopK):
    register_notrace_module(kind)
