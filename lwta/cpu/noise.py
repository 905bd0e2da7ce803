"""Gumbel noise that is a function of seed, position and competitor.

The noise of competitor u at position n is made of the word u % 4 of Philox4x32-10 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011) with the seed as key and (n, u // 4) as counter. So it depends
neither on threads nor on tiles.
"""

import numpy as np

from lwta.compiled import compiled, exact, log
from lwta.cpu.tiles import put_back, tile_width
from lwta.threads import over_ranges, share

ROUNDS = 10
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_WORD = np.uint64(32)


def gumbel(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Gumbel(0, 1) noise of units (P, U, S), float32."""
    out = np.empty(shape, np.float32)
    count = shape[0] * shape[2]
    over_ranges(_fill_gumbel, count, out, *key_of(seed), chunk=share(count, shape[1]))
    return out


def key_of(seed: int) -> tuple[np.uint32, np.uint32]:
    """The two words of a seed."""
    return np.uint32(seed & 0xFFFFFFFF), np.uint32((seed >> 32) & 0xFFFFFFFF)


@compiled
def _philox(first, group, low, high, words, count):  # type: ignore[no-untyped-def]
    """The four words of positions first, first + 1, ... and competitors 4 group ... 4 group + 3."""
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    for t in range(count):
        n = np.uint64(first + t)
        c0, c1, c2, c3 = np.uint32(n), np.uint32(n >> _WORD), np.uint32(group), np.uint32(0)
        k0, k1 = low, high
        for _ in range(ROUNDS):
            a, b = np.uint64(c0) * _M0, np.uint64(c2) * _M1
            c0 = np.uint32(np.uint32(b >> _WORD) ^ c1 ^ k0)
            c2 = np.uint32(np.uint32(a >> _WORD) ^ c3 ^ k1)
            c1, c3 = np.uint32(b), np.uint32(a)
            k0, k1 = np.uint32(k0 + _W0), np.uint32(k1 + _W1)
        w0[t], w1[t], w2[t], w3[t] = c0, c1, c2, c3


@exact
def _add_gumbel_row(z, words, noise, count):  # type: ignore[no-untyped-def]
    # Rounded as torch rounds z + s g, so that either finds the same winners.
    for t in range(count):
        # The middles of 2^23 intervals: neither 0 nor 1, and exact.
        u = (np.float32(np.int32(words[t] >> np.uint32(9))) + np.float32(0.5)) * np.float32(2**-23)
        z[t] += noise * -log(-log(u))


@compiled
def add_gumbel(z, first, noise, low, high, words, count):  # type: ignore[no-untyped-def]
    """Add noise to the competitors ``z`` (U, T) of positions first, first + 1, ..."""
    competitors = z.shape[0]
    for group in range((competitors + 3) // 4):
        _philox(first, group, low, high, words, count)
        for lane in range(min(4, competitors - 4 * group)):
            _add_gumbel_row(z[4 * group + lane], words[lane], noise, count)


@compiled
def _fill_gumbel(out, low, high, first, last):  # type: ignore[no-untyped-def]
    units = out.shape[1]
    width = tile_width(units)
    z, words = np.empty((units, width), np.float32), np.empty((4, width), np.uint32)
    for start in range(first, last, width):
        count = min(width, last - start)
        z[:] = 0
        add_gumbel(z, start, np.float32(1), low, high, words, count)
        put_back(z, start, out, count)
