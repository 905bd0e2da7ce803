"""Compiled inner loops of the similarities, over a range of concepts each.

A thread takes a range of concepts, so that what it reads again and again of a block of images stays in its
cache; the loops over concepts are contiguous and become vector instructions. The threads are Python's: the
kernels release the interpreter, and such a pool lives well beside torch's threads and forked loaders.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

GROUP = 5  # entries of a unit that one pass over the concepts takes
CHUNK = 512  # concepts
_ROOT = 0x3F3504F3  # the bits of sqrt(1/2)
_LN2, _C3, _C5, _C7, _C9 = (np.float32(x) for x in (math.log(2), 2 / 3, 2 / 5, 2 / 7, 2 / 9))
_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})


def over_concepts(kernel: Callable[..., None], count: int, *arguments: Any, chunk: int = CHUNK) -> None:
    """``kernel(*arguments, first, last)`` for every range of ``count`` concepts, in torch's thread count."""
    firsts = range(0, count, chunk)
    threads = min(torch.get_num_threads(), len(firsts))
    if threads <= 1:
        for first in firsts:
            kernel(*arguments, first, min(first + chunk, count))
        return
    with ThreadPoolExecutor(threads) as pool:
        tasks = [pool.submit(kernel, *arguments, first, min(first + chunk, count)) for first in firsts]
    for task in tasks:
        task.result()


@intrinsic
def _exponent(typingctx, x):  # type: ignore[no-untyped-def]
    """e of x = m 2^e with m in [sqrt(1/2), sqrt(2)), for a normal positive float32."""

    def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
        bits = builder.sub(builder.bitcast(args[0], ir.IntType(32)), ir.IntType(32)(_ROOT))
        return builder.sitofp(builder.ashr(bits, ir.IntType(32)(23)), ir.FloatType())

    return types.float32(types.float32), build


@intrinsic
def _mantissa(typingctx, x):  # type: ignore[no-untyped-def]
    """m of :func:`_exponent`."""

    def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
        bits = builder.sub(builder.bitcast(args[0], ir.IntType(32)), ir.IntType(32)(_ROOT))
        bits = builder.and_(bits, ir.IntType(32)(0x7FFFFF))
        return builder.bitcast(builder.add(bits, ir.IntType(32)(_ROOT)), ir.FloatType())

    return types.float32(types.float32), build


@_compiled
def _log(x: np.float32) -> np.float32:
    """log x of a normal positive float32 in plain arithmetic, which the compiler can vectorise.

    log m = 2 artanh((m - 1) / (m + 1)), whose series after five terms is off by 7e-10 at most.
    """
    m = _mantissa(x)  # type: ignore[call-arg]
    s = (m - np.float32(1)) / (m + np.float32(1))
    q = s * s
    e = _exponent(x)  # type: ignore[call-arg]
    return e * _LN2 + s * (np.float32(2) + q * (_C3 + q * (_C5 + q * (_C7 + q * _C9))))


@_compiled
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
                out[c] += _log(product[c])


@_compiled
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


@_compiled
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
    half, ln2 = np.float32(0.5), _LN2
    for j in range(len(units)):
        part[:] = 0
        for e in range(starts[j], starts[j + 1]):
            logs, share = log_shares[rows[e], first:last], shares[rows[e], first:last]
            q = weights[e]
            log_q = np.float32(math.log(q))
            for c in range(len(part)):
                middle = _log((q + share[c]) * half)
                part[c] += q * (log_q - middle) + share[c] * (logs[c] - middle - ln2)
        out = sums[units[j], first:last]
        for c in range(len(part)):
            out[c] += part[c]
