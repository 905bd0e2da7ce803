"""Times of what takes turns, and the machine they are of."""

import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).parents[2]
_WARM_UP = 3


def take_turns(cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call of each case, in turns, after a few calls that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for place in range(_WARM_UP + rounds):
        for name, call in cases.items():
            spent = _timed(call)
            if place >= _WARM_UP:
                seconds[name].append(spent)
    return seconds


def _timed(call: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and quartiles of each case, in milliseconds."""
    found = {}
    for name, times in seconds.items():
        low, median, high = (1e3 * t for t in statistics.quantiles(times, n=4, method="inclusive"))
        found[name] = {"median": median, "low": low, "high": high}
    return found


def machine(command: list[str], threads: int) -> dict[str, Any]:
    """What a file of times says of where they come from."""
    return {
        "command": "python -m benchmarks.speed " + shlex.join(command),
        "commit": commit(),
        "date": date.today().isoformat(),
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "allocator": {k: os.environ[k] for k in sorted(os.environ) if k.startswith("MALLOC_")},
    }


@cache
def commit() -> str:
    """What runs, as it was when first asked; a changed tree is dirty, results aside."""
    git = ("git", "-C", str(REPOSITORY))
    changed = _output(*git, "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return _output(*git, "rev-parse", "--short=7", "HEAD") + ("-dirty" if changed else "")


def _processor() -> str:
    """Name and cores, as Linux tells them."""
    if sys.platform != "linux":
        return platform.processor()
    lines = (line.partition(":") for line in _output("lscpu").splitlines())
    told = {key.strip(): value.strip() for key, _, value in lines}
    return f"{told.get('Model name', platform.machine())}, {told.get('CPU(s)', '?')} cores"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
