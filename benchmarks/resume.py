"""Labels of a pass that was killed, or shared out to processes, against those of one left alone.

Each trial starts with an empty cache, kills the command (SIGKILL) at a random moment, starts it again until
it ends by itself, and compares the bytes of ``labels.parquet``. Afterwards two processes (gloo) label the
same.

    python benchmarks/resume.py runs/quickstart --trials 10
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd


def command(args: argparse.Namespace, folder: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "dissect.py",
        "label",
        f"--run={args.run}",
        f"--probe={args.probe}",
        f"--out={folder / 'out'}",
        f"--cache={folder / 'cache'}",
        "--save_every=0.5",
        "--batch_size=64",
        "--device=cpu",
        *more,
    ]


def run(command: list[str], limit: float | None = None) -> tuple[bool, float]:
    """Whether the command ended by itself within ``limit`` seconds, and how long it took."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, told = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False, time.perf_counter() - start
    if process.returncode:
        sys.exit(told)
    return True, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="folder of a trained run")
    parser.add_argument("--probe", default="validation[:3000]")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary, "whole")
        _, seconds = run(command(args, whole))
        expected = (whole / "out" / "labels.parquet").read_bytes()
        print(f"undisturbed: {seconds:.1f} s", flush=True)
        same = 0
        for trial in range(args.trials):
            folder, kills = Path(temporary, f"trial{trial}"), []
            while True:
                moment = chance.uniform(0, seconds)
                ended, _ = run(command(args, folder), moment)
                if ended:
                    break
                kills.append(moment)
                states = [p.stat().st_size for p in folder.rglob("state-*.pt")]
                kills[-1] = f"{moment:.1f} s ({len(states)} states)"
            equal = (folder / "out" / "labels.parquet").read_bytes() == expected
            same += equal
            print(
                f"trial {trial}: killed after {', '.join(kills) or 'nothing'}; equal bytes: {equal}",
                flush=True,
            )
            shutil.rmtree(folder)
        print(f"{same} of {args.trials} equal the undisturbed labels.parquet, byte for byte")
        two = Path(temporary, "two")
        run(command(args, two, "--devices=2"))
        one, many = (pd.read_parquet(f / "out" / "labels.parquet") for f in (whole, two))
        labels = (one["label"].fillna("") == many["label"].fillna("")).all()
        apart = (one["score"] - many["score"]).abs().max()
        print(f"two processes: same labels: {labels}, scores at most {apart:.2g} apart")


if __name__ == "__main__":
    main()
