"""A competition and what its losses need of it, in one pass over memory where the fused kernels serve."""

from typing import NamedTuple

from torch import Tensor

from lwta import fused
from lwta.functional import checked, kl_to_uniform, lwta, mean_usage, to_blocks, winner_probabilities
from lwta.operators import as_tensor


class Measured(NamedTuple):
    """:class:`lwta.functional.Winners`, and what was asked for beside them, None where it was not.

    Attributes:
        values, winner: as there.
        usage: mean over batch and positions of softmax(usage h), (B, U), float32 for half precision.
        kl: KL[q || uniform(U)] of q = softmax(kl h) in nats, averaged over blocks, positions and batch, ().
    """

    values: Tensor
    winner: Tensor
    usage: Tensor | None
    kl: Tensor | None


def measured(
    x: Tensor,
    competitors: int,
    *,
    dim: int,
    beta: float | Tensor = 1.0,
    noise: float = 0.0,
    tau: float = 1.0,
    seed: Tensor | None = None,
    relaxed: bool = False,
    usage: float | Tensor | None = None,
    kl: float | Tensor | None = None,
) -> Measured:
    """:func:`lwta.functional.lwta`, with mean usage and KL to uniform of the same units.

    Args:
        usage, kl: scales of the logits, beta over the noise that the probabilities are taken at; None where
            it is not asked for. Numbers or, so that nothing waits for a GPU, tensors of shape () there.

    The others, and what is raised, are those of :func:`lwta.functional.lwta`. Gradients reach x through all.

    >>> import torch
    >>> found = measured(torch.zeros(3, 4), 2, dim=-1, usage=1.0)
    >>> found.usage, found.kl
    (tensor([[0.5000, 0.5000],
             [0.5000, 0.5000]]), None)
    """
    if fused.serves(x, competitors):
        dim, seed = checked(x, competitors, dim, noise, tau, seed)
        h, axis = to_blocks(x, competitors, dim), dim + 1
        scales = (as_tensor(beta), as_tensor(noise), as_tensor(tau))
        asked = [None if scale is None else as_tensor(scale) for scale in (usage, kl)]
        values, winner, *found = fused.compete(h, *scales, seed, *asked, relaxed, axis)
        shares, divergence = (None if scale is None else f for scale, f in zip(asked, found, strict=True))
        return Measured(values.flatten(dim, axis), winner.squeeze(axis), shares, divergence)
    won = lwta(x, competitors, dim=dim, beta=beta, noise=noise, tau=tau, seed=seed, relaxed=relaxed)
    shares = divergence = None
    if usage is not None:
        shares = mean_usage(x, competitors, dim=dim, beta=float(usage))
    if kl is not None:
        q = winner_probabilities(x, competitors, dim=dim, beta=float(kl))
        divergence = kl_to_uniform(q, dim=dim % x.ndim + 1)
    return Measured(*won, shares, divergence)
