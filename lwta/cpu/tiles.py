"""Units laid out competitor by competitor, a tile of positions at a time.

Units come as (P, U, S): U competitors at each of P S positions, which are numbered p S + s. In a tile every
loop runs over positions, whatever U is, and becomes vector instructions.
"""

import numpy as np

from lwta.compiled import compiled, exp

_TILE = 4096  # units laid out at a time: they and what is made of them stay in the first cache


@compiled
def tile_width(competitors: int) -> int:
    """Positions of a tile."""
    return max(16, _TILE // competitors // 16 * 16)


@compiled
def stretch(position, inner, left):  # type: ignore[no-untyped-def]
    """(p, s, length) of the stretch of at most ``left`` positions that share p."""
    p, s = divmod(position, inner)
    return p, s, min(inner - s, left)


@compiled
def flat_pairs(x, first, last):  # type: ignore[no-untyped-def]
    """Rows first ... last - 1 of a contiguous x (P, 2) or (P, 2, 1), one after the other.

    Of a loop over these the compiler knows the stride, and that no index is negative: it becomes vectors.
    """
    return x.reshape(x.size)[2 * first : 2 * last]


@compiled
def lay_out(h, start, beta, z, count):  # type: ignore[no-untyped-def]
    """z[u, t] = beta h of competitor u at position start + t."""
    units, inner = h.shape[1], h.shape[2]
    if inner == 1:
        if units == 2:
            pairs = flat_pairs(h, start, start + count)
            for t in range(count):
                z[0, t], z[1, t] = beta * pairs[2 * t], beta * pairs[2 * t + 1]
            return
        for t in range(count):
            for u in range(units):
                z[u, t] = beta * h[start + t, u, 0]
        return
    t = 0
    while t < count:
        p, s, run = stretch(start + t, inner, count - t)
        for u in range(units):
            row, own = z[u, t : t + run], h[p, u, s : s + run]
            for i in range(run):
                row[i] = beta * own[i]
        t += run


@compiled
def put_back(z, start, out, count):  # type: ignore[no-untyped-def]
    """out of competitor u at position start + t = z[u, t]."""
    units, inner = out.shape[1], out.shape[2]
    if inner == 1:
        if units == 2:
            pairs = flat_pairs(out, start, start + count)
            for t in range(count):
                pairs[2 * t], pairs[2 * t + 1] = z[0, t], z[1, t]
            return
        for t in range(count):
            for u in range(units):
                out[start + t, u, 0] = z[u, t]
        return
    t = 0
    while t < count:
        p, s, run = stretch(start + t, inner, count - t)
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
def find_winners(z, best, place, count):  # type: ignore[no-untyped-def]
    """The largest of z (U, T) at each position, float32, and its competitor, int32."""
    best[:], place[:] = z[0], 0
    for u in range(1, len(z)):
        _meet(z[u], best, place, np.int32(u), count)


@compiled
def soften(z, best, total, inverse, count):  # type: ignore[no-untyped-def]
    """Put softmax(inverse z) over competitors in place of z (U, T), whose largest are ``best``.

    Args:
        total: room for float32 of T positions.
    """
    total[:] = 0
    for u in range(len(z)):
        _relax(z[u], best, inverse, total, count)
    total[:count] = np.float32(1) / total[:count]
    for u in range(len(z)):
        z[u, :count] *= total[:count]
