"""The competition by plain loops, one position and one block at a time, in float64.

Written from the formulas alone (Panousis & Chatzis, NeurIPS 2023, arXiv 2310.04929) and free of any
import from ``lwta``: the library is tested against this file, never the other way round. Arrays in
and out are float64 numpy arrays, used as nothing more than indexable storage.
"""

import math
from collections.abc import Iterator
from itertools import product

import numpy as np

Index = tuple[int, ...]


def philox(counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int = 10) -> tuple[int, ...]:
    """Four random 32-bit words, Philox4x32 (Salmon et al., "Parallel random numbers", SC 2011)."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second % 2**32, (first >> 32) ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def gumbel(word: int) -> float:
    """-log(-log(u)) with u in the middle of one of 2^23 intervals, chosen by a word's upper bits."""
    return -math.log(-math.log(((word >> 9) + 0.5) / 2**23))


def positions(shape: tuple[int, ...], axis: int) -> Iterator[tuple[Index, Index]]:
    """The indices of every position, split into those before the unit axis and those after."""
    before, after = shape[:axis], shape[axis + 1 :]
    for left in product(*(range(size) for size in before)):
        for right in product(*(range(size) for size in after)):
            yield left, right


def blocks(shape: tuple[int, ...], competitors: int, dim: int) -> Iterator[tuple[Index, list[Index]]]:
    """For each block at each position: its index, and the indices of its units in x."""
    axis = dim if dim >= 0 else len(shape) + dim
    for left, right in positions(shape, axis):
        for block in range(shape[axis] // competitors):
            units = [block * competitors + u for u in range(competitors)]
            yield (*left, block, *right), [(*left, unit, *right) for unit in units]


def block_shape(shape: tuple[int, ...], competitors: int, dim: int) -> tuple[int, ...]:
    """Shape of x with the axis of D units replaced by one of B blocks."""
    axis = dim if dim >= 0 else len(shape) + dim
    return (*shape[:axis], shape[axis] // competitors, *shape[axis + 1 :])


def compete(h: list[float], beta: float, noise: float, g: list[float]) -> tuple[list[float], int]:
    """z = beta h + s g in one block, and the place of its largest (the first of equals)."""
    z = [beta * h_u + noise * g_u for h_u, g_u in zip(h, g, strict=True)]
    winner = 0
    for u in range(1, len(z)):
        if z[u] > z[winner]:
            winner = u
    return z, winner


def softmax(z: list[float]) -> list[float]:
    """exp(z_u) / sum_u exp(z_u), shifted by the largest."""
    exponentials = [math.exp(z_u - max(z)) for z_u in z]
    return [e / sum(exponentials) for e in exponentials]


def forward(
    x: np.ndarray, g: np.ndarray, competitors: int, dim: int, beta: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Values y_v = xi_v h_v, and the winner's place in each block; g is noise of x's shape."""
    values = np.zeros(x.shape)
    winners = np.zeros(block_shape(x.shape, competitors, dim), dtype=np.int64)
    for block, units in blocks(x.shape, competitors, dim):
        h = [float(x[i]) for i in units]
        _, winner = compete(h, beta, noise, [float(g[i]) for i in units])
        values[units[winner]] = h[winner]
        winners[block] = winner
    return values, winners


def hard_gradient(
    x: np.ndarray,
    g: np.ndarray,
    upstream: np.ndarray,
    competitors: int,
    dim: int,
    beta: float,
    noise: float,
) -> np.ndarray:
    """dL/dh_v = G_v xi_v."""
    gradient = np.zeros(x.shape)
    for _, units in blocks(x.shape, competitors, dim):
        h = [float(x[i]) for i in units]
        _, winner = compete(h, beta, noise, [float(g[i]) for i in units])
        gradient[units[winner]] = upstream[units[winner]]
    return gradient


def relaxed_gradient(
    x: np.ndarray,
    g: np.ndarray,
    upstream: np.ndarray,
    competitors: int,
    dim: int,
    beta: float,
    noise: float,
    tau: float,
) -> np.ndarray:
    """dL/dh_v = G_v xi_v + (beta / tau) p_v (G_v h_v - sum_u G_u h_u p_u), p = softmax(z / tau)."""
    gradient = np.zeros(x.shape)
    for _, units in blocks(x.shape, competitors, dim):
        h = [float(x[i]) for i in units]
        G = [float(upstream[i]) for i in units]
        z, winner = compete(h, beta, noise, [float(g[i]) for i in units])
        p = softmax([z_u / tau for z_u in z])
        mean = 0.0
        for u in range(competitors):
            mean += G[u] * h[u] * p[u]
        for v in range(competitors):
            xi = 1.0 if v == winner else 0.0
            gradient[units[v]] = G[v] * xi + (beta / tau) * p[v] * (G[v] * h[v] - mean)
    return gradient


def winner_probabilities(
    x: np.ndarray, competitors: int, dim: int, beta: float, noise: float
) -> list[tuple[Index, list[float]]]:
    """q = softmax(beta h / s) of every block at every position, beside the block's index."""
    return [
        (block, softmax([beta * float(x[i]) / noise for i in units]))
        for block, units in blocks(x.shape, competitors, dim)
    ]


def kl_to_uniform(x: np.ndarray, competitors: int, dim: int, beta: float, noise: float) -> float:
    """KL[q || uniform(U)]: summed over a block's U, averaged over blocks, positions and batch."""
    total, count = 0.0, 0
    for _, q in winner_probabilities(x, competitors, dim, beta, noise):
        for q_u in q:
            if q_u > 0:
                total += q_u * math.log(q_u / (1 / competitors))
        count += 1
    return total / count


def usage_entropy(x: np.ndarray, competitors: int, dim: int, beta: float, noise: float) -> float:
    """Entropy over log U of q averaged over batch and positions; averaged over blocks."""
    axis = dim if dim >= 0 else x.ndim + dim
    number = x.shape[axis] // competitors
    sums = [[0.0] * competitors for _ in range(number)]
    seen = [0] * number
    for block, q in winner_probabilities(x, competitors, dim, beta, noise):
        seen[block[axis]] += 1
        for u in range(competitors):
            sums[block[axis]][u] += q[u]
    total = 0.0
    for row, count in zip(sums, seen, strict=True):
        for q_sum in row:
            mean = q_sum / count
            if mean > 0:
                total -= mean * math.log(mean)
    return total / number / math.log(competitors)


def finite_difference(function, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Gradient of a scalar function by central differences, one entry at a time."""
    gradient = np.zeros(x.shape)
    for i in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (function(up) - function(down)) / (2 * step)
    return gradient


def top_k(x: np.ndarray, upstream: np.ndarray, k: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of GELU(x) at each position, the rest 0; and the gradient with respect to x."""
    axis = dim if dim >= 0 else x.ndim + dim
    values, gradient = np.zeros(x.shape), np.zeros(x.shape)
    for left, right in positions(x.shape, axis):
        units = [(*left, unit, *right) for unit in range(x.shape[axis])]
        # GELU(h) = h Phi(h), so its derivative is Phi(h) + h phi(h).
        cdf = {i: 0.5 * (1 + math.erf(float(x[i]) / math.sqrt(2))) for i in units}
        pdf = {i: math.exp(-(float(x[i]) ** 2) / 2) / math.sqrt(2 * math.pi) for i in units}
        for i in sorted(units, key=lambda i: float(x[i]) * cdf[i], reverse=True)[:k]:
            values[i] = float(x[i]) * cdf[i]
            gradient[i] = float(upstream[i]) * (cdf[i] + float(x[i]) * pdf[i])
    return values, gradient
