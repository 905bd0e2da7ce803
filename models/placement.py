"""Where units compete by default, and where they never do."""

from collections.abc import Mapping
from string import digits

from timm.layers import SelectiveKernel, SplitAttn
from timm.models.resnet import ResNet
from torch import nn
from torch.nn.modules.conv import _ConvNd

from lwta.errors import InputError
from models.trace import Traced, activations_of, is_activation

PLACEMENTS = ("all", "inner", "last")
_SQUASHING = ("Sigmoid", "HardSigmoid", "Hardsigmoid", "Tanh")
#: Networks for positions and patches, beside the units of a block rather than among them.
_BESIDE = frozenset({"stem", "patch_embed", "rel_pos", "cpb_mlp", "meta_mlp"})
_LAYERS_OF_A_GATE = 3
_LEAST_UNITS = 16  # of which one is near 4 %


def gates(model: nn.Module) -> set[str]:
    """Layers and activations of squeeze-excitation and its kin, which weigh units: they never compete.

    A module of at most three layers that squashes by a sigmoid or tanh is a gate with all that it holds, and
    so are the attentions of selective kernels and of split attention, which end in a softmax.
    """
    modules = dict(model.named_modules())
    members = {name for name, module in modules.items() if _is_layer(module) or is_activation(module)}
    squashing = {name for name in members if type(modules[name]).__name__.removesuffix("Me") in _SQUASHING}
    found = set(squashing)
    for holder in {name.rpartition(".")[0] for name in squashing} - {""}:
        held = {name for name in members if name.startswith(f"{holder}.")}
        if sum(_is_layer(modules[name]) for name in held) <= _LAYERS_OF_A_GATE:
            found |= held
    for name, module in modules.items():
        if isinstance(module, SelectiveKernel):
            found |= {member for member in members if member.startswith(f"{name}.attn.")}
        elif isinstance(module, SplitAttn):
            found |= {f"{name}.{member}" for member in ("fc1", "act1", "fc2")}
    return found


def default_sites(model: nn.Module, seen: Mapping[str, Traced], placement: str = "last") -> list[str]:
    """The activations that compete where the config names none.

    A *block* is a numbered module of a network (``blocks.3``, ``layer1.0``) with two or more linear layers or
    convolutions, the smallest that holds an activation. With ``placement="last"`` it is what the last of
    these layers reads: the MLP activation of a transformer, the one before the last convolution of a residual
    block. With ``"inner"`` every activation that a layer of its block reads; where blocks have none, as in
    VGG, both take every one that a later layer reads. With ``"all"`` every activation of the network; of a
    timm ResNet those after the sums and the first one, as published. Gates are left out, and by the first two
    stems, networks of positions, modules that are called several times, axes that could not be told, and
    fewer than 16 units. ``docs/recipe.md`` says what each costs.

    Args:
        model: a built network.
        seen: one pass of it, :func:`models.trace.trace`.

    Returns:
        Names, in the network's order.

    Raises:
        InputError: a network without such an activation.
    """
    left = gates(model)
    acts = [name for name in activations_of(model, seen) if name not in left]
    if placement == "all":
        return [name for name in acts if not _deep_stem(model, name)]
    layers = [name for name in seen if _is_layer(model.get_submodule(name)) and name not in left]
    order = {name: place for place, name in enumerate(seen)}
    read = [
        name for name in acts if layers and order[layers[-1]] > order[name] and _competes(name, seen[name])
    ]
    chosen = _in_blocks(model, read, layers, order, placement)
    shared = [name for name in acts if seen[name].calls > 1]
    if not chosen and not shared:  # a plain sequence of layers
        chosen = read
    if not chosen:
        if not acts:
            raise InputError(
                f"{type(model).__name__} has no activation that is a module, but for gates, so nothing can "
                "compete; give its functional activations modules, such as nn.ReLU()"
            )
        twice = f", where {shared[0]} is called {seen[shared[0]].calls} times in one pass" if shared else ""
        alone = [name for name in acts if name not in shared]
        remedy = f"name model.sites, of {_several(alone)}" if alone else "give each call a module of its own"
        raise InputError(
            f"{type(model).__name__} has no activation of its own that a layer of its block reads{twice}; "
            f"{remedy}"
        )
    return chosen


def _in_blocks(
    model: nn.Module, read: list[str], layers: list[str], order: Mapping[str, int], placement: str
) -> list[str]:
    """Of activations that a layer reads, those that a layer of their block does: all, or a block's last."""
    blocks: dict[str, list[str]] = {}
    for name in read:
        block, own = _block(model, name, layers)
        if own and order[own[-1]] > order[name]:
            blocks.setdefault(block, []).append(name)
    chosen = {name for names in blocks.values() for name in (names if placement == "inner" else names[-1:])}
    return [name for name in read if name in chosen]


def _competes(name: str, seen: Traced) -> bool:
    if seen.taken is None or seen.taken_dim is None or seen.calls > 1 or _BESIDE & set(name.split(".")):
        return False
    return seen.taken[seen.taken_dim] >= _LEAST_UNITS


def _block(model: nn.Module, name: str, layers: list[str]) -> tuple[str, list[str]]:
    """The block of an activation and its layers, in the order of their calls; none outside of blocks."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        block = ".".join(parts[:end])
        if _is_one_of_several(model, block):
            own = [layer for layer in layers if layer.startswith(f"{block}.")]
            if len(own) > 1:
                return block, own
    return "", []


def _is_one_of_several(model: nn.Module, name: str) -> bool:
    """Whether a module is in a list, or its siblings of the same class have its name but for the number."""
    module = model.get_submodule(name)
    parent, _, own = name.rpartition(".")
    if isinstance(module, (nn.Sequential, nn.ModuleList)) or not own[-1].isdigit():
        return False
    siblings = dict(model.get_submodule(parent).named_children())
    stem = own.rstrip(digits)
    alike = [n for n, m in siblings.items() if n.rstrip(digits) == stem and type(m) is type(module)]
    return not stem or len(alike) > 1 or len(siblings) == 1


def _deep_stem(model: nn.Module, name: str) -> bool:
    return isinstance(model, ResNet) and name.startswith("conv1.")


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, _ConvNd))


def _several(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
