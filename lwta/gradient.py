"""The gradient of a competition in training: one-hot forward, relaxed sample backward."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lwta.noise import gumbel_like, in_three


def perturbed(h: Tensor, beta: float | Tensor, noise: float, seed: Tensor | None, axis: int) -> Tensor:
    """z = beta h + s g, without gradient, in float32 for half precision."""
    z = h.detach().to(working_dtype(h)) * beta
    return z if seed is None else z + noise * gumbel_like(z, seed, axis)


def working_dtype(x: Tensor) -> torch.dtype:
    """float32 for half precision, x's own otherwise."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


class StraightThrough(torch.autograd.Function):
    """y = xi h forward; the relaxed sample's gradient backward.

    dL/dh_v = G_v xi_v + (beta / tau) p_v (G_v h_v - sum_u G_u h_u p_u), upstream gradient G.

    Blocks h with competitors along ``axis``; ``seed`` is None without noise.
    """

    @staticmethod
    def forward(ctx, h, beta, noise, tau, seed, axis):
        if _compiled_for(h):
            scales = (_as_tensor(beta), _as_tensor(noise), _as_tensor(tau))
            values, winner, relaxed = _compete(h, *scales, seed, axis)
        else:
            z = perturbed(h, beta, noise, seed, axis)
            winner = z.argmax(axis, keepdim=True)
            # exp and sum by hand: torch's softmax over a short contiguous axis is an order slower on CPUs.
            relaxed = ((z - z.gather(axis, winner)) / tau).exp_()
            relaxed /= relaxed.sum(axis, keepdim=True)
            values = keep_winners(h, one_hot(winner, z.shape[axis], axis))
        ctx.save_for_backward(h, relaxed, winner)
        ctx.scale, ctx.axis = beta / tau, axis
        ctx.mark_non_differentiable(winner)
        return values, winner

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, _):
        h, relaxed, winner = ctx.saved_tensors
        if _compiled_for(h):
            gradient = _gradient(upstream, h, relaxed, winner, _as_tensor(ctx.scale), ctx.axis)
            return gradient, None, None, None, None, None
        weighted = upstream.to(relaxed.dtype) * h.to(relaxed.dtype)
        mean = (weighted * relaxed).sum(ctx.axis, keepdim=True)
        gradient = (weighted - mean).mul_(relaxed).mul_(ctx.scale)
        gradient += torch.where(one_hot(winner, h.shape[ctx.axis], ctx.axis), upstream, 0)
        return gradient.to(h.dtype), None, None, None, None, None


def one_hot(winner: Tensor, competitors: int, axis: int) -> Tensor:
    """Boolean mask of the winners; ``winner`` has size 1 along ``axis``, the mask has ``competitors``."""
    shape = [1] * winner.ndim
    shape[axis] = competitors
    return winner == torch.arange(competitors, device=winner.device).view(shape)


def keep_winners(h: Tensor, mask: Tensor) -> Tensor:
    """h where the mask holds, 0 elsewhere."""
    # where, not a product: a loser that is inf or NaN must not reach the output as inf * 0.
    return torch.where(mask, h, 0)


# -- float32 on the CPU: one compiled pass in place of some twenty ------------------------------


def _compiled_for(h: Tensor) -> bool:
    return h.device.type == "cpu" and h.dtype == torch.float32


def _as_tensor(scale: float | Tensor) -> Tensor:
    # A product: torch.compile takes what torch.tensor is given for a constant, and compiles anew for each.
    return torch.ones((), dtype=torch.float64) * scale


@torch.library.custom_op("lwta::compete", mutates_args=())
def _compete(
    h: Tensor, beta: Tensor, noise: Tensor, tau: Tensor, seed: Tensor | None, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    from lwta import cpu  # compiles at first use

    drawn = (0.0, 0) if seed is None else (float(noise), int(seed))
    values, winner, relaxed = cpu.compete(_array(h, axis), float(beta), float(tau), *drawn)
    place = torch.from_numpy(winner).view((*h.shape[:axis], 1, *h.shape[axis + 1 :]))
    return _shaped_like(h, values), place, _shaped_like(h, relaxed)


@_compete.register_fake
def _(h, beta, noise, tau, seed, axis):  # type: ignore[no-untyped-def]
    winner = h.new_empty((*h.shape[:axis], 1, *h.shape[axis + 1 :]), dtype=torch.int64)
    return torch.empty_like(h), winner, torch.empty_like(h)


@torch.library.custom_op("lwta::gradient", mutates_args=())
def _gradient(
    upstream: Tensor, h: Tensor, relaxed: Tensor, winner: Tensor, scale: Tensor, axis: int
) -> Tensor:
    from lwta import cpu

    arrays = [_array(x, axis) for x in (upstream, h, relaxed)]
    place = winner.contiguous().numpy().reshape(arrays[0].shape[0], arrays[0].shape[2])
    return _shaped_like(h, cpu.gradient(*arrays, place, float(scale)))


@_gradient.register_fake
def _(upstream, h, relaxed, winner, scale, axis):  # type: ignore[no-untyped-def]
    return torch.empty_like(h)


def _array(x: Tensor, axis: int):  # type: ignore[no-untyped-def]
    return x.detach().contiguous().numpy().reshape(in_three(x, axis))


def _shaped_like(x: Tensor, array) -> Tensor:  # type: ignore[no-untyped-def]
    found = torch.from_numpy(array).view(x.shape)
    return found if x.is_contiguous() else torch.empty_like(x).copy_(found)
