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
from timm.models import DefaultCfg, load_state_dict_from_hf, register_model, register_notrace_module
from timm.models import get_arch_pretrained_cfgs as pretrained_cfgs
from timm.models._hub import load_state_dict_from_path  # timm.models leaves this one out
from torch import Tensor, nn

from lwta.errors import InputError
from lwta.layers import LWTA, TopK
from models.swap import swap

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
        swapped: dict[str, Any] = {key: options.pop(key) for key in (*_OURS, *_SCALES) if key in options}
        if swapped.get("kind", "lwta") in ("relu", "gelu"):
            swapped.setdefault("competitors", None)
        elif not isinstance(swapped.get("competitors"), int):
            swapped = {"active_fraction": ACTIVE_FRACTION} | swapped
        cfg, spreads = options.get("pretrained_cfg"), {}
        if pretrained and isinstance(cfg, dict) and cfg.get("source") in ("hf-hub", "local-dir"):
            # Weights of a sparse network: what its competitions keep has no place before the swap.
            state = _stored(cfg, options.get("cache_dir"))
            spreads = {key: state.pop(key) for key in list(state) if is_spread(key)}
            options["pretrained_cfg"] = cfg | {"source": None, "state_dict": state}
        model = timm.models.model_entrypoint(name)(pretrained=pretrained, **options)
        model.swap_report = swap(model, channels=options.get("in_chans", 3), **swapped)  # type: ignore[assignment]
        strangers = _load_spreads(model, spreads)
        if strangers and not options.get("features_only"):
            site = strangers[0].rpartition(".competition.")[0]
            raise InputError(
                f"the weights hold a competition at {site}, where the network has none; leave sites and "
                "placement as the weights' config.json has them"
            )
        for field in _CFGS:
            if hasattr(model, field):
                found = dict(cfg) if spreads and isinstance(cfg, dict) else dict(getattr(model, field))
                setattr(model, field, found | {"architecture": PREFIX + name})
        return model

    build.__name__ = build.__qualname__ = PREFIX + name
    build.__doc__ = f"``{name}`` with competition in place of activations."
    return build


def _stored(cfg: dict[str, Any], cache_dir: Any) -> dict[str, Tensor]:
    """Weights that lie beside the config.json which this configuration was read from."""
    if cfg["source"] == "local-dir":
        return load_state_dict_from_path(cfg["file"])
    return load_state_dict_from_hf(cfg["hf_hub_id"], cache_dir=cache_dir)


def is_spread(key: str) -> bool:
    """Whether a weight is what a competition keeps of its inputs, which dense networks have not."""
    return key.endswith((".competition.spread", ".competition.batches"))


def _load_spreads(model: nn.Module, spreads: dict[str, Tensor]) -> list[str]:
    """Buffers of competitions by name; returns those that the network has not.

    Networks of features have less of them, and other names.
    """
    own = {_flat(name): value for name, value in model.named_buffers() if is_spread(name)}
    for name, value in spreads.items():
        if _flat(name) in own:
            own[_flat(name)].copy_(value)
    return [name for name in spreads if _flat(name) not in own]


def _flat(key: str) -> str:
    # timm's networks of features keep one within them as "model", or write "layers_0" for "layers.0".
    return key.removeprefix("model.").replace(".", "_")


# What torch.fx traces through timm's networks stops at these: who wins depends on values.
for kind in (LWTA, TopK):
    register_notrace_module(kind)
