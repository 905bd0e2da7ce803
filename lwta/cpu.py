"""The competition of float32 units on the CPU: noise, winners and relaxed sample in one pass over memory.

Units come as (P, U, S): U competitors at each of P S positions, which are numbered p S + s. A tile of
positions is laid out competitor by competitor, so that every loop runs over positions, whatever U is, and
becomes vector instructions. The noise of competitor u at position n is a function of the seed, n and u alone:
the word u % 4 of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with
the seed as key and (n, u // 4) as counter. So it depends neither on threads nor on tiles.
"""

import numpy as np

from lwta.compiled import compiled, exp, log, over_ranges, summed

_TILE = 4096  # units laid out at a time: they and what is made of them stay in the first cache
_ROUNDS = 10
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_WORD = np.uint64(32)


def gumbel(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Gumbel(0, 1) noise of units (P, U, S), float32."""
    out = np.zeros(shape, np.float32)
    over_ranges(_fill_gumbel, shape[0] * shape[2], out, *_key(seed), chunk=_chunk(shape))
    return out


def compete(
    h: np.ndarray, beta: float, tau: float, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, winners (P, S) int64 and relaxed sample p = softmax(z / tau) of contiguous units (P, U, S)."""
    values, relaxed = np.zeros_like(h), np.empty_like(h)
    winner = np.empty((h.shape[0], h.shape[2]), np.int64)
    scales = np.float32(beta), np.float32(noise), np.float32(1 / tau)
    over_ranges(
        _compete, winner.size, h, *scales, *_key(seed), values, winner, relaxed, chunk=_chunk(h.shape)
    )
    return values, winner, relaxed


def gradient(
    upstream: np.ndarray, h: np.ndarray, relaxed: np.ndarray, winner: np.ndarray, scale: float
) -> np.ndarray:
    """G_v xi_v + scale p_v (G_v h_v - sum_u G_u h_u p_u) of contiguous arrays (P, U, S)."""
    out = np.empty_like(h)
    arrays, kernel = (upstream, h, relaxed, out), _gradient
    if h.shape[2] == 1:
        arrays, kernel = tuple(array[:, :, 0] for array in arrays), _gradient_of_rows
    chunk = max(1, _PART // max(1, h[0].size)) if len(h) else 1
    over_ranges(kernel, len(h), *arrays, winner, np.float32(scale), chunk=chunk)
    return out


_PART = 1 << 18  # units that a thread takes at a time


def _chunk(shape: tuple[int, ...]) -> int:
    return max(1, _PART // max(1, shape[1]))


def _key(seed: int) -> tuple[np.uint32, np.uint32]:
    return np.uint32(seed & 0xFFFFFFFF), np.uint32((seed >> 32) & 0xFFFFFFFF)


@compiled
def _philox(first, group, low, high, words, count):  # type: ignore[no-untyped-def]
    """The four words of positions first, first + 1, ... and competitors 4 group ... 4 group + 3."""
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    for t in range(count):
        n = np.uint64(first + t)
        c0, c1, c2, c3 = np.uint32(n), np.uint32(n >> _WORD), np.uint32(group), np.uint32(0)
        k0, k1 = low, high
        for _ in range(_ROUNDS):
            a, b = np.uint64(c0) * _M0, np.uint64(c2) * _M1
            c0 = np.uint32(np.uint32(b >> _WORD) ^ c1 ^ k0)
            c2 = np.uint32(np.uint32(a >> _WORD) ^ c3 ^ k1)
            c1, c3 = np.uint32(b), np.uint32(a)
            k0, k1 = np.uint32(k0 + _W0), np.uint32(k1 + _W1)
        w0[t], w1[t], w2[t], w3[t] = c0, c1, c2, c3


@compiled
def _add_gumbel_row(z, words, noise, count):  # type: ignore[no-untyped-def]
    for t in range(count):
        # The middles of 2^23 intervals: neither 0 nor 1, and exact.
        u = (np.float32(np.int32(words[t] >> np.uint32(9))) + np.float32(0.5)) * np.float32(2**-23)
        z[t] -= noise * log(-log(u))


@compiled
def _add_gumbel(z, first, noise, low, high, words, count):  # type: ignore[no-untyped-def]
    """Add noise to the competitors ``z`` (U, T) of positions first, first + 1, ..."""
    competitors = z.shape[0]
    for group in range((competitors + 3) // 4):
        _philox(first, group, low, high, words, count)
        for lane in range(min(4, competitors - 4 * group)):
            _add_gumbel_row(z[4 * group + lane], words[lane], noise, count)


@compiled
def _fill_gumbel(out, low, high, first, last):  # type: ignore[no-untyped-def]
    units, inner = out.shape[1], out.shape[2]
    width = max(16, _TILE // units // 16 * 16)
    z, words = np.empty((units, width), np.float32), np.empty((4, width), np.uint32)
    for start in range(first, last, width):
        count = min(width, last - start)
        z[:] = 0
        _add_gumbel(z, start, np.float32(1), low, high, words, count)
        for t in range(count):
            p, s = divmod(start + t, inner)
            for u in range(units):
                out[p, u, s] = z[u, t]


@compiled
def _lay_out(h, start, beta, z, count):  # type: ignore[no-untyped-def]
    """z[u, t] = beta h of competitor u at position start + t."""
    units, inner = h.shape[1], h.shape[2]
    if inner == 1:
        for t in range(count):
            for u in range(units):
                z[u, t] = beta * h[start + t, u, 0]
        return
    t = 0
    while t < count:
        p, s = divmod(start + t, inner)
        run = min(inner - s, count - t)
        for u in range(units):
            row, own = z[u, t : t + run], h[p, u, s : s + run]
            for i in range(run):
                row[i] = beta * own[i]
        t += run


@compiled
def _put_back(z, start, out, count):  # type: ignore[no-untyped-def]
    """out of competitor u at position start + t = z[u, t]."""
    units, inner = out.shape[1], out.shape[2]
    if inner == 1:
        for t in range(count):
            for u in range(units):
                out[start + t, u, 0] = z[u, t]
        return
    t = 0
    while t < count:
        p, s = divmod(start + t, inner)
        run = min(inner - s, count - t)
        for u in range(units):
            out[p, u, s : s + run] = z[u, t : t + run]
        t += run


@compiled
def _meet(z, best, place, u, count):  # type: ignore[no-untyped-def]
    for t in range(count):
        # As in torch the first NaN wins: what is wrong is not to be hidden.
        ahead = (z[t] > best[t]) | ((z[t] != z[t]) & (best[t] == best[t]))
        best[t] = z[t] if ahead else best[t]
        place[t] = u if ahead else place[t]


@compiled
def _relax(z, best, inverse, total, count):  # type: ignore[no-untyped-def]
    for t in range(count):
        z[t] = exp((z[t] - best[t]) * inverse)
        total[t] += z[t]


@compiled
def _compete(h, beta, noise, inverse, low, high, values, winner, relaxed, first, last):  # type: ignore[no-untyped-def]
    units, inner = h.shape[1], h.shape[2]
    width = max(16, _TILE // units // 16 * 16)
    z, words = np.empty((units, width), np.float32), np.empty((4, width), np.uint32)
    best, total, place = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.int32)
    for start in range(first, last, width):
        count = min(width, last - start)
        _lay_out(h, start, beta, z, count)
        if noise > 0:
            _add_gumbel(z, start, noise, low, high, words, count)
        best[:], place[:], total[:] = z[0], 0, 0
        for u in range(1, units):
            _meet(z[u], best, place, np.int32(u), count)
        for u in range(units):
            _relax(z[u], best, inverse, total, count)
        total[:count] = np.float32(1) / total[:count]
        for u in range(units):
            z[u, :count] *= total[:count]
        _put_back(z, start, relaxed, count)
        for t in range(count):
            p, s = divmod(start + t, inner)
            winner[p, s] = place[t]
            values[p, place[t], s] = h[p, place[t], s]


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
