"""Noise, winners and relaxed sample in one pass over memory, and the gradient in another."""

import numpy as np

from lwta.compiled import compiled, summed
from lwta.cpu.noise import add_gumbel, key_of
from lwta.cpu.tiles import (
    find_winners,
    flat_pairs,
    lay_out,
    put_back,
    soften,
    stretch,
    tile_width,
)
from lwta.threads import over_ranges, share


def compete(
    h: np.ndarray, beta: float, tau: float | None, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, winners (P, S) int64 and relaxed sample p = softmax(z / tau) of contiguous units (P, U, S).

    Where tau is None the relaxed sample is empty.
    """
    values = np.empty_like(h)
    relaxed = np.empty((0, 0, 0), np.float32) if tau is None else np.empty_like(h)
    winner = np.empty((h.shape[0], h.shape[2]), np.int64)
    scales = np.float32(beta), np.float32(noise), np.float32(1 / (tau or 1))
    arguments = (h, *scales, *key_of(seed), values, winner, relaxed)
    over_ranges(_compete, winner.size, *arguments, chunk=share(winner.size, h.shape[1]))
    return values, winner, relaxed


def gradient(
    upstream: np.ndarray, h: np.ndarray, relaxed: np.ndarray, winner: np.ndarray, scale: float
) -> np.ndarray:
    """G_v xi_v + scale p_v (G_v h_v - sum_u G_u h_u p_u) of contiguous arrays (P, U, S)."""
    out = np.empty_like(h)
    arrays, kernel = (upstream, h, relaxed, out), _gradient
    if h.shape[2] == 1:
        arrays = tuple(array[:, :, 0] for array in arrays)
        kernel = _gradient_of_pairs if h.shape[1] == 2 else _gradient_of_rows
    chunk = share(len(h), h.shape[1] * h.shape[2])
    over_ranges(kernel, len(h), *arrays, winner, np.float32(scale), chunk=chunk)
    return out


@compiled
def _compete(h, beta, noise, inverse, low, high, values, winner, relaxed, first, last):  # type: ignore[no-untyped-def]
    units = h.shape[1]
    width = tile_width(units)
    z, words = np.empty((units, width), np.float32), np.empty((4, width), np.uint32)
    best, total, place = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.int32)
    for start in range(first, last, width):
        count = min(width, last - start)
        meet_in_tile(h, start, beta, noise, low, high, z, words, best, place, count)
        if relaxed.size:
            soften(z, best, total, inverse, count)
            put_back(z, start, relaxed, count)
        _pass_winners(h, start, place, values, winner, count)


@compiled
def _pass_winners(h, start, place, values, winner, count):  # type: ignore[no-untyped-def]
    """Into ``values``, zero elsewhere, and the winners' places into ``winner``."""
    units, inner = h.shape[1], h.shape[2]
    if inner == 1:
        winner.reshape(winner.size)[start : start + count] = place[:count]
        if units == 2:
            own, passed = flat_pairs(h, start, start + count), flat_pairs(values, start, start + count)
            for t in range(count):
                passed[2 * t] = np.float32(0) if place[t] else own[2 * t]
                passed[2 * t + 1] = own[2 * t + 1] if place[t] else np.float32(0)
            return
        values[start : start + count] = 0
        for t in range(count):
            values[start + t, place[t], 0] = h[start + t, place[t], 0]
        return
    t = 0
    while t < count:
        p, s, run = stretch(start + t, inner, count - t)
        values[p, :, s : s + run] = 0
        for i in range(run):
            winner[p, s + i] = place[t + i]
            values[p, place[t + i], s + i] = h[p, place[t + i], s + i]
        t += run


@compiled
def meet_in_tile(h, start, beta, noise, low, high, z, words, best, place, count):  # type: ignore[no-untyped-def]
    """z = beta h + s g of the positions from ``start`` on, its largest, and where that is."""
    lay_out(h, start, beta, z, count)
    if noise > 0:
        add_gumbel(z, start, noise, low, high, words, count)
    find_winners(z, best, place, count)


@compiled
def _gradient(upstream, h, relaxed, out, winner, scale, first, last):  # type: ignore[no-untyped-def]
    units, inner = h.shape[1], h.shape[2]
    mean = np.empty(inner, np.float32)
    for p in range(first, last):
        g, own, soft, row = upstream[p], h[p], relaxed[p], out[p]
        mean[:] = 0
        for u in range(units):
            for s in range(inner):
                mean[s] += g[u, s] * own[u, s] * soft[u, s]
        for u in range(units):
            for s in range(inner):
                row[u, s] = scale * soft[u, s] * (g[u, s] * own[u, s] - mean[s])
        for s in range(inner):
            row[winner[p, s], s] += g[winner[p, s], s]


@summed
def _gradient_of_rows(upstream, h, relaxed, out, winner, scale, first, last):  # type: ignore[no-untyped-def]
    """:func:`_gradient` of arrays (P, U), where the loops over competitors are the contiguous ones."""
    units = h.shape[1]
    for p in range(first, last):
        mean = np.float32(0)
        for u in range(units):
            mean += upstream[p, u] * h[p, u] * relaxed[p, u]
        for u in range(units):
            out[p, u] = scale * relaxed[p, u] * (upstream[p, u] * h[p, u] - mean)
        out[p, winner[p, 0]] += upstream[p, winner[p, 0]]


@summed
def _gradient_of_pairs(upstream, h, relaxed, out, winner, scale, first, last):  # type: ignore[no-untyped-def]
    """:func:`_gradient_of_rows` of arrays (P, 2)."""
    g, own = flat_pairs(upstream, first, last), flat_pairs(h, first, last)
    soft, pair = flat_pairs(relaxed, first, last), flat_pairs(out, first, last)
    won = winner.reshape(winner.size)[first:last]
    for t in range(last - first):
        left, right = g[2 * t] * own[2 * t], g[2 * t + 1] * own[2 * t + 1]
        mean = left * soft[2 * t] + right * soft[2 * t + 1]
        passed = np.float32(0) if won[t] else g[2 * t]
        pair[2 * t] = scale * soft[2 * t] * (left - mean) + passed
        passed = g[2 * t + 1] if won[t] else np.float32(0)
        pair[2 * t + 1] = scale * soft[2 * t + 1] * (right - mean) + passed
