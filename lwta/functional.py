"""Local winner-takes-all competition as pure functions.

The D units along one axis form B = D / U blocks of U competitors; unit ``b * U + u`` is competitor
``u`` of block ``b``. In each block one winner passes its linear value, the others pass zero
(Panousis & Chatzis, "DISCOVER", NeurIPS 2023, arXiv 2310.04929). Three scales are kept apart::

    z = beta h + s g,  g ~ Gumbel(0, 1)     beta: logit scale, s: noise scale
    winner = argmax_u z                     so P(winner) = q = softmax(beta h / s)
    p = softmax(z / tau)                    tau shapes the gradient only, never who wins
    y_v = xi_v h_v                          xi is one-hot at the winner; a winner may be negative

Arithmetic is float32 for half-precision inputs, inside autocast and out, and the input's own
precision otherwise.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lwta import fused, operators
from lwta.gradient import (
    MeanUsage,
    StraightThrough,
    in_blocks,
    keep_winners,
    one_hot,
    perturbed,
    working_dtype,
)
from lwta.operators import as_tensor, compiled_for

_DTYPES = torch.float32, torch.float64, torch.float16, torch.bfloat16


class Winners(NamedTuple):
    """Outcome of a competition.

    Attributes:
        values: same shape and dtype as the input; each block's winner keeps its value, the rest are 0.
        winner: int64, the input's shape with the unit axis D replaced by B; the winner's place
            0 ... U - 1 within its block. It comes from the competition itself, so a negative
            winner, or one whose value is exactly zero, is still the unit that fired.
    """

    values: Tensor
    winner: Tensor


def to_blocks(x: Tensor, competitors: int, dim: int) -> Tensor:
    """View ``(..., D, ...)`` as ``(..., B, U, ...)``, splitting axis ``dim`` into blocks.

    Raises:
        ValueError: where ``competitors`` is below 2 or does not divide D; names the nearest divisors.

    >>> to_blocks(torch.zeros(3, 12), competitors=4, dim=-1).shape
    torch.Size([3, 3, 4])
    """
    blocks_of(x.shape[dim], competitors)
    return in_blocks(x, competitors, dim)


def blocks_of(units: int, competitors: int) -> int:
    """B, as :func:`to_blocks` splits D units; raises as it does.

    >>> blocks_of(384, 24)
    16
    """
    if competitors < 2:
        raise ValueError(f"a block needs at least 2 competitors, got {competitors}")
    if units % competitors:
        raise ValueError(
            f"{competitors} competitors do not divide {units} units; "
            f"choose one of {', '.join(map(str, nearest_divisors(units, competitors)))}"
        )
    return units // competitors


def positive_axis(dim: int, ndim: int) -> int:
    """``dim`` counted from the front; IndexError where there is no such axis.

    >>> positive_axis(-1, 3)
    2
    """
    if not -ndim <= dim < ndim:
        raise IndexError(f"there is no axis {dim} in a tensor of {ndim} axes")
    return dim % ndim


def nearest_divisors(units: int, competitors: int | float, count: int = 4) -> list[int]:
    """Block sizes of at least 2 that divide ``units``, the ``count`` nearest in ratio, ascending.

    >>> nearest_divisors(384, 23)
    [12, 16, 24, 32]
    """
    divisors = [u for u in range(2, units + 1) if units % u == 0]
    target = max(competitors, 1)
    return sorted(sorted(divisors, key=lambda u: max(u / target, target / u))[:count])


def lwta(
    x: Float[Tensor, "*shape"],
    competitors: int,
    *,
    dim: int,
    beta: float | Float[Tensor, ""] = 1.0,
    noise: float = 0.0,
    tau: float = 1.0,
    seed: Int[Tensor, ""] | None = None,
    relaxed: bool = False,
) -> Winners:
    """Let the units along ``dim`` compete in blocks of ``competitors``.

    Args:
        x: any rank, units along ``dim``: (N, D), (N, T, D), (N, D, H, W), ...
        competitors: U, units in a block; divides the size of ``dim``.
        dim: axis of the units, never guessed.
        beta: logit scale.
        noise: s, scale of the Gumbel noise; 0 is the deterministic competition.
        tau: temperature of the relaxed gradient; has no effect on the values.
        seed: int64 tensor of shape (), on the CPU or, where a GPU's kernels serve, on x's device; the noise
            is a function of it. Needed where noise > 0.
        relaxed: True (training): the gradient of the relaxed sample, straight through;
            False (evaluation): the gradient of the hard mask alone, so that the function is
            exactly piecewise linear.

    Raises:
        ValueError: where ``competitors`` does not divide the axis, ``tau`` is not positive,
            ``noise`` is negative, or noise is asked for without a seed.
        TypeError: where x is not floating point.

    Source: arXiv 2310.04929, section 3; gradient in :class:`lwta.gradient.StraightThrough`.

    >>> x = torch.tensor([[-3.0, -1.0, 2.0, 5.0]])
    >>> values, winner = lwta(x, competitors=2, dim=-1)
    >>> values, winner
    (tensor([[ 0., -1.,  0.,  5.]]), tensor([[1, 1]]))
    """
    dim, seed = checked(x, competitors, dim, noise, tau, seed)
    if fused.serves(x, competitors):
        h, scales = to_blocks(x, competitors, dim), (as_tensor(beta), as_tensor(noise), as_tensor(tau))
        values, winner, _, _ = fused.compete(h, *scales, seed, None, None, relaxed, dim + 1)
    elif relaxed:
        return Winners(*StraightThrough.apply(x, competitors, dim, beta, noise, tau, seed))
    elif compiled_for(x) and not (x.requires_grad and torch.is_grad_enabled()):
        return Winners(*operators.winners(x, seed, competitors, dim, scales=(beta, noise)))
    else:
        h = to_blocks(x, competitors, dim)
        winner = perturbed(h, beta, noise, seed, dim + 1).argmax(dim + 1, keepdim=True)
        values = keep_winners(h, one_hot(winner, competitors, dim + 1))
    return Winners(values.flatten(dim, dim + 1), winner.squeeze(dim + 1))


def checked(
    x: Tensor, competitors: int, dim: int, noise: float, tau: float, seed: Tensor | None
) -> tuple[int, Tensor | None]:
    """The units' axis from the front, and the seed, None without noise; raises as :func:`lwta`."""
    check_dtype(x)
    if noise < 0 or tau <= 0:
        raise ValueError(f"noise must be at least 0 and tau above 0, got noise={noise}, tau={tau}")
    dim = positive_axis(dim, x.ndim)
    blocks_of(x.shape[dim], competitors)
    if noise > 0 and seed is None:
        raise ValueError("noise above 0 needs a seed, an int64 tensor; draw_seed() makes one")
    return dim, seed if noise > 0 else None


def check_dtype(x: Tensor) -> None:
    """Raise TypeError for what cannot compete."""
    if x.dtype not in _DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise TypeError(f"competition needs one of {known}, got {x.dtype}; convert it first")


def winner_probabilities(
    x: Float[Tensor, "..."],
    competitors: int,
    *,
    dim: int,
    beta: float = 1.0,
    noise: float = 1.0,
) -> Float[Tensor, "..."]:
    """q = softmax(beta h / s) over each block, shape (..., B, U, ...) with U at ``dim + 1``.

    At ``noise`` 0 there is no distribution to speak of: the winner wins with certainty and the
    gradient is zero everywhere. Losses for a deterministic layer therefore ask for ``noise=1``.

    >>> winner_probabilities(torch.zeros(1, 4), 2, dim=-1)
    tensor([[[0.5000, 0.5000],
             [0.5000, 0.5000]]])
    """
    dim = positive_axis(dim, x.ndim)
    h = to_blocks(x, competitors, dim).to(working_dtype(x)) * beta
    if noise > 0:
        return (h / noise).softmax(dim + 1)
    return one_hot(h.argmax(dim + 1, keepdim=True), competitors, dim + 1).to(h.dtype)


def kl_to_uniform(q: Float[Tensor, "..."], *, dim: int) -> Float[Tensor, ""]:
    """KL[q || uniform(U)] in nats, summed over a block's U, averaged over blocks, positions and batch.

    Args:
        q: winner probabilities with the competitors along ``dim``. Use
            :func:`winner_probabilities`, for which this is the axis after its own ``dim``.

    >>> float(kl_to_uniform(torch.full((2, 3, 4), 0.25), dim=-1))
    0.0
    """
    competitors = q.shape[dim]
    return (q * (_floored(q) * competitors).log()).sum(dim).mean()


def _floored(q: Tensor) -> Tensor:
    # q log q is 0 at 0, but its gradient is not finite; probabilities do underflow to 0.
    return q.clamp_min(torch.finfo(q.dtype).tiny)


def mean_usage(
    x: Float[Tensor, "..."],
    competitors: int,
    *,
    dim: int,
    beta: float = 1.0,
    noise: float = 1.0,
) -> Float[Tensor, "B U"]:
    """:func:`winner_probabilities` averaged over batch and positions, (B, U).

    Raises:
        ValueError: where ``noise`` is not above 0: the gradient would be zero everywhere.

    >>> sure = 100 * torch.eye(4)  # four samples, each certain of another winner
    >>> mean_usage(sure, 4, dim=1)
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    if noise <= 0:
        raise ValueError(f"usage is of winner probabilities, which need noise above 0, got {noise}")
    axis = positive_axis(dim, x.ndim) + 1
    blocks_of(x.shape[axis - 1], competitors)
    if compiled_for(x):
        return MeanUsage.apply(x, competitors, axis - 1, beta / noise)
    q = winner_probabilities(x, competitors, dim=dim, beta=beta, noise=noise)
    return q.movedim((axis - 1, axis), (-2, -1)).reshape(-1, *q.shape[axis - 1 : axis + 1]).mean(0)


def usage_entropy(usage: Float[Tensor, "B U"]) -> Float[Tensor, ""]:
    """Entropy of the batch-averaged winner distribution, over log U, averaged over blocks.

    1 where every unit of every block wins equally often over the batch, 0 where one unit of each
    block always wins. Maximising it balances use and, unlike :func:`kl_to_uniform`, leaves each
    sample free to be certain. Source: the diversity loss of wav2vec 2.0 (Baevski et al., 2020).

    Args:
        usage: of :func:`mean_usage`.

    >>> float(usage_entropy(torch.full((3, 4), 0.25)))
    1.0
    """
    entropy = -(usage * _floored(usage).log()).sum(1)
    return entropy.mean() / math.log(usage.shape[1])
