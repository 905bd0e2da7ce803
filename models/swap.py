"""Put a competition in place of the activations of a built network, chosen by glob.

The swap happens after construction, so it reaches every architecture whose activations are modules
and keeps pretrained weights. The axis of the units is never guessed from a shape: a forward pass
is traced, each activation's input is followed to the module that produced it, and that module's
type tells the axis.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from timm.layers import DropPath, LayerNorm2d, activations
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from lwta.errors import InputError
from lwta.functional import nearest_divisors
from lwta.layers import LWTA, TopK

KINDS = ("lwta", "topk", "relu", "gelu")


class Site(NamedTuple):
    """An activation of a network.

    Attributes:
        name: module name.
        kind: class name of the module there.
        dim: axis of the units, None where it could not be told.
        shape: of its input in the traced pass.
        calls: how often one forward pass calls it.
    """

    name: str
    kind: str
    dim: int | None
    shape: tuple[int, ...]
    calls: int

    @property
    def units(self) -> int | None:
        """D, or None where the axis could not be told."""
        return None if self.dim is None else self.shape[self.dim]


class SwapReport(NamedTuple):
    """Sites now holding the new activation, and the activation modules left as they were."""

    swapped: list[Site]
    left: list[Site]


def default_sites(model: nn.Module, placement: str = "all") -> list[str]:
    """Globs of the sites that a family swaps where the config names none.

    Vision transformers: the MLP activations. ResNets: with ``placement="all"`` every ReLU, the ones
    after the residual sum included, as published; with ``"inner"`` only those inside a block.
    """
    if placement not in ("all", "inner"):
        raise InputError(f"placement is 'all' or 'inner', not {placement!r}")
    if isinstance(model, VisionTransformer):
        return ["blocks.*.mlp.act"]
    if isinstance(model, ResNet):
        if placement == "all":
            return ["act1", "layer*.act[123]"]
        inner = {BasicBlock: ["act1"], Bottleneck: ["act1", "act2"]}
        return [
            f"{name}.{act}" for name, module in model.named_modules() for act in inner.get(type(module), [])
        ]
    raise InputError(
        f"no default sites are known for {type(model).__name__}; name its activations in model.sites"
    )


def find_sites(model: nn.Module, image_size: tuple[int, int]) -> list[Site]:
    """The activation modules that one forward pass reaches, with axis and width.

    Args:
        model: takes images (1, 3, H, W); its mode and statistics are left as they are.
        image_size: (H, W).
    """
    trace = _LayoutTrace()
    mode = model.training
    handles = trace.attach(model)
    try:
        with torch.no_grad(), trace:
            model.eval()(torch.zeros(1, 3, *image_size, device=next(model.parameters()).device))
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    return list(trace.sites.values())


def swap(
    model: nn.Module,
    kind: str = "lwta",
    competitors: int | None = 24,
    *,
    sites: list[str] | None = None,
    placement: str = "all",
    dim: int | None = None,
    image_size: tuple[int, int] = (224, 224),
    **scales: float,
) -> SwapReport:
    """Replace the activations matched by ``sites``, in place.

    Args:
        model: a built network.
        kind: ``lwta``, ``topk`` (k = D / competitors at each position), ``relu`` or ``gelu``.
        competitors: U for ``lwta`` and ``topk``; None leaves the network dense, as it was built.
        sites: globs over module names; None takes :func:`default_sites`.
        placement: for :func:`default_sites`.
        dim: axis of the units, for sites where the trace cannot tell it.
        image_size: (H, W) of the traced pass.
        scales: ``beta``, ``noise`` and ``tau`` of :class:`lwta.LWTA`.

    Returns:
        What was swapped and what was left.

    Raises:
        InputError: a glob that matches nothing, a width that U does not divide, an axis that cannot
            be told, a module called at several sites, kind and competitors that contradict.
    """
    _check_kind(kind, competitors)
    found = find_sites(model, image_size)
    if competitors is None and kind in ("lwta", "topk"):
        return SwapReport([], found)
    chosen = _match(found, sites if sites is not None else default_sites(model, placement))
    # Every replacement is built before the first is put in, so a refusal leaves the model whole.
    new = {site.name: _replacement(kind, competitors, _told(site, dim), scales) for site in chosen}
    for name, module in new.items():
        model.set_submodule(name, module)
    swapped = [_told(site, dim)._replace(kind=type(new[site.name]).__name__) for site in chosen]
    return SwapReport(swapped, [site for site in found if site.name not in new])


def _check_kind(kind: str, competitors: int | None) -> None:
    if kind not in KINDS:
        raise InputError(f"activation is one of {', '.join(KINDS)}, not {kind!r}")
    if competitors is not None and competitors < 2:
        raise InputError(
            f"a block needs at least 2 competitors, got {competitors}; null is the dense network"
        )
    if kind in ("relu", "gelu") and competitors is not None:
        raise InputError(f"{kind} has no competitors; set competitors to null")


def _match(found: list[Site], globs: Iterable[str]) -> list[Site]:
    chosen: dict[str, Site] = {}
    for glob in globs:
        hits = [site for site in found if fnmatchcase(site.name, glob)]
        if not hits:
            names = ", ".join(site.name for site in found) or "none"
            raise InputError(f"sites {glob!r} matches no activation; the network has: {names}")
        chosen.update((site.name, site) for site in hits)
    return list(chosen.values())


def _told(site: Site, dim: int | None) -> Site:
    if site.dim is None and dim is not None:
        return site._replace(dim=dim)
    return site


def _replacement(kind: str, competitors: int | None, site: Site, scales: dict[str, float]) -> nn.Module:
    if site.calls > 1:
        raise InputError(
            f"{site.name} is called {site.calls} times in one pass; a competition needs a module "
            "of its own at each site, so leave it out of model.sites or give each call its module"
        )
    if kind in ("relu", "gelu"):
        return nn.ReLU() if kind == "relu" else nn.GELU()
    if site.dim is None or site.units is None:
        raise InputError(
            f"the axis of the units of {site.name} cannot be told from what feeds it; set model.dim"
        )
    assert competitors is not None
    if site.units % competitors:
        nearest = ", ".join(map(str, nearest_divisors(site.units, competitors)))
        raise InputError(
            f"{competitors} competitors do not divide the {site.units} units of {site.name}; "
            f"the nearest numbers that do are {nearest}"
        )
    if kind == "topk":
        return TopK(site.units // competitors, site.dim)
    return LWTA(competitors, site.dim, **scales)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an elementwise activation, or one of ours."""
    home = type(module).__module__
    return isinstance(module, (LWTA, TopK)) or (
        home in ("torch.nn.modules.activation", activations.__name__)
        and not isinstance(module, (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax))
    )


class _LayoutTrace(TorchFunctionMode):
    """Follows the unit axis of tensors through one forward pass.

    Layers tag what they return with (axis, width); activations, dropout and sums hand the tag on;
    anything else drops it. Tagged tensors are kept alive, so that an id stays one tensor's.
    """

    _SUMS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "mul", "mul_"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[int, tuple[Tensor, int, int]] = {}
        self.sites: dict[str, Site] = {}

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        handles = []
        for name, module in model.named_modules():
            if is_activation(module):
                handles.append(module.register_forward_pre_hook(self._at_site(name)))
            if is_activation(module) or not any(module.children()):
                handles.append(module.register_forward_hook(self._after_module))
        return handles

    def _at_site(self, name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls = self.sites[name].calls + 1 if name in self.sites else 1
            x = inputs[0]
            tag = self.tags.get(id(x))
            told = tag is not None and x.shape[tag[1]] == tag[2]
            dim = tag[1] if tag is not None and told else None
            self.sites[name] = Site(name, type(module).__name__, dim, tuple(x.shape), calls)

        return hook

    def _after_module(self, module: nn.Module, inputs: tuple, out: object) -> None:
        if not isinstance(out, Tensor):
            return
        layout = _layout(module)
        if layout is not None:
            self.tags[id(out)] = (out, *layout)
        elif isinstance(module, (nn.Identity, nn.Dropout, DropPath)) or is_activation(module):
            self._inherit(out, inputs)

    def _inherit(self, out: Tensor, inputs: Iterable[object]) -> None:
        for x in inputs:
            if isinstance(x, Tensor) and x.shape == out.shape and id(x) in self.tags:
                self.tags[id(out)] = (out, *self.tags[id(x)][1:])
                return

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and getattr(func, "__name__", "") in self._SUMS:
            self._inherit(out, args)
        return out


def _layout(module: nn.Module) -> tuple[int, int] | None:
    """(axis, width) of what a layer returns; None where its type does not tell."""
    if isinstance(module, nn.Linear):
        return -1, module.out_features
    if isinstance(module, nn.Conv2d):
        return 1, module.out_channels
    if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
        return 1, module.num_features
    if isinstance(module, nn.GroupNorm):
        return 1, module.num_channels
    if isinstance(module, LayerNorm2d):  # before its parent LayerNorm: it normalises NCHW
        return 1, module.normalized_shape[0]
    if isinstance(module, nn.LayerNorm):
        return -1, module.normalized_shape[-1]
    return None
