"""The compiled loops of :mod:`lwta.cpu` as operators of torch, for float32 units in blocks on the CPU.

Units have any rank and lie along ``dim``, counted from the front. The loops are imported, and with them what
compiles them, when an operator first runs. An operator's way through torch costs more than a small
competition, so where nothing could see it pass, its function is called instead.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd.forward_ad import unpack_dual

from lwta.noise import in_three


def compiled_for(x: Tensor) -> bool:
    """Whether these operators serve for such units; an exported network goes where there are none."""
    if torch.compiler.is_exporting() or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    return torch.compiler.is_compiling() or not is_transformed(x)


def is_transformed(x: Tensor) -> bool:
    """Whether a transform of torch.func or a forward-mode derivative rides on a tensor; loops drop it."""
    return is_functorch_wrapped_tensor(x) or unpack_dual(x).tangent is not None


def as_tensor(scale: float | Tensor) -> Tensor:
    """A scale as the operators take it."""
    if isinstance(scale, Tensor):
        return scale
    # A product: torch.compile takes what torch.tensor is given for a constant, and compiles anew for each.
    return torch.ones((), dtype=torch.float64) * scale


def _operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """A function of units, more, and at the end scales, as an operator for autograd functions to call.

    Called with ``scales``, numbers or tensors, it goes through torch where somebody compiles, traces or
    follows operators or a tensor is more than its memory. Outside autograd functions gradients would be
    lost.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        operator = torch.library.custom_op(name, mutates_args=())(function)

        @wraps(function)
        def call(*arguments: Any, scales: tuple[float | Tensor, ...]) -> Any:
            if _followed() or not all(_plain(x) for x in arguments if isinstance(x, Tensor)):
                return operator(*arguments, *map(as_tensor, scales))
            return function(*arguments, *scales)

        call.register_fake = operator.register_fake  # type: ignore[attr-defined]
        return call

    return decorate


def _followed() -> bool:
    """Whether anybody sees which operators run."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd._profiler_enabled()
    )


def _plain(x: Tensor) -> bool:
    """Whether a tensor is what its memory holds: no subclass, no batch of them, no sign yet to be turned."""
    batched = is_functorch_wrapped_tensor(x) or is_legacy_batchedtensor(x)
    return type(x) is Tensor and not (batched or x.is_neg() or x._is_zerotensor())


@_operator("lwta::compete")
def compete(
    x: Tensor, seed: Tensor | None, competitors: int, dim: int, beta: Tensor, noise: Tensor, tau: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, winners (int64, B along ``dim``) and relaxed sample; without a seed there is no noise."""
    from lwta.cpu import competition

    drawn = (0.0, 0) if seed is None else (float(noise), int(seed))
    values, winner, relaxed = competition.compete(
        _blocks(x, competitors, dim), float(beta), float(tau), *drawn
    )
    place = torch.from_numpy(winner.reshape(_without(x, competitors, dim)))
    return _shaped_like(x, values), place, _shaped_like(x, relaxed)


@compete.register_fake
def _(x, seed, competitors, dim, beta, noise, tau):  # type: ignore[no-untyped-def]
    place = x.new_empty(_without(x, competitors, dim), dtype=torch.int64)
    return torch.empty_like(x), place, torch.empty_like(x)


@_operator("lwta::winners")
def winners(
    x: Tensor, seed: Tensor | None, competitors: int, dim: int, beta: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`compete` without the relaxed sample."""
    from lwta.cpu import competition

    drawn = (0.0, 0) if seed is None else (float(noise), int(seed))
    values, winner, _ = competition.compete(_blocks(x, competitors, dim), float(beta), None, *drawn)
    return _shaped_like(x, values), torch.from_numpy(winner.reshape(_without(x, competitors, dim)))


@winners.register_fake
def _(x, seed, competitors, dim, beta, noise):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), x.new_empty(_without(x, competitors, dim), dtype=torch.int64)


def sum_winners(
    x: Tensor,
    competitors: int,
    beta: float,
    noise: float,
    seed: Tensor | None,
    dim: int,
    rows: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """bias + the sum over the winners of value times row, (..., K) with the positions first.

    No operator: what it serves is never traced, and one costs as much as the winners of a few hundred tokens.
    So does each operation of torch that finds caches full of something else; there are few here.

    Args:
        x: units along ``dim``, counted from the front.
        rows: (D, K).
    """
    from lwta.cpu import rows as loops

    h, blocks = _blocks(x, competitors, dim), x.shape[dim] // competitors
    drawn = (0.0, 0) if seed is None else (noise, int(seed))
    first = np.zeros(rows.shape[1], np.float32) if bias is None else bias.detach().numpy()
    out = loops.sum_winners(h, blocks, beta, rows.numpy(), first, *drawn)
    return torch.from_numpy(out.reshape(*x.shape[:dim], *x.shape[dim + 1 :], rows.shape[1]))


@_operator("lwta::gradient")
def gradient(
    upstream: Tensor, x: Tensor, relaxed: Tensor, winner: Tensor, competitors: int, dim: int, scale: Tensor
) -> Tensor:
    """G_v xi_v + scale p_v (G_v h_v - sum_u G_u h_u p_u), units h = x."""
    from lwta.cpu import competition

    g, h, p = (_blocks(each, competitors, dim) for each in (upstream, x, relaxed))
    place = winner.contiguous().numpy().reshape(len(h), h.shape[2])
    return _shaped_like(x, competition.gradient(g, h, p, place, float(scale)))


@gradient.register_fake
def _(upstream, x, relaxed, winner, competitors, dim, scale):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


@_operator("lwta::usage")
def usage(x: Tensor, competitors: int, dim: int, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over batch and positions of q = softmax(scale h), (B, U), and q, of x's shape."""
    from lwta.cpu import usage

    mean, q = usage.usage(_blocks(x, competitors, dim), x.shape[dim] // competitors, float(scale))
    return torch.from_numpy(mean), _shaped_like(x, q)


@usage.register_fake
def _(x, competitors, dim, scale):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[dim] // competitors, competitors), torch.empty_like(x)


@_operator("lwta::usage_gradient")
def usage_gradient(upstream: Tensor, q: Tensor, dim: int, scale: Tensor) -> Tensor:
    """Of the mean with respect to the units; upstream gradient (B, U)."""
    from lwta.cpu import usage

    above = upstream.contiguous().numpy()
    return _shaped_like(q, usage.usage_gradient(above, _blocks(q, upstream.shape[1], dim), float(scale)))


@usage_gradient.register_fake
def _(upstream, q, dim, scale):  # type: ignore[no-untyped-def]
    return torch.empty_like(q)


def _without(x: Tensor, competitors: int, dim: int) -> tuple[int, ...]:
    return (*x.shape[:dim], x.shape[dim] // competitors, *x.shape[dim + 1 :])


def _blocks(x: Tensor, competitors: int, dim: int) -> Any:
    """Units as the loops take them, (P, U, S)."""
    before, units, after = in_three(x, dim)
    return x.detach().contiguous().numpy().reshape(before * (units // competitors), competitors, after)


def _shaped_like(x: Tensor, array: Any) -> Tensor:
    found = torch.from_numpy(array.reshape(x.shape))
    return found if x.is_contiguous() else torch.empty_like(x).copy_(found)
