"""Train and judge the trials of a study, some at a time; what is done is not done again."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from filelock import FileLock, Timeout

from benchmarks.accuracy.rows import read_rows, write_rows
from benchmarks.accuracy.study import REPOSITORY, Study
from benchmarks.accuracy.trial import Trial
from lwta.errors import InputError
from models.measure import evaluation_name

Row = dict[str, Any]


class Runner:
    """Trains and judges trials of a study in processes of their own.

    Args:
        study: what to run.
        root: data folder.
        jobs: trials at a time; the cores are shared out.
    """

    def __init__(self, study: Study, root: str, jobs: int) -> None:
        if jobs < 1:
            raise InputError(f"jobs is at least 1, not {jobs}")
        self.study, self.root, self.jobs = study, root, jobs
        self.rows = {(row["variant"], row["seed"]): row for row in read_rows(study)}

    def fit(self, trials: list[Trial]) -> list[str]:
        """Train those without a row and judge them on the validation images; returns what failed.

        A trial that was cut off goes on from its last epoch. One whose start failed is not begun. One with a
        row whose network is gone is trained again where another starts from it.

        Raises:
            InputError: where one of them was trained otherwise.
        """
        self._check(trials)
        return self._each_in_order(self._fit, [trial for trial in trials if not self._finished(trial)])

    def test(self, trials: list[Trial]) -> list[str]:
        """Judge trials on the test images, once each; returns what failed.

        A network that is gone is trained again for it, and its row says at which commit. Where it comes out
        otherwise than in the row that choices were made on, its test images are not read.

        Raises:
            InputError: where one of them has no row yet, or was trained otherwise.
        """
        left = [trial for trial in trials if pd.isna(self._row(trial).get("test images"))]
        if waiting := [trial for trial in left if not self._finished(trial)]:
            raise InputError(f"{waiting[0]} is not trained and judged yet; run fit first")
        self._check([one for trial in left for one in (*self._untrained_starts(trial), trial)])
        return self._each_in_order(self._fit_and_test, left)

    def _fit_and_test(self, trial: Trial) -> str | None:
        return self._fit(trial) or self._differs(trial) or self._judge(trial, "test")

    def _differs(self, trial: Trial) -> str | None:
        """How a network trained again differs from its row as it was on the validation images."""
        row, now = self._row(trial), trial.read("validate") or {}
        for name, value in now.items():
            before = row.get(f"validate {name}")
            if name.startswith("top1 ") and not pd.isna(before) and before != value:
                scores = f"validation {name} {value:.4f}, then {before:.4f}"
                return (
                    f"{trial}: another network than its row's ({scores}), so its test images are not "
                    "read. The row is as it is now; where your choices stand, run test again"
                )
        return None

    def _check(self, trials: list[Trial]) -> None:
        """Before the first is begun: refuse trials that were trained otherwise."""
        for trial in trials:
            recipe = trial.recipe(REPOSITORY)
            for known in (self._row(trial), trial.read("started")):
                trial.check_recipe(recipe, known)

    def _each_in_order(self, work: Callable[[Trial], str | None], trials: list[Trial]) -> list[str]:
        """Do the work, first for what others start from; that is trained where it is no trial of these."""
        starts = [start for trial in trials for start in self._untrained_starts(trial)]
        waiting = {(trial.variant, trial.seed): trial for trial in (*starts, *trials)}
        failures = []
        while waiting:
            ready = [t for t in waiting.values() if not any((name, t.seed) in waiting for name in t.needs)]
            failures += self._each(lambda one: work(one) if one in trials else self._fit(one), ready)
            waiting = {key: trial for key, trial in waiting.items() if trial not in ready}
        return failures

    def _untrained_starts(self, trial: Trial) -> list[Trial]:
        """Those without a network that a trial without one starts from, and what these start from in turn."""
        if trial.read("trained") is not None:
            return []
        starts = [self.study.trial(name, trial.seed) for name in trial.needs]
        untrained = [start for start in starts if start.read("trained") is None]
        return [one for start in untrained for one in (*self._untrained_starts(start), start)]

    def _each(self, work: Callable[[Trial], str | None], trials: list[Trial]) -> list[str]:
        def alone(trial: Trial) -> str | None:
            trial.folder.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(trial.folder / "lock", timeout=0):
                    return work(trial)
            except Timeout:
                return f"{trial}: another process is at it; run this again when that has ended"

        with ThreadPoolExecutor(self.jobs) as pool:
            return [said for said in pool.map(alone, trials) if said]

    def _row(self, trial: Trial) -> Row:
        return self.rows.get((trial.variant, trial.seed), {})

    def _finished(self, trial: Trial) -> bool:
        row = self._row(trial)
        # A network that was tested and is gone stays as it was judged.
        done = not pd.isna(row.get("test images")) and trial.read("trained") is None
        return done or _holds(row, "validate top1", self.study.evaluations_of(trial.variant))

    def _fit(self, trial: Trial) -> str | None:
        if missing := [n for n in trial.needs if not self.study.trial(n, trial.seed).read("trained")]:
            return f"{trial}: not begun, as {missing[0]}, from which it starts, is not trained"
        if trial.read("trained") is None:
            print(f"{trial}: {trial.command}", flush=True)
            last, log = trial.folder / "checkpoints" / "last.ckpt", trial.folder / "fit.log"
            words, resumed = trial.words, last.exists()
            if resumed:
                words = ["fit", "--config", str(trial.folder / "config.yaml"), "--ckpt_path", str(last)]
            else:
                trial.write("started", _facts(trial, self.jobs))
            start = time.perf_counter()
            if self._run(["train.py", *words, "--run", str(trial.folder), "--data.root", self.root], log):
                return f"{trial}: training failed, see {log}"
            took = (
                {"resumed at": commit()}
                if resumed
                else {"minutes": round((time.perf_counter() - start) / 60, 1)}
            )
            trial.write("trained", (trial.read("started") or {}) | took)
        return self._judge(trial, "validate")

    def _judge(self, trial: Trial, split: str) -> str | None:
        evaluations, held = self.study.evaluations_of(trial.variant), trial.read(split)
        # Validation images may be looked at again, by more samples; test images never.
        if held is None or (split == "validate" and not _holds(held, "top1", evaluations)):
            log = trial.folder / f"{split}.log"
            words = ["-m", "benchmarks.accuracy", "judge", str(trial.folder), split, str(evaluations)]
            if self._run([*words, self.root], log):
                return f"{trial}: judging failed, see {log}"
        write_rows(self.study)
        return None

    def _run(self, words: list[str], log: Path) -> int:
        """Run python with its share of the cores; returns the exit code."""
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as out:
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(
                [sys.executable, *words], stdout=out, stderr=out, env=environment, cwd=REPOSITORY
            )
        return done.returncode


def _holds(scores: Row, name: str, evaluations: list[int]) -> bool:
    return all(not pd.isna(scores.get(f"{name} {evaluation_name(n)}")) for n in evaluations)


def commit() -> str:
    """The commit that the repository stands at, ``-dirty`` where files differ; ``unknown`` without git.

    Results do not count: the study itself writes them.
    """
    try:
        name = _git("describe", "--always", "--exclude=*")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}-dirty" if changed else name


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return done.stdout.strip()


def _facts(trial: Trial, jobs: int) -> Row:
    return {
        "command": trial.command,
        "recipe": trial.recipe(REPOSITORY),
        "commit": commit(),
        "hardware": f"{_processor()}, {os.cpu_count()} cores, {jobs} runs at a time",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}",
    }


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
