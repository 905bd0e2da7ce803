"""What is timed on which device, and what it must reach."""

import json
import os
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.speed import inference, training
from benchmarks.speed.layers import PUBLISHED
from benchmarks.speed.timing import REPOSITORY, commit, machine
from lwta.errors import InputError

_LEAST = 20
_BUSY = 0.5
RESULTS = REPOSITORY / "benchmarks" / "results" / "speed"


class Target(NamedTuple):
    """What a row must reach.

    Attributes:
        what: names the ratio of two medians, A / B, or ``held`` or ``apart``.
        bound: which it is to reach.
        least: whether it is a lower bound.
    """

    what: str
    bound: float
    least: bool = True


class Case(NamedTuple):
    """A row of the table.

    Attributes:
        name: of the row.
        time: makes it, given ``rounds``, and ``clone`` where it compares with the published layer.
        targets: what it must reach.
    """

    name: str
    time: Callable[..., dict[str, Any]]
    targets: tuple[Target, ...] = ()
    published: bool = False


def cases(device: str) -> list[Case]:
    """Those of a device, ``cpu`` or ``cuda``."""
    return _cuda() if device == "cuda" else _cpu()


def _cpu() -> list[Case]:
    place = {"device": "cpu", "dtype": torch.float32}
    found = []
    for u in (2, 8, 16, 24):
        time = partial(training.layer, (32, 197, 768), u, **place)
        least = (Target("published / LWTA", 4.0 if u == 2 else 2.5),)
        found.append(Case(f"layer, 32 x 197 x 768, U = {u}", time, least, published=True))
    counts = [4_000_000, 12_000_000, 36_000_000, 100_000_000]
    sizes = partial(training.sizes, 24, counts, 768, "cpu")
    found.append(Case("layer by size, U = 24", sizes, (Target("apart", 0.2, least=False),)))
    step = partial(training.step, "deit_tiny_patch16_224", 24, 32, **place)
    found.append(Case("training step, deit_tiny, batch 32, U = 24", step, (Target("dense / LWTA", 0.8),)))
    for tokens, least in ((197, 1.35), (6304, 1.55)):
        time = partial(inference.mlp, tokens, 768, 24, **place)
        target = (Target("dense GELU / winners only", least),)
        found.append(Case(f"MLP of DeiT-B, {tokens} tokens, U = 24", time, target))
    for batch in (1, 32):
        time = partial(inference.network, "deit_base_patch16_224", 24, batch, **place)
        target = (Target("dense / winners only", 1.2),)
        found.append(Case(f"deit_base, batch {batch}, U = 24", time, target))
        time = partial(inference.network, "resnet50", 16, batch, **place)
        found.append(Case(f"resnet50, batch {batch}, U = 16", time))
    return found


def _cuda() -> list[Case]:
    place = {"device": "cuda", "dtype": torch.bfloat16}
    found = []
    for width in (1536, 3072):
        for u in (8, 24):
            time = partial(training.layer, (64, 197, width), u, **place)
            targets = (
                Target("LWTA / GELU", 1.25, least=False),
                Target("published / LWTA", 8.0),
                Target("held", 1.01, least=False),
            )
            found.append(Case(f"layer, 64 x 197 x {width}, U = {u}", time, targets, published=True))
    step = partial(training.step, "deit_small_patch16_224", 24, 256, **place)
    found.append(Case("training step, deit_small, batch 256, U = 24", step, (Target("dense / LWTA", 0.97),)))
    for tokens in (197, 6304):
        time = partial(inference.mlp, tokens, 768, 24, **place)
        found.append(Case(f"MLP of DeiT-B, {tokens} tokens, U = 24", time))
    for batch in (1, 32, 256):
        time = partial(inference.network, "deit_base_patch16_224", 24, batch, **place)
        found.append(Case(f"deit_base, batch {batch}, U = 24", time))
    return found


def run_cases(clone: Path | None, only: str, threads: int, rounds: int, command: list[str]) -> None:
    """Time the cases that match ``only`` and put their rows into the file of the device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = [case for case in cases(device) if fnmatchcase(case.name, only)]
    if not chosen:
        known = "; ".join(case.name for case in cases(device))
        raise InputError(f"--only {only!r} matches no case; there are: {known}")
    if rounds < _LEAST:
        raise InputError(f"a median is of at least {_LEAST} rounds, not {rounds}")
    if threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}")
    if clone and not (clone / PUBLISHED).is_file():
        raise InputError(f"{clone} has no {PUBLISHED}; clone github.com/konpanousis/DISCOVER and name it")
    if (load := os.getloadavg()[0]) > _BUSY:
        print(f"this machine is busy (load {load:.1f}): times will be off", file=sys.stderr)
    commit()  # a run takes long enough for the tree to change
    torch.set_num_threads(threads)
    for case in chosen:
        print(case.name, flush=True)
        more = {"clone": clone} if case.published else {}
        torch.manual_seed(0)
        row = case.time(rounds=rounds, **more) | {"machine": machine(command, threads)}
        _put(device, case.name, row)


def _put(device: str, name: str, row: dict[str, Any]) -> None:
    """Write a row as soon as it is there, in the order of the cases."""
    rows = read_rows(device) | {name: row}
    order = [case.name for case in cases(device)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{device}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps({name: rows[name] for name in order if name in rows}, indent=1) + "\n")
    part.replace(path)


def read_rows(device: str) -> dict[str, dict[str, Any]]:
    """The rows of a device by name, as far as they were timed."""
    path = RESULTS / f"{device}.json"
    return json.loads(path.read_text()) if path.exists() else {}
