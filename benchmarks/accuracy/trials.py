"""Train and judge the trials of a study, some at a time; what is done is not done again."""

import json
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch

from benchmarks.accuracy.rows import judged_file, read_rows, trained_file, write_rows
from benchmarks.accuracy.study import REPOSITORY, Study, Trial
from lwta.errors import InputError
from models.measure import evaluation_name

_writing = threading.Lock()


def fit_all(study: Study, trials: list[Trial], root: str, jobs: int) -> list[str]:
    """Train those without a row and judge them on the validation images; returns what failed.

    A trial that was cut off goes on from its last epoch.
    """
    rows = {(row["variant"], row["seed"]): row for row in read_rows(study)}
    left = [trial for trial in trials if not _finished(study, trial, rows.get((trial.variant, trial.seed)))]
    failures = []
    while left and not failures:
        waited_for = {trial.folder for trial in left}
        ready = [trial for trial in left if not waited_for & set(trial.needs)]
        with ThreadPoolExecutor(jobs) as pool:
            failures = [said for said in pool.map(lambda one: _fit(study, one, root, jobs), ready) if said]
        left = [trial for trial in left if trial not in ready]
    return failures


def _finished(study: Study, trial: Trial, row: dict[str, Any] | None) -> bool:
    if row is None:
        return False
    if row["command"] != shlex.join(trial.command):
        raise InputError(
            f"{trial.variant}, seed {trial.seed}, was trained by another command ({row['command']}); "
            "give the new variant a name of its own"
        )
    return _holds(row, "validate top1", study.evaluations_of(trial.variant))


def _fit(study: Study, trial: Trial, root: str, jobs: int) -> str | None:
    folder, log = REPOSITORY / trial.folder, REPOSITORY / trial.folder.with_suffix(".log")
    print(f"{trial.variant}, seed {trial.seed}: {shlex.join(trial.command)}", flush=True)
    if not trained_file(folder).exists():
        words = [word.replace("$DATA", root) for word in trial.command[1:]]
        last = folder / "checkpoints" / "last.ckpt"
        if last.exists():
            words = ["train.py", "fit", "--config", f"{folder}/config.yaml", "--ckpt_path", str(last)]
        facts, start = _facts(trial, jobs) | {"resumed": last.exists()}, time.perf_counter()
        if _run(words, log, jobs):
            return f"{trial.variant}, seed {trial.seed}: training failed, see {log}"
        facts["minutes"] = round((time.perf_counter() - start) / 60, 1)
        trained_file(folder).write_text(json.dumps(facts))
    return _judge(study, trial, "validate", root, jobs)


def judge_tests(study: Study, trials: list[Trial], root: str, jobs: int) -> list[str]:
    """Judge trained trials on the test images, each once; returns what failed."""
    with ThreadPoolExecutor(jobs) as pool:
        return [said for said in pool.map(lambda one: _judge(study, one, "test", root, jobs), trials) if said]


def _judge(study: Study, trial: Trial, split: str, root: str, jobs: int) -> str | None:
    evaluations, file = study.evaluations_of(trial.variant), judged_file(trial.folder, split)
    if not (file.exists() and _holds(json.loads(file.read_text()), "top1", evaluations)):
        if not trained_file(trial.folder).exists():
            return f"{trial.variant}, seed {trial.seed}: not trained; run fit first"
        log = REPOSITORY / trial.folder.with_suffix(f".{split}.log")
        words = ["-m", "benchmarks.accuracy", "judge", str(trial.folder), split, str(evaluations), root]
        if _run(words, log, jobs):
            return f"{trial.variant}, seed {trial.seed}: judging failed, see {log}"
    with _writing:
        write_rows(study)
    return None


def _holds(scores: dict[str, Any], name: str, evaluations: list[int]) -> bool:
    return all(not pd.isna(scores.get(f"{name} {evaluation_name(n)}")) for n in evaluations)


def _run(words: list[str], log: Path, jobs: int) -> int:
    """Run python with its share of the cores; returns the exit code."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [sys.executable, *words], stdout=out, stderr=out, env=environment, cwd=REPOSITORY
        )
        return done.returncode


def _facts(trial: Trial, jobs: int) -> dict[str, Any]:
    described = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return {
        "command": shlex.join(trial.command),
        "commit": subprocess.run(
            described, capture_output=True, text=True, check=True, cwd=REPOSITORY
        ).stdout.strip(),
        "hardware": f"{_processor()}, {os.cpu_count()} cores, {jobs} runs at a time",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}",
    }


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
