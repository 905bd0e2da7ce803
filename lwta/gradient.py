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

    Units h = x lie along ``dim``, counted from the front, in blocks of ``competitors``, which divide them;
    ``seed`` is None without noise. Nothing here is a view that autograd would follow: on cold caches those
    cost as much as a small competition.
    """

    @staticmethod
    def forward(ctx, x, competitors, dim, beta, noise, tau, seed):
        if compiled_for(x):
            scales = beta, noise, tau
            values, winner, relaxed = operators.compete(x, seed, competitors, dim, scales=scales)
        else:
            h, axis = in_blocks(x, competitors, dim), dim + 1
            z = perturbed(h, beta, noise, seed, axis)
            place = z.argmax(axis, keepdim=True)
            # exp and sum by hand: torch's softmax over a short contiguous axis is an order slower on CPUs.
            relaxed = ((z - z.gather(axis, place)) / tau).exp_()
            relaxed /= relaxed.sum(axis, keepdim=True)
            relaxed = relaxed.flatten(dim, axis)
            values = keep_winners(h, one_hot(place, competitors, axis)).flatten(dim, axis)
            winner = place.squeeze(axis)
        ctx.save_for_backward(x, relaxed, winner)
        ctx.scale, ctx.competitors, ctx.dim = beta / tau, competitors, dim
        ctx.mark_non_differentiable(winner)
        return values, winner

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, _):
        x, relaxed, winner = ctx.saved_tensors
        if compiled_for(x):
            place = winner, ctx.competitors, ctx.dim
            return operators.gradient(upstream, x, relaxed, *place, scales=(ctx.scale,)), *[None] * 6
        axis = ctx.dim + 1
        g, h, p = (in_blocks(each, ctx.competitors, ctx.dim) for each in (upstream, x, relaxed))
        weighted = g.to(p.dtype) * h.to(p.dtype)
        mean = (weighted * p).sum(axis, keepdim=True)
        gradient = (weighted - mean).mul_(p).mul_(ctx.scale)
        gradient += torch.where(one_hot(winner.unsqueeze(axis), ctx.competitors, axis), g, 0)
        return gradient.flatten(ctx.dim, axis).to(x.dtype), *[None] * 6


class MeanUsage(torch.autograd.Function):
    """Mean over batch and positions of q = softmax(scale h), (B, U), of float32 units on the CPU."""

    @staticmethod
    def forward(ctx, x, competitors, dim, scale):
        mean, q = operators.usage(x, competitors, dim, scales=(scale,))
        ctx.save_for_backward(q)
        ctx.scale, ctx.dim = scale, dim
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (q,) = ctx.saved_tensors
        return operators.usage_gradient(upstream, q, ctx.dim, scales=(ctx.scale,)), None, None, None


def in_blocks(x: Tensor, competitors: int, dim: int) -> Tensor:
    """View ``(..., D, ...)`` as ``(..., B, U, ...)``; ``competitors`` divide D."""
    return x.unflatten(dim, (x.shape[dim] // competitors, competitors))


def one_hot(winner: Tensor, competitors: int, axis: int) -> Tensor:
    """Boolean mask of the winners; ``winner`` has size 1 along ``axis``, the mask has ``competitors``."""
    shape = [1] * winner.ndim
    shape[axis] = competitors
    return winner == torch.arange(competitors, device=winner.device).view(shape)


def keep_winners(h: Tensor, mask: Tensor) -> Tensor:
    """h where the mask holds, 0 elsewhere."""
    # where, not a product: a loser that is inf or NaN must not reach the output as inf * 0.
    return torch.where(mask, h, 0)
