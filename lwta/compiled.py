"""What compiled loops share: how they are compiled, and arithmetic that becomes vector instructions."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic

_settings: Any = config  # a module whose names are not known before it runs


def _kept_in(package: Path) -> Path:
    """Folder of the machine code of a package's loops, another for other sources.

    By itself numba makes it anew where the file of a loop has changed, and not where that of a loop called by
    it has.
    """
    texts = [path.read_bytes() for path in sorted(package.rglob("*.py"))]
    sources = b"".join(text for text in texts if b"lwta.compiled" in text or b"numba" in text)
    return Path(
        _settings.CACHE_DIR or package / "__pycache__", f"loops-{hashlib.sha256(sources).hexdigest()[:12]}"
    )


_folder = str(_kept_in(Path(__file__).parent))


def kept(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """numba's ``njit`` for loops whose machine code is kept, and which release the interpreter."""

    def decorate(loop: Callable[..., Any]) -> Any:
        before, _settings.CACHE_DIR = _settings.CACHE_DIR, _folder
        try:
            return njit(nogil=True, cache=True, error_model="numpy", **options)(loop)
        finally:
            _settings.CACHE_DIR = before

    return decorate


compiled = kept(fastmath={"contract"})
#: The same, and every operation is rounded by itself.
exact = kept()
#: The same, and sums are taken in whatever order is fastest.
summed = kept(fastmath={"contract", "reassoc"})

LN2 = np.float32(math.log(2))
_ROOT = 0x3F3504F3  # the bits of sqrt(1/2)
_C3, _C5, _C7, _C9 = (np.float32(x) for x in (2 / 3, 2 / 5, 2 / 7, 2 / 9))
_LOG2_E = np.float32(1 / math.log(2))
# log 2 in two parts, the first of which times a small integer is exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
_E2, _E3, _E4, _E5, _E6, _E7 = (np.float32(1 / math.factorial(k)) for k in range(2, 8))


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


@intrinsic
def _power_of_two(typingctx, x):  # type: ignore[no-untyped-def]
    """2^x of an integer x in float32, -126 to 127."""

    def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
        bits = builder.add(builder.fptosi(args[0], ir.IntType(32)), ir.IntType(32)(127))
        return builder.bitcast(builder.shl(bits, ir.IntType(32)(23)), ir.FloatType())

    return types.float32(types.float32), build


@compiled
def log(x: np.float32) -> np.float32:
    """log x of a normal positive float32 in plain arithmetic.

    log m = 2 artanh((m - 1) / (m + 1)), whose series after five terms is off by 7e-10 at most.
    """
    m = _mantissa(x)  # type: ignore[call-arg]
    s = (m - np.float32(1)) / (m + np.float32(1))
    q = s * s
    e = _exponent(x)  # type: ignore[call-arg]
    return e * LN2 + s * (np.float32(2) + q * (_C3 + q * (_C5 + q * (_C7 + q * _C9))))


@compiled
def exp(x: np.float32) -> np.float32:
    """exp x of a float32 from -inf to 88 in plain arithmetic; below -87 it is exp(-87), 2e-38.

    2^n exp r with |r| <= log(2) / 2, for which the series after eight terms is off by 6e-9 at most.
    """
    x = max(x, np.float32(-87))
    n = np.floor(x * _LOG2_E + np.float32(0.5))
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    tail = _E4 + r * (_E5 + r * (_E6 + r * _E7))
    series = np.float32(1) + r * (np.float32(1) + r * (_E2 + r * (_E3 + r * tail)))
    return series * _power_of_two(n)  # type: ignore[call-arg]
