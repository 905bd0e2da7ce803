"""Gradients written by hand: of a competition in training, and of how often each unit wins."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lwta import operators
from lwta.noise import gumbel_like
from lwta.operators import compiled_for


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
        if compiled_for(h):
            values, winner, relaxed = operators.compete(h, seed, axis, scales=(beta, noise, tau))
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
        if compiled_for(h):
            gradient = operators.gradient(upstream, h, relaxed, winner, ctx.axis, scales=(ctx.scale,))
            return gradient, None, None, None, None, None
        weighted = upstream.to(relaxed.dtype) * h.to(relaxed.dtype)
        mean = (weighted * relaxed).sum(ctx.axis, keepdim=True)
        gradient = (weighted - mean).mul_(relaxed).mul_(ctx.scale)
        gradient += torch.where(one_hot(winner, h.shape[ctx.axis], ctx.axis), upstream, 0)
        return gradient.to(h.dtype), None, None, None, None, None


class MeanUsage(torch.autograd.Function):
    """Mean over batch and positions of q = softmax(scale h), (B, U), of float32 blocks h on the CPU."""

    @staticmethod
    def forward(ctx, h, scale, axis):
        mean, q = operators.usage(h, axis, scales=(scale,))
        ctx.save_for_backward(q)
        ctx.scale, ctx.axis = scale, axis
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (q,) = ctx.saved_tensors
        return operators.usage_gradient(upstream, q, ctx.axis, scales=(ctx.scale,)), None, None


def one_hot(winner: Tensor, competitors: int, axis: int) -> Tensor:
    """Boolean mask of the winners; ``winner`` has size 1 along ``axis``, the mask has ``competitors``."""
    shape = [1] * winner.ndim
    shape[axis] = competitors
    return winner == torch.arange(competitors, device=winner.device).view(shape)


def keep_winners(h: Tensor, mask: Tensor) -> Tensor:
    """h where the mask holds, 0 elsewhere."""
    # where, not a product: a loser that is inf or NaN must not reach the output as inf * 0.
    return torch.where(mask, h, 0)
