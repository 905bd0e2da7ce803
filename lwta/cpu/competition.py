"""Noise, winners and relaxed sample in one pass over memory, and the gradient in another."""

import numpy as np

from lwta.compiled import compiled, summed
from lwta.cpu.noise import add_gumbel, key_of
from lwta.cpu.tiles import find_winners, lay_out, positions_at_a_time, put_back, soften, tile_width
from lwta.threads import over_ranges


def compete(
    h: np.ndarray, beta: float, tau: float | None, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, winners (P, S) int64 and relaxed sample p = softmax(z / tau) of contiguous units (P, U, S).

    Where tau is None the relaxed sample is empty.
    """
    values = np.zeros_like(h)
    relaxed = np.empty((0, 0, 0), np.float32) if tau is None else np.empty_like(h)
    winner = np.empty((h.shape[0], h.shape[2]), np.int64)
    scales = np.float32(beta), np.float32(noise), np.float32(1 / (tau or 1))
    arguments = (h, *scales, *key_of(seed), values, winner, relaxed)
    over_ranges(_compete, winner.size, *arguments, chunk=positions_at_a_time(h.shape[1]))
    return values, winner, relaxed


def fire(
    h: np.ndarray, blocks: int, beta: float, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Each winner's value (P, S), and its place among D = B U units (P, S) int64.

    Args:
        h: contiguous units (P, U, S); of P rows that follow each other each B are the blocks of one sample.
    """
    values = np.empty((h.shape[0], h.shape[2]), np.float32)
    unit = np.empty(values.shape, np.int64)
    arguments = (h, blocks, np.float32(beta), np.float32(noise), *key_of(seed), values, unit)
    over_ranges(_fire, unit.size, *arguments, chunk=positions_at_a_time(4 * h.shape[1]))
    return values, unit


def gradient(
    upstream: np.ndarray, h: np.ndarray, relaxed: np.ndarray, winner: np.ndarray, scale: float
) -> np.ndarray:
    """G_v xi_v + scale p_v (G_v h_v - sum_u G_u h_u p_u) of contiguous arrays (P, U, S)."""
    out = np.empty_like(h)
    arrays, kernel = (upstream, h, relaxed, out), _gradient
    if h.shape[2] == 1:
        arrays, kernel = tuple(array[:, :, 0] for array in arrays), _gradient_of_rows
    chunk = positions_at_a_time(h.shape[1] * h.shape[2])
    over_ranges(kernel, len(h), *arrays, winner, np.float32(scale), chunk=chunk)
    return out


@compiled
def _compete(h, beta, noise, inverse, low, high, values, winner, relaxed, first, last):  # type: ignore[no-untyped-def]
    units, inner = h.shape[1], h.shape[2]
    width = tile_width(units)
    z, words = np.empty((units, width), np.float32), np.empty((4, width), np.uint32)
    best, total, place = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.int32)
    for start in range(first, last, width):
        count = min(width, last - start)
        _meet_in_tile(h, start, beta, noise, low, high, z, words, best, place, count)
        if relaxed.size:
            soften(z, best, total, inverse, count)
            put_back(z, start, relaxed, count)
        for t in range(count):
            p, s = divmod(start + t, inner)
            winner[p, s] = place[t]
            values[p, place[t], s] = h[p, place[t], s]


@compiled
def _fire(h, blocks, beta, noise, low, high, values, unit, first, last):  # type: ignore[no-untyped-def]
    units, inner = h.shape[1], h.shape[2]
    width = tile_width(units)
    z, words = np.empty((units, width), np.float32), np.empty((4, width), np.uint32)
    best, place = np.empty(width, np.float32), np.empty(width, np.int32)
    for start in range(first, last, width):
        count = min(width, last - start)
        _meet_in_tile(h, start, beta, noise, low, high, z, words, best, place, count)
        for t in range(count):
            p, s = divmod(start + t, inner)
            unit[p, s] = p % blocks * units + place[t]
            values[p, s] = h[p, place[t], s]


@compiled
def _meet_in_tile(h, start, beta, noise, low, high, z, words, best, place, count):  # type: ignore[no-untyped-def]
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
