"""How often each unit wins on average, and the gradient of that."""

import numpy as np

from lwta.compiled import compiled, summed
from lwta.cpu.tiles import find_winners, lay_out, put_back, soften, stretch, tile_width
from lwta.threads import over_ranges, share

_PART = 1 << 18  # units whose probabilities are summed by one thread, however many threads there are


def usage(h: np.ndarray, blocks: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the batch of q = softmax(scale h), float32 (B, U), and q itself.

    Args:
        h: contiguous units (P, U, S); of P rows that follow each other each B are the blocks of one sample.
    """
    rows, units, inner = h.shape
    chunk, positions = max(1, _PART // max(1, units)), rows * inner
    sums = np.zeros((-(-positions // chunk), blocks, units), np.float32)
    q = np.empty_like(h)
    over_ranges(_usage, positions, h, np.float32(scale), sums, chunk, q, chunk=chunk)
    return (sums.sum(0, dtype=np.float64) * (blocks / max(1, positions))).astype(np.float32), q


def usage_gradient(upstream: np.ndarray, q: np.ndarray, scale: float) -> np.ndarray:
    """scale B / (P S) q_u (G_u - sum_v G_v q_v), upstream gradient G (B, U) and q (P, U, S)."""
    out = np.empty_like(q)
    each = np.float32(scale * len(upstream) / max(1, q.shape[0] * q.shape[2]))
    chunk = share(len(q), q.shape[1] * q.shape[2])
    if q.shape[2] == 1:
        over_ranges(_gradient_of_rows, len(q), upstream, q[:, :, 0], each, out[:, :, 0], chunk=chunk)
    else:
        over_ranges(_gradient, len(q), upstream, q, each, out, chunk=chunk)
    return out


@compiled
def _usage(h, scale, sums, chunk, q, first, last):  # type: ignore[no-untyped-def]
    units = h.shape[1]
    width = tile_width(units)
    z = np.empty((units, width), np.float32)
    best, total, place = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.int32)
    for start in range(first, last, width):
        count = min(width, last - start)
        lay_out(h, start, scale, z, count)
        find_winners(z, best, place, count)
        soften(z, best, total, np.float32(1), count)
        put_back(z, start, q, count)
        _add(z, start, h.shape[2], sums[first // chunk], count)


@summed
def _add(z, start, inner, sums, count):  # type: ignore[no-untyped-def]
    """Add a tile's probabilities to those of their blocks."""
    blocks, units = sums.shape
    if inner == 1:
        b = start % blocks
        for t in range(count):
            for u in range(units):
                sums[b, u] += z[u, t]
            b = b + 1 if b + 1 < blocks else 0
        return
    t = 0
    while t < count:
        p, _, run = stretch(start + t, inner, count - t)
        for u in range(units):
            part = np.float32(0)
            for i in range(t, t + run):
                part += z[u, i]
            sums[p % blocks, u] += part
        t += run


@compiled
def _gradient(upstream, q, scale, out, first, last):  # type: ignore[no-untyped-def]
    units, inner = q.shape[1], q.shape[2]
    mean = np.empty(inner, np.float32)
    for p in range(first, last):
        g = upstream[p % len(upstream)]
        mean[:] = 0
        for u in range(units):
            for s in range(inner):
                mean[s] += g[u] * q[p, u, s]
        for u in range(units):
            for s in range(inner):
                out[p, u, s] = scale * q[p, u, s] * (g[u] - mean[s])


@summed
def _gradient_of_rows(upstream, q, scale, out, first, last):  # type: ignore[no-untyped-def]
    """:func:`_gradient` of arrays (P, U), where the loops over competitors are the contiguous ones."""
    units, blocks = q.shape[1], len(upstream)
    b = first % blocks
    for p in range(first, last):
        g = upstream[b]
        b = b + 1 if b + 1 < blocks else 0
        mean = np.float32(0)
        for u in range(units):
            mean += g[u] * q[p, u]
        for u in range(units):
            out[p, u] = scale * q[p, u] * (g[u] - mean)
