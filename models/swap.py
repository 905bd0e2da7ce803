"""Put a competition in place of the activations of a built network, chosen by glob.

The swap happens after construction, so it reaches every architecture whose activations are modules
and keeps pretrained weights.
"""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn

from lwta.errors import InputError
from lwta.layers import LWTA, TopK
from models import input_size
from models.competitors import Competitors, checked, chooser
from models.placement import PLACEMENTS, default_sites, gates
from models.sites import Site, sites_in
from models.trace import Traced, trace

_HOOKS = (  # timm's networks of features find what they return by these
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


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


def swap(
    model: nn.Module,
    kind: str = "lwta",
    competitors: Competitors | None = 24,
    *,
    active_fraction: float | None = None,
    sites: str | list[str] | None = None,
    placement: str = "last",
    dim: int | None = None,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    **scales: Any,
) -> SwapReport:
    """Replace the activations matched by ``sites``, in place.

    Args:
        model: a built network.
        kind: ``lwta``, ``topk`` (k = D / competitors at each position), ``relu`` or ``gelu``.
        competitors: U for ``lwta`` and ``topk``, one for all or by glob of the site's name, the first that
            matches; None leaves the network dense, as it was built.
        active_fraction: in place of one number of ``competitors``: each site takes the U that divides its
            width and is nearest in ratio to one over this, but for those that globs of ``competitors`` match.
        sites: globs over module names; None takes :func:`models.placement.default_sites`. Gates are left.
        placement: for those.
        dim: axis of the units, for sites where the trace cannot tell it.
        image_size: (H, W) of the traced pass; None is what a timm model was built for, of others (224, 224).
        channels: of its images; None is what a timm model was built for, of others 3.
        scales: further arguments of :class:`lwta.LWTA`. Its defaults are the recipe's, but for balanced use,
            a term of the loss: :func:`models.loss.training_loss`.

    Returns:
        What was swapped, what was left, and what the globs match.

    Raises:
        InputError: a glob that matches nothing or gates alone, a width that U does not divide, an axis that
            cannot be told, a module called at several sites, kind and competitors that contradict.
    """
    competitors = checked(kind, competitors, active_fraction)
    if placement not in PLACEMENTS:
        raise InputError(f"placement is one of {', '.join(PLACEMENTS)}, not {placement!r}")
    seen = _traced(
        model,
        image_size or input_size.image_size(model),
        channels or input_size.image_channels(model),
    )
    sites = [sites] if isinstance(sites, str) else sites
    found, dense = sites_in(model, seen), competitors is None and active_fraction is None
    if sites is not None:
        chosen = _match(found, sites, gates(model))
    else:
        try:
            named = set(default_sites(model, seen, placement))
        except InputError:
            if not dense:
                raise
            named = {site.name for site in found}  # no default sites to compare with: all of them
        chosen = [site for site in found if site.name in named]
    if dense and kind in ("lwta", "topk"):
        return SwapReport([], found, chosen)
    # Every replacement is built before the first is put in, so a refusal leaves the model whole.
    choose = chooser([site.name for site in chosen], competitors, active_fraction)
    new = {site.name: _replacement(kind, choose, _told(site, dim), scales) for site in chosen}
    for name, module in new.items():
        _put(model, name, module)
    swapped = [_swapped(_told(site, dim), new[site.name]) for site in chosen]
    return SwapReport(swapped, [site for site in found if site.name not in new], swapped)


def _traced(model: nn.Module, size: tuple[int, int], channels: int) -> dict[str, Traced]:
    try:
        return trace(model, size, channels=channels)
    except Exception as error:  # whatever the network's own code says of images
        reason = str(error).strip().split("\n")[0][:160]
        raise InputError(
            f"one pass of {type(model).__name__} on images of {channels} x {size[0]} x {size[1]} fails "
            f"({type(error).__name__}: {reason}); give image_size=(H, W) and channels as it takes them"
        ) from error


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set a module wherever the network holds the old one, with its mode and the hooks of who watches it."""
    old = model.get_submodule(name)
    module.train(old.training)
    for hooks in _HOOKS:
        getattr(module, hooks).update(getattr(old, hooks))
    for alias, held in list(model.named_modules(remove_duplicate=False)):
        if held is old:
            model.set_submodule(alias, module)


def _match(found: list[Site], globs: Iterable[str], never: set[str]) -> list[Site]:
    chosen: set[str] = set()
    for glob in globs:
        hits = {site.name for site in found if fnmatchcase(site.name, glob)}
        if not hits:
            names = ", ".join(site.name for site in found) or "none"
            raise InputError(f"sites {glob!r} matches no activation; the network has: {names}")
        if hits <= never:
            raise InputError(f"sites {glob!r} matches gates alone, which weigh units; they never compete")
        chosen |= hits - never
    return [site for site in found if site.name in chosen]


def _told(site: Site, dim: int | None) -> Site:
    if site.dim is None and dim is not None:
        return site._replace(dim=dim)
    return site


def _swapped(site: Site, module: nn.Module) -> Site:
    u = None
    if isinstance(module, LWTA):
        u = module.competition.competitors
    elif isinstance(module, TopK):
        u = (site.units or 0) // module.k
    return site._replace(kind=type(module).__name__, competitors=u)


def _replacement(
    kind: str, choose: Callable[[str, int], int], site: Site, scales: dict[str, Any]
) -> nn.Module:
    if kind in ("relu", "gelu"):
        return nn.ReLU() if kind == "relu" else nn.GELU()
    if site.calls > 1:
        raise InputError(
            f"{site.name} is called {site.calls} times in one pass; a competition needs a module "
            "of its own at each site, so leave it out of model.sites or give each call its module"
        )
    if site.dim is None or site.units is None:
        raise InputError(
            f"the axis of the units of {site.name} cannot be told from what feeds it; set model.dim"
        )
    u = choose(site.name, site.units)
    return TopK(site.units // u, site.dim) if kind == "topk" else LWTA(u, site.dim, **scales)
