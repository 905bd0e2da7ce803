"""The competition as one pass over memory forward and one backward, in Triton.

Units come as contiguous (P, U, S): U competitors at each of P S positions, which are numbered p S + s. A
program takes tiles of N positions by K chunks of C competitors, powers of two all; of K C from U on are no
competitors. The noise is that of :mod:`lwta.cpu.noise`, a function of seed, position and competitor; backward
makes it again, so that nothing but the input is kept. NVIDIA says whether its instructions are at hand.
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
def _log2_noise(n, seed, N: tl.constexpr, K: tl.constexpr, C: tl.constexpr, NVIDIA: tl.constexpr):  # type: ignore[no-untyped-def]
    """log2(-log(u)) of uniform u for competitors at positions n; Gumbel noise is -log(2) times that."""
    groups: tl.constexpr = (C + 3) // 4
    low, high = n.to(tl.uint32)[:, None, None], (n >> 32).to(tl.uint32)[:, None, None]
    group = tl.arange(0, K)[None, :, None] * groups + tl.arange(0, groups)[None, None, :]
    w0, w1, w2, w3 = tl.philox(tl.load(seed), low, high, group.to(tl.uint32), 0, _ROUNDS)
    words = tl.join(w0, w1) if C == 2 else tl.join(tl.join(w0, w2), tl.join(w1, w3))
    # 1 + k / 2^23 by its bits, less all but the half of an interval: exact, and the middle of interval k.
    bits = (tl.reshape(words, (N, K, C)) >> 9) | 0x3F800000
    uniform = bits.to(tl.float32, bitcast=True) - 0.99999994039535522
    rest = 1 - uniform
    # The GPU's logarithm is off by 2^-22 near 1, where the winners' noise comes from; the series is not. Each
    # multiplication and addition is fused by name, so that backward finds the winners of forward.
    series = tl.fma(tl.fma(rest, 0.3333333333333333, 0.5), rest, 1.0) * rest
    return _log2(tl.where(rest < 0.03125, series, _log2(uniform, NVIDIA) * -_LN2), NVIDIA)


@triton.jit
def _largest(x):  # type: ignore[no-untyped-def]
    return tl.max(tl.max(x, 2), 1)[:, None, None]


@triton.jit
def _sum(x):  # type: ignore[no-untyped-def]
    return tl.sum(tl.sum(x, 2), 1)[:, None, None]


@triton.jit
def _compete(  # type: ignore[no-untyped-def]
    h, n, u, beta, noise, seed, U: tl.constexpr, N: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
    NVIDIA: tl.constexpr,
):  # fmt: skip
    """z of a tile, its largest, and who wins: the first NaN, as in torch, or the first of equals."""
    z = h * beta
    if seed is not None:
        z = tl.fma(_log2_noise(n, seed, N, K, C, NVIDIA), noise * -_LN2, z)
    z = tl.where(u < U, z, float("-inf"))
    best = _largest(z)
    rank = tl.where(z != z, u, tl.where(z == best, u + K * C, 2 * K * C))
    return z, best, (tl.min(tl.min(rank, 2), 1) % (K * C))[:, None, None]


@triton.jit
def _softmax(z, u, U: tl.constexpr):  # type: ignore[no-untyped-def]
    """Softmax over competitors, and its logarithm."""
    z = tl.where(u < U, z, float("-inf"))
    z -= _largest(z)
    e = tl.exp(z)
    total = _sum(e)
    return e * (1 / total), z - tl.log(total)


@triton.jit
def _competitors(K: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.arange(0, K)[None, :, None] * C + tl.arange(0, C)[None, None, :]


@triton.jit
def _places(first, S, u, U: tl.constexpr, N: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the competitors of positions first, first + 1, ... lie: a start, and what to add to it."""
    lanes = tl.arange(0, N)
    # Threads are laid out along what is called contiguous: positions, be they neighbours in memory or not, so
    # that a thread has all competitors of its own, and lanes beyond U, known when compiled, cost nothing.
    if LAST:
        return first * U, tl.max_contiguous(lanes[:, None, None] * U + u, [2 if C > 2 else 1, 1, C])
    else:
        p = first // S
        t = (first - p * S).to(tl.int32) + lanes
        wide = tl.max_contiguous((t // S).to(tl.int64) * (U - 1) * S + t, N)
        return p * U * S, wide[:, None, None] + u.to(tl.int64) * S


@triton.jit(do_not_specialize=["S"])
def _forward(  # type: ignore[no-untyped-def]
    h_at, values_at, winner_at, sums_at, divergence_at, beta, noise, seed, usage, kl, total, period, steps, S,
    U: tl.constexpr, N: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
    LAST: tl.constexpr, NVIDIA: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * N
    lanes, u = tl.arange(0, N), _competitors(K, C)
    sums, divergence = tl.zeros((N, K, C), tl.float32), tl.zeros((N, 1, 1), tl.float32)
    for step in range(steps):
        first = start + (tl.program_id(1).to(tl.int64) * steps + step) * period
        n = first + lanes
        inside = (start + lanes < period) & (n < total)
        mask = inside[:, None, None] & (u < U)
        base, offset = _places(first, S, u, U, N, C, LAST)
        own = tl.load(h_at + base + offset, mask, other=0)
        h = own.to(tl.float32)
        _, _, place = _compete(h, n, u, _number(beta), _number(noise), seed, U, N, K, C, NVIDIA)
        tl.store(values_at + base + offset, tl.where(u == place, own, 0), mask)
        tl.store(winner_at + n[:, None, None], place.to(tl.int64), inside[:, None, None])
        if usage is not None:
            q, _ = _softmax(h * _number(usage), u, U)
            sums += tl.where(mask, q, 0)
        if kl is not None:
            q, log_q = _softmax(h * _number(kl), u, U)
            divergence += tl.where(inside[:, None, None], _sum(tl.where(q > 0, q * log_q, 0)), 0)
    if usage is not None:
        row = tl.program_id(1).to(tl.int64) * period + start + lanes
        written = (start + lanes < period)[:, None, None] & (u < U)
        tl.store(sums_at + row[:, None, None] * U + u, sums, written)
    if kl is not None:
        program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tl.store(divergence_at + program, tl.sum(divergence))


@triton.jit(do_not_specialize=["S", "blocks"])
def _backward(  # type: ignore[no-untyped-def]
    out_at, upstream_at, usage_upstream, kl_upstream, h_at,
    beta, noise, tau, seed, usage, kl, total, blocks, S,
    U: tl.constexpr, N: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
    LAST: tl.constexpr, NVIDIA: tl.constexpr, RELAXED: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * N
    u = _competitors(K, C)
    n = first + tl.arange(0, N)
    mask = (n < total)[:, None, None] & (u < U)
    base, offset = _places(first, S, u, U, N, C, LAST)
    h = tl.load(h_at + base + offset, mask, other=0).to(tl.float32)
    upstream = tl.load(upstream_at + base + offset, mask, other=0).to(tl.float32)
    z, best, place = _compete(h, n, u, _number(beta), _number(noise), seed, U, N, K, C, NVIDIA)
    gradient = tl.where(u == place, upstream, 0)
    if RELAXED:
        e = _exp2((z - best) * (_LOG2_E / _number(tau)), NVIDIA)
        each = 1 / _sum(e)
        weighted = upstream * h
        mean = _sum(weighted * e) * each
        gradient += (_number(beta) / _number(tau) * each) * e * (weighted - mean)
    if usage is not None:
        q, _ = _softmax(h * _number(usage), u, U)
        block = (n if LAST else n // S) % blocks
        g = tl.load(usage_upstream + block[:, None, None] * U + u, mask, other=0)
        each = _number(usage) * blocks / total
        gradient += each * q * (g - _sum(g * q))
    if kl is not None:
        q, log_q = _softmax(h * _number(kl), u, U)
        log_q = tl.where(q > 0, log_q, 0)
        each = tl.load(kl_upstream).to(tl.float32) * _number(kl) / total
        gradient += each * q * (log_q - _sum(q * log_q))
    tl.store(out_at + base + offset, gradient, mask)


#: Compiled for a GPU, rather than run by Triton's interpreter.
COMPILED = isinstance(_forward, triton.runtime.JITFunction)
forward, backward = cast(Any, (_forward, _backward))
