"""The competition as one pass over memory forward and one backward, in Triton.

Units come as contiguous (P, U, S): U competitors at each of P S positions, which are numbered p S + s. A
program takes tiles of N positions by UP, the next power of two from U. The noise is that of
:mod:`lwta.cpu.noise`, a function of seed, position and competitor; backward makes it again, so that nothing
but the input is kept. NVIDIA says whether its instructions are at hand.
"""

# Triton's language has types of its own.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false

from typing import Any, cast

import triton
import triton.language as tl

from lwta.cpu.noise import ROUNDS

_ROUNDS = tl.constexpr(ROUNDS)
_LN2, _LOG2_E = tl.constexpr(0.6931471805599453), tl.constexpr(1.4426950408889634)


@triton.jit
def _number(x):  # type: ignore[no-untyped-def]
    """A scale: a number, or where one lies."""
    x = tl.to_tensor(x)  # the interpreter's numbers are Python's
    if x.dtype.is_ptr():
        x = tl.load(x)
    return x.to(tl.float32)


@triton.jit
def _log2(x, NVIDIA: tl.constexpr):  # type: ignore[no-untyped-def]
    # Triton's own takes a polynomial on NVIDIA, and longer than the memory does.
    if NVIDIA:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return tl.log2(x)


@triton.jit
def _exp2(x, NVIDIA: tl.constexpr):  # type: ignore[no-untyped-def]
    if NVIDIA:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return tl.exp2(x)


@triton.jit
def _log2_noise(n, seed, N: tl.constexpr, UP: tl.constexpr, NVIDIA: tl.constexpr):  # type: ignore[no-untyped-def]
    """log2(-log(u)) of uniform u for competitors at positions n; Gumbel noise is -log(2) times that."""
    groups: tl.constexpr = (UP + 3) // 4
    low, high = n.to(tl.uint32), (n >> 32).to(tl.uint32)
    group = tl.arange(0, groups).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(tl.load(seed), low[:, None], high[:, None], group[None, :], 0, _ROUNDS)
    words = tl.join(w0, w1) if UP == 2 else tl.join(tl.join(w0, w2), tl.join(w1, w3))
    # 1 + k / 2^23 by its bits, less all but the half of an interval: exact, and the middle of interval k.
    bits = (tl.reshape(words, (N, UP)) >> 9) | 0x3F800000
    uniform = bits.to(tl.float32, bitcast=True) - 0.99999994039535522
    rest = 1 - uniform
    # The GPU's logarithm is off by 2^-22 near 1, where the winners' noise comes from; the series is not. Each
    # multiplication and addition is fused by name, so that backward finds the winners of forward.
    series = tl.fma(tl.fma(rest, 0.3333333333333333, 0.5), rest, 1.0) * rest
    return _log2(tl.where(rest < 0.03125, series, _log2(uniform, NVIDIA) * -_LN2), NVIDIA)


@triton.jit
def _compete(
    h, n, u, beta, noise, seed, N: tl.constexpr, U: tl.constexpr, UP: tl.constexpr, NVIDIA: tl.constexpr
):  # type: ignore[no-untyped-def]
    """z of a tile (N, UP), its largest, and who wins: the first NaN, as in torch, or the first of equals."""
    z = h * beta
    if seed is not None:
        z = tl.fma(_log2_noise(n, seed, N, UP, NVIDIA), noise * -_LN2, z)
    z = tl.where(u < U, z, float("-inf"))
    best = tl.max(z, 1)[:, None]
    place = tl.min(tl.where(z != z, u, tl.where(z == best, u + UP, 2 * UP)), 1)
    return z, best, (place % UP)[:, None]


@triton.jit
def _softmax(z, u, U: tl.constexpr):  # type: ignore[no-untyped-def]
    """Softmax over competitors, and its logarithm."""
    z = tl.where(u < U, z, float("-inf"))
    z -= tl.max(z, 1)[:, None]
    e = tl.exp(z)
    total = tl.sum(e, 1)[:, None]
    return e * (1 / total), z - tl.log(total)


@triton.jit
def _places(first, S, u, N: tl.constexpr, U: tl.constexpr, LAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the competitors of positions first, first + 1, ... lie: a start, and what to add to it."""
    lanes = tl.arange(0, N)
    if LAST:
        return first * U, lanes[:, None] * U + u
    else:
        p = first // S
        t = (first - p * S).to(tl.int32) + lanes
        # Neighbours in memory but for the ends of a row, which is what the lanes are to be laid out for.
        wide = tl.max_contiguous((t // S).to(tl.int64) * (U - 1) * S + t, N)
        return p * U * S, wide[:, None] + u.to(tl.int64) * S


@triton.jit(do_not_specialize=["S"])
def _forward(  # type: ignore[no-untyped-def]
    h_at, values_at, winner_at, sums_at, divergence_at, beta, noise, seed, usage, kl, total, period, steps, S,
    U: tl.constexpr, UP: tl.constexpr, N: tl.constexpr, LAST: tl.constexpr, NVIDIA: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * N
    lanes, u = tl.arange(0, N), tl.arange(0, UP)[None, :]
    sums, divergence = tl.zeros((N, UP), tl.float32), tl.zeros((N,), tl.float32)
    for step in range(steps):
        first = start + (tl.program_id(1).to(tl.int64) * steps + step) * period
        n = first + lanes
        inside = (start + lanes < period) & (n < total)
        mask = inside[:, None] & (u < U)
        base, offset = _places(first, S, u, N, U, LAST)
        own = tl.load(h_at + base + offset, mask, other=0)
        h = own.to(tl.float32)
        _, _, place = _compete(h, n, u, _number(beta), _number(noise), seed, N, U, UP, NVIDIA)
        tl.store(values_at + base + offset, tl.where(u == place, own, 0), mask)
        tl.store(winner_at + n[:, None], place.to(tl.int64), inside[:, None])
        if usage is not None:
            q, _ = _softmax(h * _number(usage), u, U)
            sums += tl.where(mask, q, 0)
        if kl is not None:
            q, log_q = _softmax(h * _number(kl), u, U)
            divergence += tl.where(inside, tl.sum(tl.where(q > 0, q * log_q, 0), 1), 0)
    if usage is not None:
        row = tl.program_id(1).to(tl.int64) * period + start + lanes
        tl.store(sums_at + row[:, None] * U + u, sums, (start + lanes < period)[:, None] & (u < U))
    if kl is not None:
        program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tl.store(divergence_at + program, tl.sum(divergence, 0))


@triton.jit(do_not_specialize=["S", "blocks"])
def _backward(  # type: ignore[no-untyped-def]
    out_at, upstream_at, usage_upstream, kl_upstream, h_at,
    beta, noise, tau, seed, usage, kl, total, blocks, S,
    U: tl.constexpr, UP: tl.constexpr, N: tl.constexpr, LAST: tl.constexpr, NVIDIA: tl.constexpr,
    RELAXED: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * N
    u = tl.arange(0, UP)[None, :]
    n = first + tl.arange(0, N)
    mask = (n < total)[:, None] & (u < U)
    base, offset = _places(first, S, u, N, U, LAST)
    h = tl.load(h_at + base + offset, mask, other=0).to(tl.float32)
    upstream = tl.load(upstream_at + base + offset, mask, other=0).to(tl.float32)
    z, best, place = _compete(h, n, u, _number(beta), _number(noise), seed, N, U, UP, NVIDIA)
    gradient = tl.where(u == place, upstream, 0)
    if RELAXED:
        e = _exp2((z - best) * (_LOG2_E / _number(tau)), NVIDIA)
        each = 1 / tl.sum(e, 1)[:, None]
        weighted = upstream * h
        mean = tl.sum(weighted * e, 1)[:, None] * each
        gradient += (_number(beta) / _number(tau) * each) * e * (weighted - mean)
    if usage is not None:
        q, _ = _softmax(h * _number(usage), u, U)
        block = (n if LAST else n // S) % blocks
        g = tl.load(usage_upstream + block[:, None] * U + u, mask, other=0)
        each = _number(usage) * blocks / total
        gradient += each * q * (g - tl.sum(g * q, 1)[:, None])
    if kl is not None:
        q, log_q = _softmax(h * _number(kl), u, U)
        log_q = tl.where(q > 0, log_q, 0)
        each = tl.load(kl_upstream).to(tl.float32) * _number(kl) / total
        gradient += each * q * (log_q - tl.sum(q * log_q, 1)[:, None])
    tl.store(out_at + base + offset, gradient, mask)


#: Compiled for a GPU, rather than run by Triton's interpreter.
COMPILED = isinstance(_forward, triton.runtime.JITFunction)
forward, backward = cast(Any, (_forward, _backward))
