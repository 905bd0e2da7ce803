"""Compiled inner loops of the similarities, over a range of concepts each.

A thread takes a range of concepts, so that what it reads again and again of a block of images stays in its
cache; the loops over concepts are contiguous and become vector instructions.
"""

import math

import numpy as np

from lwta.compiled import LN2, compiled, log

GROUP = 5  # entries of a unit that one pass over the concepts takes
CHUNK = 512  # concepts


@compiled
def add_logs(
    shown: np.ndarray,
    units: np.ndarray,
    rows: np.ndarray,
    absent: np.ndarray,
    present: np.ndarray,
    begins: np.ndarray,
    ends: np.ndarray,
    sums: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Add log(absent + present * shown[row]) of a group's five entries to the ``sums`` of its unit.

    Args:
        shown: S of a block of images, (n, K) float32.
        units: unit of each group, (G,).
        rows: row of ``shown`` of each entry, (G, 5).
        absent, present: float32 (G, 5); an empty place has 1 and 0.
        begins, ends: bool (G,), the first and the last group of those that share a logarithm.
        sums: float32 (D, K).
    """
    product = np.empty(last - first, np.float32)
    for g in range(len(units)):
        s0, s1, s2 = (
            shown[rows[g, 0], first:last],
            shown[rows[g, 1], first:last],
            shown[rows[g, 2], first:last],
        )
        s3, s4 = shown[rows[g, 3], first:last], shown[rows[g, 4], first:last]
        a0, a1, a2, a3, a4 = absent[g, 0], absent[g, 1], absent[g, 2], absent[g, 3], absent[g, 4]
        p0, p1, p2, p3, p4 = present[g, 0], present[g, 1], present[g, 2], present[g, 3], present[g, 4]
        if begins[g]:
            product[:] = 1
        for c in range(len(product)):
            two = (a0 + p0 * s0[c]) * (a1 + p1 * s1[c])
            product[c] *= two * (a2 + p2 * s2[c]) * ((a3 + p3 * s3[c]) * (a4 + p4 * s4[c]))
        if ends[g]:
            out = sums[units[g], first:last]
            for c in range(len(product)):
                out[c] += log(product[c])


@compiled
def walk_ranks(
    orders: np.ndarray,
    presence: np.ndarray,
    starts: np.ndarray,
    units: np.ndarray,
    values: np.ndarray,
    ascending: np.ndarray,
    power: int,
    errors: np.ndarray,
    presences: np.ndarray,
) -> None:
    """Of each concept, sum |t - t'|^power over each unit's list, t' the value of the same rank by presence.

    The images are met in ascending order of presence, so the rank of one within a unit's list is how many of
    that list were met before: a counter per unit serves in place of a sort per unit.

    Args:
        orders: places of the listed images in ascending order of presence, int64 (c, n).
        presence: of the listed images, float32 (c, n).
        starts: where an image's entries begin, (n + 1,).
        units, values: unit and value of each entry, by image.
        ascending: sorted values of each unit, float32 (D, k).
        errors, presences: float64 (c, D), the sums and those of the presence.
    """
    met = np.empty(ascending.shape[0], np.int32)
    for c in range(len(orders)):
        met[:] = 0
        for i in orders[c]:
            for e in range(starts[i], starts[i + 1]):
                d = units[e]
                difference = abs(values[e] - ascending[d, met[d]])
                met[d] += 1
                # Written out: a power is many times slower than the published cube.
                if power == 3:
                    errors[c, d] += difference * difference * difference
                else:
                    errors[c, d] += difference**power
                presences[c, d] += presence[c, i]


@compiled
def add_divergence(
    log_shares: np.ndarray,
    shares: np.ndarray,
    units: np.ndarray,
    starts: np.ndarray,
    rows: np.ndarray,
    weights: np.ndarray,
    sums: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Add q log(2 q / (q + r)) + r log(2 r / (q + r)) - r log 2 over the wins of a block of images.

    Args:
        log_shares, shares: log r and r of a block of images, (n, K) float32.
        units: the units that won in the block, (u,).
        starts: where a unit's wins begin, (u + 1,).
        rows, weights: row and q > 0 of each win.
        sums: float64 (D, K).
    """
    part = np.empty(last - first, np.float32)
    half, ln2 = np.float32(0.5), LN2
    for j in range(len(units)):
        part[:] = 0
        for e in range(starts[j], starts[j + 1]):
            logs, share = log_shares[rows[e], first:last], shares[rows[e], first:last]
            q = weights[e]
            log_q = np.float32(math.log(q))
            for c in range(len(part)):
                middle = log((q + share[c]) * half)
                part[c] += q * (log_q - middle) + share[c] * (logs[c] - middle - ln2)
        out = sums[units[j], first:last]
        for c in range(len(part)):
            out[c] += part[c]
