"""Studies of accuracy: what they train, what they make of it, and how sure they are."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks.accuracy import trials
from benchmarks.accuracy.findings import difference, served
from benchmarks.accuracy.interval import crossed_interval
from benchmarks.accuracy.rows import read_right, read_rows, right_of, write_rows
from benchmarks.accuracy.study import REPOSITORY, Study
from benchmarks.accuracy.tables import write_tables
from benchmarks.accuracy.trials import Runner
from lwta.errors import InputError

STUDIES = sorted((REPOSITORY / "benchmarks" / "accuracy").glob("*.yaml"))


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


def names(trials):
    return [(trial.variant, trial.seed) for trial in trials]


def test_a_grid_is_a_variant_for_each_value(tmp_path):
    variants = {"dense": VARIANTS["dense"] | {"fields": {"model.lr": 1.0, "model.tau": 2.0}}}
    study = Study.read(written(tmp_path, variants=variants, seeds=[0, 1]))
    assert names(study.trials()) == [("dense-0.1", 0), ("dense-0.1", 1), ("dense-0.2", 0), ("dense-0.2", 1)]
    assert study.trial("dense-0.2", 1).fields == {"model.lr": 0.2, "model.tau": 2.0}


def test_a_command_names_config_seed_and_fields(tmp_path):
    trial = Study.read(written(tmp_path, variants=VARIANTS)).trial("tuned", 3)
    assert trial.words == [
        *("fit", "--config", "b.yaml", "--seed_everything", "3"),
        *("--model.weights", f"{tmp_path}/runs/dense-0.2/seed3", "--model.noise", "null"),
    ]
    assert trial.folder == tmp_path / "runs" / "tuned" / "seed3"


@pytest.mark.parametrize("only", ["*", "tuned"])
def test_what_a_variant_starts_from_is_trained_before_it_with_its_seed(only, tmp_path):
    final = {"sparse": "tuned"}
    study = Study.read(written(tmp_path, variants=VARIANTS, final=final, final_seeds=[0, 2]))
    trials = names(study.trials(only))
    assert trials.index(("dense-0.2", 2)) < trials.index(("tuned", 2))
    assert ("dense-0.1", 2) not in trials
    assert (("dense-0.1", 0) in trials) == (only == "*")
    assert names(study.tested()) == [("tuned", 0), ("tuned", 2)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"variants": VARIANTS, "final": {"x": "none"}}, "no variant 'none'"),
        ({"variants": VARIANTS, "final": {"x": "tuned"}, "against": ["y"]}, "no row of its final table"),
        ({"variants": VARIANTS, "colour": 1}, "is no study .*colour"),
        ({"variants": {"a": {"config": "a.yaml", "feilds": {"model.lr": 1}}}}, "is no study .*feilds"),
        ({"variants": {"a": {"fields": {"model.lr": 1}}}}, "is no study .*config"),
        ({"variants": {"a": {"config": "a.yaml", "grid": {"model.lr": 0.1}}}}, "is no study"),
        (
            {"variants": {"a-1": {"config": "a"}, "a": {"config": "a", "grid": {"model.tau": [1]}}}},
            "two variants of one name",
        ),
    ],
)
def test_a_study_that_names_what_there_is_not_is_refused(fields, said, tmp_path):
    with pytest.raises(InputError, match=said):
        Study.read(written(tmp_path, **fields))


@pytest.mark.parametrize(
    ("of", "only", "said"),
    [
        ("dense", "*", "'dense', which is no variant"),
        ("tuned", "*", "tuned needs its own run first"),
        ("tuned", "x*", "no variant matches 'x\\*'; there are tuned"),
    ],
)
def test_trials_that_cannot_be_ordered_are_refused(of, only, said, tmp_path):
    variants = {"tuned": {"config": "b.yaml", "fields": {"model.weights": f"<folder of {of}>"}}}
    with pytest.raises(InputError, match=said):
        Study.read(written(tmp_path, variants=variants)).trials(only)


def test_a_recipe_is_what_is_trained_however_it_is_written(tmp_path):
    (tmp_path / "a.yaml").write_text("# a\nrun: runs/a\nmodel: {noise: {start: 1, end: 0}, lr: 0.1}\n")
    (tmp_path / "b.yaml").write_text("run: runs/b\nmodel:\n  noise: 0.5\n  lr: 0.1\n")
    variants = {
        "a": {"config": "a.yaml", "fields": {"model.noise": 0.5}},
        "b": {"config": "b.yaml"},
        "c": {"config": "b.yaml", "fields": {"model.lr": 0.2}},
    }
    study = Study.read(written(tmp_path, variants=variants))
    a, b, c = (study.trial(name, 0).recipe(tmp_path) for name in variants)
    assert a == b != c
    assert study.trial("a", 1).recipe(tmp_path) != a


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_name_shipped_configs(path):
    for trial in Study.read(path).trials():
        assert (REPOSITORY / trial.config).is_file()


# -- intervals ----------------------------------------------------------------------------------


def crossed(generator, seeds, images, of_seeds, of_images, rest):
    draw = generator.standard_normal
    return of_seeds * draw((seeds, 1)) + of_images * draw((1, images)) + rest * draw((seeds, images))


@pytest.mark.parametrize(
    "scales", [(0.0, 1.0, 1.0), (0.3, 1.0, 1.0), (1.0, 0.1, 1.0), (0.22, 0.0, 1.0), (0.0, 0.0, 1.0)]
)
def test_an_interval_covers_the_truth(scales):
    generator, inside, worlds = np.random.default_rng(0), 0, 2000
    for _ in range(worlds):
        found = crossed_interval(crossed(generator, 3, 40, *scales))
        inside += found.low <= 0 <= found.high
    # Satterthwaite's degrees of freedom are an approximation, and three seeds cannot tell that they add
    # nothing: then it covers more.
    of_seeds, of_images, _ = scales
    assert 0.92 < inside / worlds < (0.98 if of_seeds and of_images else 1.001)


def test_an_interval_of_one_seed_is_students_over_images():
    values = np.array([[1.0, 2.0, 4.0, 7.0]])
    found = crossed_interval(values)
    half = 3.182446 * values.std(ddof=1) / 2
    assert found == pytest.approx((3.5, 3.5 - half, 3.5 + half), rel=1e-6)


def test_seeds_that_differ_widen_an_interval():
    images = np.tile([0.0, 1.0], 50)
    alike, apart = (np.stack([images + shift for shift in shifts]) for shifts in ([0, 0, 0], [-1, 0, 1]))
    narrow, wide = crossed_interval(alike), crossed_interval(apart)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_equal_values_are_certain():
    assert crossed_interval(np.ones((3, 5))) == (1.0, 1.0, 1.0)


# -- from rows to findings ----------------------------------------------------------------------


def judged(trial, split, right, shown="images"):
    """Stand in for a trained and judged trial."""
    scores = {"images": 8, "images hash": shown, "dead, worst layer": 0.0}
    scores |= {f"winners that differ, {layer} layer": 0.1 for layer in ("mean", "least")}
    scores |= {"active, competing sites": 0.04, "active, all sites": 0.04, "participation ratio": 0.02}
    for name, bits in right.items():
        scores |= {f"top1 {name}": float(np.mean(bits)), f"calibration {name}": 0.1}
    facts = {
        "command": trial.command,
        "recipe": trial.recipe(REPOSITORY),
        "commit": "abc",
        "minutes": 1,
        "resumed": False,
    }
    trial.write("started", facts)
    trial.write("trained", facts)
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


def test_validation_images_decide_how_a_variant_is_judged(study):
    rows = pd.DataFrame(read_rows(study))
    assert served(rows[rows["variant"] == "a"]) == "1_sample"
    assert served(rows[rows["variant"] == "b"]) == "argmax"
    (mean, low, high), seeds = difference(rows, read_right(study), "a", "b")
    assert (mean, seeds) == (pytest.approx(25.0), 2)  # 6 of 8 by a sample, less 4 of 8 by the argmax
    assert low < 0 < high


def test_an_evaluation_that_one_seed_lacks_does_not_serve(study):
    rows = pd.DataFrame(read_rows(study))
    own = rows[rows["variant"] == "a"].copy()
    own.iloc[0, own.columns.get_loc("validate top1 1_sample")] = np.nan
    assert served(own) == "argmax"


def test_variants_tested_on_other_images_are_not_compared(study):
    judged(study.trial("b", 1), "test", {"argmax": [True] * 8, "1_sample": [True] * 8}, shown="others")
    write_rows(study)
    with pytest.raises(InputError, match="a and b were not tested on the same images"):
        difference(pd.DataFrame(read_rows(study)), read_right(study), "a", "b")


def test_which_images_were_right_outlives_the_folders(study, tmp_path):
    (tmp_path / "runs").rename(tmp_path / "gone")
    write_rows(study)
    assert len(read_rows(study)) == 4
    right = right_of(read_right(study), "a", 1, "test", "1_sample")
    assert right.tolist() == [True] * 6 + [False] * 2
    assert Runner(study, "", 1).fit(study.trials()) == []
    assert Runner(study, "", 1).test(study.tested()) == []


def test_the_table_shows_every_evaluation_and_the_difference(study, tmp_path):
    text = write_tables(study)
    (line,) = [line for line in text.splitlines() if line.startswith("| A | 2 |")]
    assert "| 0.00 | 75.00 | 1 sample |" in line
    assert "+25.00 [" in text
    assert "2 seeds" in text
    assert (tmp_path / "results" / "small.md").read_text() == text
    assert (tmp_path / "results" / "small.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_of_nothing_is_refused_and_leaves_nothing(tmp_path):
    study = Study.read(written(tmp_path, **FIELDS))
    with pytest.raises(InputError, match="no trained and judged trial yet"):
        write_tables(study)
    assert read_rows(study) == []
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("gone", ["rows", "folders", "neither"])
def test_a_trial_trained_otherwise_is_refused(gone, study, tmp_path):
    if gone == "rows":
        (tmp_path / "results").rename(tmp_path / "gone")
    elif gone == "folders":
        (tmp_path / "runs").rename(tmp_path / "gone")
    variants = FIELDS["variants"] | {"a": {"config": CONFIG, "fields": {"model.lr": 1.0}}}
    other = Study.read(written(tmp_path, **FIELDS | {"variants": variants}))
    with pytest.raises(InputError, match="a, seed 0 was trained otherwise"):
        Runner(other, "", 1).fit(other.trials())


def test_the_test_images_wait_until_all_is_trained(tmp_path):
    study = Study.read(written(tmp_path, **FIELDS))
    judged(study.trial("a", 0), "validate", {"argmax": [True] * 8, "1_sample": [True] * 8})
    write_rows(study)
    with pytest.raises(InputError, match="a, seed 1 is not trained and judged yet; run fit first"):
        Runner(study, "", 1).test(study.tested())
    assert not study.trial("a", 0).file("test").exists()


def test_a_study_without_final_rows_has_nothing_to_test(tmp_path):
    study = Study.read(written(tmp_path, variants=FIELDS["variants"]))
    with pytest.raises(InputError, match="nothing is to be tested"):
        Runner(study, "", 1).test(study.tested())


# -- the whole of it ----------------------------------------------------------------------------

SMALL = {
    "data.train_split": "train[:64]",
    "data.val_split": "validation[:32]",
    "data.test_split": "test[:32]",
    "data.num_workers": 0,
    "data.batch_size": 32,
    "trainer.max_epochs": 1,
}


def test_trials_are_trained_judged_and_tested_once(tmp_path):
    dense = {"config": CONFIG, "fields": SMALL | {"model.competitors": None}}
    tuned = {"config": CONFIG, "fields": SMALL | {"model.weights": "<folder of dense>"}}
    path = written(
        tmp_path,
        variants={"tuned": tuned, "dense": dense},
        evaluations=[0, 1],
        final={"sparse from dense": "tuned"},
        final_seeds=[0],
        final_evaluations=[0, 2],
    )
    command = [sys.executable, "-m", "benchmarks.accuracy"]
    subprocess.run([*command, "fit", str(path), "", "--jobs", "2"], check=True, cwd=REPOSITORY)
    study = Study.read(path)
    rows = {row["variant"]: row for row in read_rows(study)}
    assert set(rows) == {"tuned", "dense"}
    assert rows["tuned"]["validate active, competing sites"] == pytest.approx(1 / 24)
    assert 0.05 < rows["tuned"]["validate winners that differ, least layer"] < 1
    assert "validate top1 2_samples" in rows["tuned"]
    subprocess.run([*command, "test", str(path), ""], check=True, cwd=REPOSITORY)
    trial = study.trial("tuned", 0)
    times = [trial.file(name).stat().st_mtime_ns for name in ("trained", "test")]
    assert Runner(study, "", 1).fit(study.trials()) == []
    # More samples asked for later do not have the test images read again.
    study.final_evaluations = [0, 2, 3]
    assert Runner(study, "", 1).test(study.tested()) == []
    assert [trial.file(name).stat().st_mtime_ns for name in ("trained", "test")] == times


def test_a_trial_that_fails_is_named_with_its_log_and_stops_those_that_need_it(tmp_path):
    broken = {"config": CONFIG, "fields": {"model.lr": -1}}
    tuned = {"config": CONFIG, "fields": SMALL | {"model.weights": "<folder of broken>"}}
    study = Study.read(written(tmp_path, variants={"tuned": tuned, "broken": broken}))
    failed, waiting = Runner(study, "", 1).fit(study.trials())
    assert failed.startswith("broken, seed 0: training failed")
    assert "lr above 0" in Path(failed.rsplit(" ", 1)[1]).read_text()
    assert waiting == "tuned, seed 0: not begun, as broken, from which it starts, is not trained"
    assert read_rows(study) == []


def test_the_commit_is_dirty_where_code_differs_and_not_where_results_do(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert trials.commit() == "unknown"
    code, result = tmp_path / "code.py", tmp_path / "benchmarks" / "results" / "rows.csv"
    result.parent.mkdir(parents=True)
    for file in (code, result):
        file.write_text("before")
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = trials.commit()
    result.write_text("after")
    assert trials.commit() == clean
    code.write_text("after")
    assert trials.commit() == f"{clean}-dirty"
