"""Compiled loops in several threads.

On Linux they are torch's own: numba's OpenMP layer finds the runtime that torch has loaded. Others would
share the cores with torch's, which stay awake for milliseconds after an operation in case another follows.
Where that layer is missing, and in a forked process, where it does not work, they are Python's.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from numba import prange

from lwta.compiled import compiled, kept

_LEAST = 1 << 14  # units that are worth a thread's waking
_serves: bool | None = None  # None until somebody asks
_asking = Lock()


def over_ranges(kernel: Any, count: int, *arguments: Any, chunk: int) -> None:
    """``kernel(*arguments, first, last)`` for every ``chunk`` of ``count``, in as many threads as torch has.

    Args:
        kernel: compiled by :mod:`lwta.compiled`.
    """
    firsts = range(0, count, chunk)
    threads = min(torch.get_num_threads(), len(firsts))
    if threads <= 1:
        for first in firsts:
            kernel(*arguments, first, min(first + chunk, count))
    elif team_serves():
        _run_team(kernel, count, chunk, arguments)
    else:
        with ThreadPoolExecutor(threads) as pool:
            tasks = [pool.submit(kernel, *arguments, first, min(first + chunk, count)) for first in firsts]
        for task in tasks:
            task.result()


def share(count: int, units: int) -> int:
    """Of ``count`` positions of ``units`` each what one thread takes, where they are shared out evenly."""
    parts = max(1, min(torch.get_num_threads(), count * units // _LEAST))
    return max(1, -(-count // parts))


def team_serves() -> bool:
    """Whether OpenMP's threads serve this process."""
    global _serves
    with _asking:
        if _serves is None:
            _serves = sys.platform == "linux" and _layer() == "omp"
    return _serves


def _in_child() -> None:
    """What a process that was forked begins with: its parent may have started OpenMP, and held the lock."""
    global _serves, _asking
    _serves, _asking = False, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _layer() -> str:
    """What numba runs parallel loops by; it chooses when the first one starts."""
    _run_team(_nothing, 2, 1, ())
    return numba.threading_layer()


def _run_team(kernel: Any, count: int, chunk: int, arguments: tuple[Any, ...]) -> None:
    # As many as torch has, be there work for them or not: OpenMP would end the others, and start them anew.
    before, most = numba.get_num_threads(), numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(torch.get_num_threads(), most))
    try:
        _for_team(kernel)(count, chunk, arguments)
    finally:
        numba.set_num_threads(before)


@cache
def _for_team(kernel: Any) -> Callable[..., None]:
    """A kernel over all its ranges, compiled."""
    # A function of its own name for each: were the kernel an argument or in a closure, numba could not keep
    # the machine code, and would make it anew in every process.
    loop = FunctionType(_over_parts.__code__, globals() | {"KERNEL": kernel})
    own = kernel.py_func
    loop.__qualname__ = loop.__name__ = f"{own.__module__}.{own.__qualname__}_for_team".replace(".", "_")
    return kept(parallel=True)(loop)


def _over_parts(count, chunk, arguments):  # type: ignore[no-untyped-def]
    for part in prange((count + chunk - 1) // chunk):
        first = np.int64(part) * chunk
        KERNEL(*arguments, first, min(first + chunk, count))  # type: ignore[name-defined] # noqa: F821


@compiled
def _nothing(first, last):  # type: ignore[no-untyped-def]
    pass
