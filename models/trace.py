"""Follows the unit axis of tensors through one forward pass of any network.

The axis is never guessed from a shape. The operation that makes units tells it (a linear layer and a layer
norm: the last; a convolution and a batch norm: the channels); elementwise operations and sums hand it on; for
one that rearranges (reshape, permute, indexing, a mean over positions) the numbers of the units are sent
through the same operation, and it is seen along which axis they lie afterwards. Whatever else drops it.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath, activations, activations_me
from timm.models.metaformer import StarReLU
from timm.models.nfnet import GammaAct
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from lwta.layers import LWTA, TopK

#: Name of an operation -> axis of the units it makes; minus is counted from the end.
_MADE = {
    "linear": -1, "layer_norm": -1, "rms_norm": -1, "batch_norm": 1, "group_norm": 1, "instance_norm": 1,
    "conv1d": -2, "conv2d": -3, "conv3d": -4, "conv_transpose2d": -3,
}  # fmt: skip
_ELEMENTWISE = frozenset({
    "add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__", "rsub",
    "__isub__", "mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__",
    "true_divide", "__itruediv__", "addcmul", "neg", "pow", "clamp", "clip", "lerp", "where", "relu",
    "relu_", "relu6", "gelu", "silu", "silu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "hardswish",
    "hardsigmoid", "hardtanh", "leaky_relu", "elu", "selu", "celu", "mish", "softplus", "prelu",
    "threshold", "dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_dropout",
    "stochastic_depth", "contiguous", "clone", "detach", "to", "float", "half", "bfloat16", "double",
    "type", "type_as",
})  # fmt: skip
_REARRANGING = frozenset({
    "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "reshape", "reshape_as", "view",
    "view_as", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "__getitem__", "select", "narrow",
    "chunk", "split", "unbind", "roll", "flip", "mean", "sum", "amax",
})  # fmt: skip
#: Change the last two axes, or widen them; axes before stay as they are.
_SPATIAL = frozenset({
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "upsample",
})  # fmt: skip


class Traced(NamedTuple):
    """What one forward pass showed of a module.

    Attributes:
        kind: its class name.
        calls: how often the pass called it; shapes and axes are those of the last call.
        taken: shape of its first input, None where that is no tensor.
        taken_dim: axis of the units there; None where it could not be told.
        returned: shape of its output, None where that is not one tensor.
        dim: axis of the units there; -1 where it is the last.
        returns: class name of the output.
    """

    kind: str
    calls: int
    taken: tuple[int, ...] | None
    taken_dim: int | None
    returned: tuple[int, ...] | None = None
    dim: int | None = None
    returns: str = "nothing"


def trace(
    model: nn.Module, image_size: tuple[int, int], images: int = 1, channels: int = 3
) -> dict[str, Traced]:
    """Every module that one forward pass calls, in the order of the calls.

    Args:
        model: takes images (images, channels, H, W); its mode and statistics are left as they are.
        image_size: (H, W).
        images: how many pass, all of them black.
    """
    follow, modes = _Trace(), [(module, module.training) for module in model.modules()]
    handles = follow.attach(model)
    weight = next((weight for weight in model.parameters() if weight.is_floating_point()), torch.zeros(()))
    try:
        with torch.no_grad(), follow:
            model.eval()(torch.zeros(images, channels, *image_size, device=weight.device, dtype=weight.dtype))
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()
    return follow.seen


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an elementwise activation, or one of ours."""
    home = type(module).__module__
    return isinstance(module, (LWTA, TopK, StarReLU, GammaAct)) or (
        home in ("torch.nn.modules.activation", activations.__name__, activations_me.__name__)
        and not isinstance(module, (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax))
    )


def activations_of(model: nn.Module, seen: Iterable[str]) -> list[str]:
    """The modules among ``seen`` that are activations, and no part of another."""
    found = [name for name in seen if is_activation(model.get_submodule(name))]
    return [name for name in found if not any(name.startswith(f"{other}.") for other in found)]


class _Trace(TorchFunctionMode):
    """Tags tensors with (axis, width). Tagged tensors are kept alive, so that an id stays one tensor's."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[int, tuple[Tensor, int, int]] = {}
        self.seen: dict[str, Traced] = {}

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        handles: list[RemovableHandle] = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._before(name)))
            handles.append(module.register_forward_hook(self._after(name)))
        return handles

    def axis(self, x: object) -> int | None:
        """Axis of the units of a tensor, -1 where it is the last."""
        if not isinstance(x, Tensor) or id(x) not in self.tags:
            return None
        _, axis, width = self.tags[id(x)]
        # An in-place operation that is not followed may have reshaped it.
        if axis >= x.ndim or x.shape[axis] != width:
            return None
        return -1 if axis == x.ndim - 1 else axis

    def _before(self, name: str) -> Callable[[nn.Module, tuple], None]:
        def hook(module: nn.Module, inputs: tuple) -> None:
            x = inputs[0] if inputs else None
            calls = self.seen[name].calls + 1 if name in self.seen else 1
            shape = tuple(x.shape) if isinstance(x, Tensor) else None
            self.seen[name] = Traced(type(module).__name__, calls, shape, self.axis(x))

        return hook

    def _after(self, name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(module: nn.Module, inputs: tuple, out: object) -> None:
            seen = self.seen[name]._replace(returns=type(out).__name__)
            if isinstance(out, Tensor):
                # Operations inside compiled, scripted or hand-written functions are not seen.
                hidden = isinstance(module, (nn.Identity, nn.Dropout, DropPath)) and id(out) not in self.tags
                if hidden or is_activation(module):
                    self._inherit(out, inputs)
                seen = seen._replace(returned=tuple(out.shape), dim=self.axis(out))
            self.seen[name] = seen

        return hook

    def _tag(self, out: Tensor, axis: int | None) -> None:
        if axis is None or not -out.ndim <= axis < out.ndim:
            self.tags.pop(id(out), None)
        else:
            self.tags[id(out)] = (out, axis % out.ndim, out.shape[axis])

    def _inherit(self, out: Tensor, inputs: Iterable[object]) -> None:
        axes = {self.axis(x) for x in inputs if isinstance(x, Tensor) and x.shape == out.shape} - {None}
        self._tag(out, axes.pop() if len(axes) == 1 else None)  # none, or summands that disagree

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        # In place, the input is its own output: what it was must be known before.
        rearranged = self._rearranged(func, args, kwargs) if name in _REARRANGING else None
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor):
            if rearranged is not None and isinstance(out, (tuple, list)):
                for part, axis in zip(out, rearranged, strict=True):
                    self._tag(part, axis)
            elif (
                name == "multi_head_attention_forward"
            ):  # ends in a linear layer; the weights beside are no units
                self._tag(out[0], -1)
        elif name in _MADE:
            self._tag(out, None if _several_axes(name, *args, **kwargs) else _MADE[name])
        elif name in _ELEMENTWISE:
            self._inherit(out, (*args, *kwargs.values()))
        elif name in ("cat", "concat"):
            self._tag(out, self._joined(*args, **kwargs))
        elif name == "pad" or name in _SPATIAL:
            self._tag(out, self._kept(args[0] if args else kwargs["input"], out, name in _SPATIAL))
        else:
            self._tag(out, rearranged[0] if rearranged else None)
        return out

    def _rearranged(self, func: Callable, args: tuple, kwargs: dict) -> list[int | None] | None:
        """Axis of the units in each output, by sending their numbers through the same operation."""
        x = args[0] if args else None
        axis = self.axis(x)
        if axis is None or not isinstance(x, Tensor):
            return None
        # Laid out in memory as x is, for views; whole numbers below 2**53 stay exact in sums.
        numbers = torch.empty_like(x, dtype=torch.float64, device="cpu")
        numbers.movedim(axis, -1).copy_(torch.arange(x.shape[axis], dtype=torch.float64, device="cpu"))
        try:
            out = func(numbers, *args[1:], **kwargs)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return None
        return [_varying(part) for part in ([out] if isinstance(out, Tensor) else out)]

    def _joined(self, tensors: Iterable[Tensor], dim: int = 0, **others: Any) -> int | None:
        """Axis after a concatenation: of positions any may be unknown, of units none."""
        tensors = list(tensors)
        axes = [self.axis(x) for x in tensors]
        told = set(axes) - {None}
        if len(told) != 1:
            return None
        axis, ndim = told.pop(), tensors[0].ndim
        along = others.get("axis", dim)
        assert axis is not None
        return None if along % ndim == axis % ndim and None in axes else axis

    def _kept(self, x: Tensor, out: Tensor, spatial: bool) -> int | None:
        axis = self.axis(x)
        if axis is None or x.ndim != out.ndim or x.shape[axis] != out.shape[axis]:
            return None
        return None if spatial and axis % x.ndim >= x.ndim - 2 else axis


def _several_axes(name: str, x: Tensor, *args: Any, **kwargs: Any) -> bool:
    """Whether a norm has weights along more than one axis, so that it does not tell the units'."""
    shape = kwargs.get("normalized_shape", args[0] if args else ())
    return name in ("layer_norm", "rms_norm") and len(shape) > 1


def _varying(numbers: Tensor) -> int | None:
    """The one axis along which the numbers differ, each from all others; None where there is no such axis."""
    axes = [d for d in range(numbers.ndim) if numbers.numel() and (numbers != numbers.narrow(d, 0, 1)).any()]
    if len(axes) != 1:
        return None
    along = numbers.movedim(axes[0], 0).flatten(1)[:, 0]
    # Units flattened together with their positions lie along one axis, but not one to a place.
    return axes[0] if len(along.unique()) == len(along) else None
