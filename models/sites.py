"""The activation sites of a network, and the axis along which each one's units lie.

The axis is never guessed from a shape: a forward pass is traced, each activation's input is followed
to the module that produced it, and that module's type tells the axis.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from timm.layers import DropPath, LayerNorm2d, activations
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from lwta.layers import LWTA, TopK


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
        tags = {
            self.tags[id(x)][1:]
            for x in inputs
            if isinstance(x, Tensor) and x.shape == out.shape and id(x) in self.tags
        }
        if len(tags) == 1:
            self.tags[id(out)] = (out, *tags.pop())
        else:  # none, or summands that disagree
            self.tags.pop(id(out), None)

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
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return -1, module.normalized_shape[0]
    return None
