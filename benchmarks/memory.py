"""Memory of soft_wpmi over few and many images: it must not grow with them.

python benchmarks/memory.py [--few 10000 --many 1000000 --units 768 --concepts 10000 --embedding 512]

Random embeddings lie in a file and random exemplars in memory; each number of images runs in a process of its
own. Reported is the most anonymous memory beyond what was held before scoring: mapped files are the system's
to drop, so they do not count. Exits with 1 where the two lie more than 20 % apart.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from lwta.dissect.presence import Cosines
from lwta.dissect.record import Exemplars
from lwta.dissect.similarity import soft_wpmi

Result = TypeVar("Result")


def anonymous() -> float:
    """Memory of this process that no file backs, GB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("/proc/self/status has no RssAnon: this benchmark needs Linux")


def with_peak(work: Callable[[], Result]) -> tuple[Result, float]:
    """What ``work`` returns, and the most anonymous memory beyond what there was, GB, seen every 2 ms."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be used again unseen
    before, most, done = anonymous(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = work()
        most = max(most, anonymous())
    finally:
        done.set()
        watcher.join()
    return result, most - before


def write_embeddings(path: Path, images: int, embedding: int) -> None:
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (images, embedding))
    for start in range(0, images, 10000):
        rows = file[start : start + 10000]
        rows[:] = rng.standard_normal(rows.shape, np.float32)
    file.flush()


def score(path: Path, units: int, concepts: int) -> dict[str, float]:
    """Time and memory of soft_wpmi of one layer, on exemplars drawn from all images of the file."""
    embeddings = np.load(path, mmap_mode="r")
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack([torch.randperm(len(embeddings), generator=g)[:100] for _ in range(units)], 1)
    exemplars = Exemplars(
        images=drawn,
        values=torch.arange(100, 0, -1)[:, None].expand(100, units).float(),
        wins=torch.full((units,), 100),
        negative=torch.zeros(units, dtype=torch.bool),
        count=len(embeddings),
    )
    texts = torch.randn(concepts, embeddings.shape[1], generator=g)
    start = time.perf_counter()
    _, peak = with_peak(lambda: soft_wpmi(exemplars, Cosines(embeddings, texts)))
    return {"images": len(embeddings), "GB": round(peak, 3), "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--units", type=int, default=768)
    parser.add_argument("--concepts", type=int, default=10_000)
    parser.add_argument("--embedding", type=int, default=512)
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.score:
        print(json.dumps(score(args.score, args.units, args.concepts)))
        return
    found = []
    for images in (args.few, args.many):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "embeddings.npy"
            write_embeddings(path, images, args.embedding)
            command = [sys.executable, __file__, "--score", str(path), "--units", str(args.units)]
            command += ["--concepts", str(args.concepts)]
            found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        print(found[-1], flush=True)
    ratio = found[1]["GB"] / found[0]["GB"]
    print(f"{args.many} images take {ratio:.2f} times the memory of {args.few}")
    sys.exit(abs(ratio - 1) > 0.2)


if __name__ == "__main__":
    main()
