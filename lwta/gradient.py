"""The gradient of a competition in training: one-hot forward, relaxed sample backward."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class StraightThrough(torch.autograd.Function):
    """y = xi h forward; the relaxed sample's gradient backward.

    dL/dh_v = G_v xi_v + (beta / tau) p_v (G_v h_v - sum_u G_u h_u p_u), upstream gradient G.
    """

    @staticmethod
    def forward(ctx, h, z, beta, tau, axis):
        winner = z.argmax(axis, keepdim=True)
        # exp and sum by hand: torch's softmax over a short contiguous axis is an order slower on CPUs.
        relaxed = ((z - z.gather(axis, winner)) / tau).exp_()
        relaxed /= relaxed.sum(axis, keepdim=True)
        mask = one_hot(winner, z.shape[axis], axis)
        ctx.save_for_backward(h, relaxed, mask)
        ctx.scale, ctx.axis = beta / tau, axis
        ctx.mark_non_differentiable(winner)
        return keep_winners(h, mask), winner

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, _):
        h, relaxed, mask = ctx.saved_tensors
        weighted = upstream.to(relaxed.dtype) * h.to(relaxed.dtype)
        mean = (weighted * relaxed).sum(ctx.axis, keepdim=True)
        gradient = (weighted - mean).mul_(relaxed).mul_(ctx.scale)
        gradient += torch.where(mask, upstream, 0)
        return gradient.to(h.dtype), None, None, None, None


def one_hot(winner: Tensor, competitors: int, axis: int) -> Tensor:
    """Boolean mask of the winners; ``winner`` has size 1 along ``axis``, the mask has ``competitors``."""
    shape = [1] * winner.ndim
    shape[axis] = competitors
    return winner == torch.arange(competitors, device=winner.device).view(shape)


def keep_winners(h: Tensor, mask: Tensor) -> Tensor:
    """h where the mask holds, 0 elsewhere."""
    # where, not a product: a loser that is inf or NaN must not reach the output as inf * 0.
    return torch.where(mask, h, 0)
