"""Put a competition in place of the activations of a built network, chosen by glob.

The swap happens after construction, so it reaches every architecture whose activations are modules
and keeps pretrained weights.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lwta.errors import InputError
from lwta.functional import nearest_divisors
from lwta.layers import LWTA, TopK
from models import input_size
from models.sites import Site, find_sites

KINDS = ("lwta", "topk", "relu", "gelu")
PLACEMENTS = ("all", "inner", "last")
#: Activations inside a block of a ResNet, in order.
_INNER = {BasicBlock: ["act1"], Bottleneck: ["act1", "act2"]}


class SwapReport(NamedTuple):
    """What a swap did.

    Attributes:
        swapped: sites that now hold the new activation.
        left: activation modules left as they were.
        chosen: sites the globs match: those swapped or, in a dense network, those that would be.
    """

    swapped: list[Site]
    left: list[Site]
    chosen: list[Site]

    def __str__(self) -> str:
        kinds = sorted({site.kind for site in self.swapped})
        swapped = (
            f"{' and '.join(kinds) or 'nothing'} at {len(self.swapped)} of {len(self.swapped + self.left)}"
        )
        left = ", ".join(site.name for site in self.left) or "none"
        return f"Activations: {swapped} sites; left as built: {left}"


def default_sites(model: nn.Module, placement: str = "last") -> list[str]:
    """Globs of the sites that a family swaps where the config names none.

    Vision transformers: the MLP activations. ResNets: with ``placement="last"`` what the last convolution
    of each block reads; with ``"inner"`` every ReLU inside a block; with ``"all"`` those after the residual
    sums and in the stem too, as published. ``docs/recipe.md`` says what each costs.
    """
    if placement not in PLACEMENTS:
        raise InputError(f"placement is one of {', '.join(PLACEMENTS)}, not {placement!r}")
    if isinstance(model, VisionTransformer):
        return ["blocks.*.mlp.act"]
    if isinstance(model, ResNet):
        if placement == "all":
            return ["act1", "layer*.act[123]"]
        begin = -1 if placement == "last" else 0
        return [
            f"{name}.{act}"
            for name, module in model.named_modules()
            for act in _INNER.get(type(module), [])[begin:]
        ]
    raise InputError(
        f"no default sites are known for {type(model).__name__}; name its activations in model.sites"
    )


def swap(
    model: nn.Module,
    kind: str = "lwta",
    competitors: int | None = 24,
    *,
    sites: list[str] | None = None,
    placement: str = "last",
    dim: int | None = None,
    image_size: tuple[int, int] | None = None,
    **scales: Any,
) -> SwapReport:
    """Replace the activations matched by ``sites``, in place.

    Args:
        model: a built network.
        kind: ``lwta``, ``topk`` (k = D / competitors at each position), ``relu`` or ``gelu``.
        competitors: U for ``lwta`` and ``topk``; None leaves the network dense, as it was built.
        sites: globs over module names; None takes :func:`default_sites`.
        placement: for :func:`default_sites`.
        dim: axis of the units, for sites where the trace cannot tell it.
        image_size: (H, W) of the traced pass; None is what a timm model was built for, of others (224, 224).
        scales: further arguments of :class:`lwta.LWTA`. Its defaults are the recipe's, but for balanced use,
            a term of the loss: :func:`models.loss.training_loss`.

    Returns:
        What was swapped, what was left, and what the globs match.

    Raises:
        InputError: a glob that matches nothing, a width that U does not divide, an axis that cannot
            be told, a module called at several sites, kind and competitors that contradict.
    """
    _check_kind(kind, competitors)
    found = find_sites(model, image_size or input_size.image_size(model))
    dense = competitors is None and kind in ("lwta", "topk")
    if dense and sites is None and not isinstance(model, (VisionTransformer, ResNet)):
        return SwapReport([], found, found)  # no default sites to compare with: all of them
    chosen = _match(found, sites if sites is not None else default_sites(model, placement))
    if dense:
        return SwapReport([], found, chosen)
    # Every replacement is built before the first is put in, so a refusal leaves the model whole.
    new = {site.name: _replacement(kind, competitors, _told(site, dim), scales) for site in chosen}
    for name, module in new.items():
        model.set_submodule(name, module.train(model.get_submodule(name).training))
    swapped = [_told(site, dim)._replace(kind=type(new[site.name]).__name__) for site in chosen]
    return SwapReport(swapped, [site for site in found if site.name not in new], swapped)


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


def _replacement(kind: str, competitors: int | None, site: Site, scales: dict[str, Any]) -> nn.Module:
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
