"""Small studies, and trials that were not trained."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.accuracy.rows import write_rows
from benchmarks.accuracy.study import REPOSITORY, Study


def written(tmp_path, **fields) -> Path:
    """A study file whose runs and results lie in ``tmp_path``."""
    path = tmp_path / "small.yaml"
    own = {"runs": str(tmp_path / "runs"), "results": str(tmp_path / "results")}
    path.write_text(yaml.safe_dump(own | fields, sort_keys=False))
    return path


VARIANTS = {
    "tuned": {"config": "b.yaml", "fields": {"model.weights": "<folder of dense-0.2>", "model.noise": None}},
    "dense": {"config": "a.yaml", "grid": {"model.lr": [0.1, 0.2]}},
}


def judged(trial, split, right, shown="images"):
    """Stand in for a trained and judged trial."""
    facts = {
        "command": trial.command,
        "recipe": trial.recipe(REPOSITORY),
        "commit": "abc",
        "minutes": 1,
    }
    trial.write("started", facts)
    trial.write("trained", facts)
    scored(trial, split, right, shown)


def scored(trial, split, right, shown="images"):
    """Stand in for the judging of a trained trial."""
    scores = {"images": 8, "images hash": shown, "dead, worst layer": 0.0}
    scores |= {f"winners that differ, {layer} layer": 0.1 for layer in ("mean", "least")}
    scores |= {"active, competing sites": 0.04, "active, all sites": 0.04, "participation ratio": 0.02}
    for name, bits in right.items():
        scores |= {f"top1 {name}": float(np.mean(bits)), f"calibration {name}": 0.1}
    np.savez(trial.folder / f"{split}.npz", **{name: np.array(bits, bool) for name, bits in right.items()})
    trial.write(split, scores)


CONFIG = "configs/train/quickstart.yaml"
FIELDS = {
    "variants": {"a": {"config": CONFIG}, "b": {"config": CONFIG, "fields": {"model.noise": 0.0}}},
    "seeds": [0, 1],
    "evaluations": [0, 1],
    "final": {"A": "a", "B": "b"},
    "final_seeds": [0, 1],
    "final_evaluations": [0, 1],
    "against": ["B"],
    "curves": {"lwta": {2: "a", 4: "b"}},
}


@pytest.fixture
def study(tmp_path):
    """Two variants, two seeds: `a` is served by samples, `b` by the argmax."""
    study = Study.read(written(tmp_path, **FIELDS))
    for seed in (0, 1):
        ones, zeros = [True] * 8, [False] * 8
        a, b = study.trial("a", seed), study.trial("b", seed)
        judged(a, "validate", {"argmax": zeros, "1_sample": ones})
        judged(b, "validate", {"argmax": ones, "1_sample": zeros})
        judged(a, "test", {"argmax": zeros, "1_sample": [True] * 6 + [False] * 2})
        judged(b, "test", {"argmax": [True] * 4 + [False] * 4, "1_sample": zeros})
    write_rows(study)
    return study
