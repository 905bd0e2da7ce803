"""Competition and the layer that reads it in one: of each block, one row of that layer's weight is added."""

import numpy as np

from lwta.compiled import compiled, summed
from lwta.cpu.competition import meet_in_tile
from lwta.cpu.noise import key_of
from lwta.cpu.tiles import stretch
from lwta.threads import over_ranges, share

_TILE = 1 << 14  # units that meet at a time
_RUN = 32  # positions at least, where those of a block follow each other


def sum_winners(
    h: np.ndarray,
    blocks: int,
    beta: float,
    rows: np.ndarray,
    bias: np.ndarray,
    noise: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """bias + the sum over winners of value times row, float32 (N S, K), a sample's positions in a row.

    Args:
        h: contiguous units (P, U, S); of P rows that follow each other each B are the blocks of one sample.
        rows: contiguous (D, K), D = B U, float32.
        bias: (K,), float32.
    """
    count = h.shape[0] // blocks * h.shape[2]
    out = np.empty((count, rows.shape[1]), np.float32)
    arguments = (h, blocks, np.float32(beta), np.float32(noise), *key_of(seed), rows, bias, out)
    over_ranges(_sum_winners, count, *arguments, chunk=share(count, len(rows)))
    return out


@compiled
def _sum_winners(h, blocks, beta, noise, low, high, rows, bias, out, first, last):  # type: ignore[no-untyped-def]
    units, inner = h.shape[1], h.shape[2]
    tile = max(1 if inner == 1 else _RUN, _TILE // (blocks * units))
    width = tile * blocks if inner == 1 else tile
    z, words = np.empty((units, width), np.float32), np.empty((4, width), np.uint32)
    best, place = np.empty(width, np.float32), np.empty(width, np.int32)
    value, row = np.empty((tile, blocks), np.float32), np.empty((tile, blocks), np.int64)
    start = first
    while start < last:
        n, s, count = stretch(start, inner, min(tile, last - start))
        if inner == 1:  # the blocks of several samples follow each other
            count = min(tile, last - start)
            meet_in_tile(h, n * blocks, beta, noise, low, high, z, words, best, place, count * blocks)
            for t in range(count):
                for b in range(blocks):
                    won = place[t * blocks + b]
                    value[t, b], row[t, b] = h[(n + t) * blocks + b, won, 0], b * units + won
        else:
            for b in range(blocks):
                p = n * blocks + b
                meet_in_tile(h, p * inner + s, beta, noise, low, high, z, words, best, place, count)
                for t in range(count):
                    value[t, b], row[t, b] = h[p, place[t], s + t], b * units + place[t]
        for t in range(count):
            out[start + t] = bias
            _add_rows(value[t], row[t], rows, out[start + t])
        start += count


@summed
def _add_rows(value, row, rows, out):  # type: ignore[no-untyped-def]
    """Four at a time: what is summed is read and written a fourth as often."""
    fours = len(row) // 4 * 4
    for b in range(0, fours, 4):
        v0, v1, v2, v3 = value[b], value[b + 1], value[b + 2], value[b + 3]
        r0, r1, r2, r3 = rows[row[b]], rows[row[b + 1]], rows[row[b + 2]], rows[row[b + 3]]
        for k in range(len(out)):
            out[k] += v0 * r0[k] + v1 * r1[k] + v2 * r2[k] + v3 * r3[k]
    for b in range(fours, len(row)):
        r0 = rows[row[b]]
        for k in range(len(out)):
            out[k] += value[b] * r0[k]
