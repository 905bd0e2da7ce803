"""Studies of accuracy: what they train, what they make of it, and how sure they are."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.accuracy.findings import difference, served
from benchmarks.accuracy.interval import crossed_interval
from benchmarks.accuracy.rows import judged_file, read_right, read_rows, right_of, write_rows
from benchmarks.accuracy.study import REPOSITORY, Study
from benchmarks.accuracy.tables import write_tables
from benchmarks.accuracy.trials import fit_all, judge_tests
from lwta.errors import InputError

STUDIES = sorted((REPOSITORY / "benchmarks" / "accuracy").glob("*.yaml"))


def written(tmp_path, **fields) -> Path:
    """A study file whose runs and results lie in ``tmp_path``."""
    path = tmp_path / "small.yaml"
    own = {"runs": str(tmp_path / "runs"), "results": str(tmp_path / "results")}
    path.write_text(yaml.safe_dump(own | fields, sort_keys=False))
    return path


VARIANTS = {
    "dense": {"config": "a.yaml", "grid": {"model.lr": [0.1, 0.2]}},
    "tuned": {"config": "b.yaml", "fields": {"model.weights": "{folder of dense-0.2}", "model.noise": None}},
}


def test_a_grid_is_a_variant_for_each_value(tmp_path):
    study = Study.read(written(tmp_path, variants=VARIANTS, seeds=[0, 1]))
    assert [(t.variant, t.seed) for t in study.trials()] == [
        (name, seed) for name in ("dense-0.1", "dense-0.2", "tuned") for seed in (0, 1)
    ]
    assert study.trial("dense-0.2", 1).fields == {"model.lr": 0.2}


def test_a_command_names_seed_folder_and_fields_and_leaves_the_data_open(tmp_path):
    trial = Study.read(written(tmp_path, variants=VARIANTS)).trial("tuned", 3)
    runs = tmp_path / "runs"
    assert trial.command == [
        *("python", "train.py", "fit", "--config", "b.yaml", "--seed_everything", "3"),
        *("--run", f"{runs}/tuned/seed3", "--data.root", "$DATA"),
        *("--model.weights", f"{runs}/dense-0.2/seed3", "--model.noise", "null"),
    ]
    assert trial.needs == (runs / "dense-0.2" / "seed3",)


def test_chosen_variants_get_their_further_seeds_after_all_others(tmp_path):
    study = Study.read(written(tmp_path, variants=VARIANTS, final={"sparse": "tuned"}, final_seeds=[0, 2]))
    assert [(t.variant, t.seed) for t in study.trials()][-2:] == [("tuned", 0), ("tuned", 2)]
    assert [(t.variant, t.seed) for t in study.tested()] == [("tuned", 0), ("tuned", 2)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"variants": VARIANTS, "final": {"x": "none"}}, "no variant 'none'"),
        ({"variants": VARIANTS, "final": {"x": "tuned"}, "against": ["y"]}, "no row of its final table"),
        ({"variants": VARIANTS, "colour": 1}, "is no study"),
    ],
)
def test_a_study_that_names_what_there_is_not_is_refused(fields, said, tmp_path):
    with pytest.raises(InputError, match=said):
        Study.read(written(tmp_path, **fields))


def test_an_unknown_folder_is_refused(tmp_path):
    variants = {"tuned": {"config": "b.yaml", "fields": {"model.weights": "{folder of dense}"}}}
    with pytest.raises(InputError, match="'dense', which is no variant"):
        Study.read(written(tmp_path, variants=variants)).trials()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_name_shipped_configs(path):
    for trial in Study.read(path).trials():
        assert (REPOSITORY / trial.config).is_file()


# -- intervals ----------------------------------------------------------------------------------


def crossed(generator, seeds, images, of_seeds, of_images, rest):
    draw = generator.standard_normal
    return of_seeds * draw((seeds, 1)) + of_images * draw((1, images)) + rest * draw((seeds, images))


@pytest.mark.parametrize("scales", [(0.0, 1.0, 1.0), (0.3, 1.0, 1.0), (1.0, 0.1, 1.0), (0.0, 0.0, 1.0)])
def test_an_interval_covers_the_truth_in_about_19_of_20_worlds(scales):
    generator, inside, worlds = np.random.default_rng(0), 0, 2000
    for _ in range(worlds):
        found = crossed_interval(crossed(generator, 3, 40, *scales))
        inside += found.low <= 0 <= found.high
    # Satterthwaite's degrees of freedom are an approximation; 8,000 worlds gave .928 to .960.
    assert 0.92 < inside / worlds < 0.99


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


def judged(study, variant, seed, split, right):
    """Stand in for a trained and judged trial."""
    folder = study.folder(variant, seed)
    file = judged_file(folder, split)
    file.parent.mkdir(parents=True, exist_ok=True)
    scores = {"images": 8, "dead, worst layer": 0.0, "winners that differ, mean layer": 0.1}
    scores |= {"active, competing sites": 0.04, "active, all sites": 0.04, "participation ratio": 0.02}
    for name, bits in right.items():
        scores |= {f"top1 {name}": float(np.mean(bits)), f"calibration {name}": 0.1}
    file.write_text(json.dumps(scores))
    np.savez(file.with_suffix(".npz"), **{name: np.array(bits, bool) for name, bits in right.items()})
    command = shlex.join(study.trial(variant, seed).command)
    (folder / "trained.json").write_text(json.dumps({"command": command, "commit": "abc", "minutes": 1}))


@pytest.fixture
def study(tmp_path):
    """Two variants, two seeds: `a` is served by samples, `b` by the argmax."""
    final = {"A": "a", "B": "b"}
    variants = {name: {"config": "x.yaml"} for name in final.values()}
    study = Study.read(
        written(
            tmp_path,
            variants=variants,
            seeds=[0, 1],
            evaluations=[0, 1],
            final=final,
            final_seeds=[0, 1],
            final_evaluations=[0, 1],
            against=["B"],
            curves={"lwta": {2: "a", 4: "b"}},
        )
    )
    for seed in (0, 1):
        ones, zeros = [True] * 8, [False] * 8
        judged(study, "a", seed, "validate", {"argmax": zeros, "1_sample": ones})
        judged(study, "b", seed, "validate", {"argmax": ones, "1_sample": zeros})
        judged(study, "a", seed, "test", {"argmax": zeros, "1_sample": [True] * 6 + [False] * 2})
        judged(study, "b", seed, "test", {"argmax": [True] * 4 + [False] * 4, "1_sample": zeros})
    write_rows(study)
    return study


def test_validation_images_decide_how_a_variant_is_judged(study):
    import pandas as pd

    rows = pd.DataFrame(read_rows(study))
    assert served(rows[rows["variant"] == "a"]) == "1_sample"
    assert served(rows[rows["variant"] == "b"]) == "argmax"
    found = difference(rows, read_right(study), "a", "b")
    assert found is not None
    assert found.mean == pytest.approx(25.0)  # 6 of 8 by a sample, less 4 of 8 by the argmax
    assert found.low < 0 < found.high


def test_which_images_were_right_outlives_the_folders(study, tmp_path):
    (tmp_path / "runs").rename(tmp_path / "gone")
    write_rows(study)
    assert len(read_rows(study)) == 4
    right = right_of(read_right(study), "a", 1, "test", "1_sample")
    assert right.tolist() == [True] * 6 + [False] * 2


def test_the_table_shows_every_evaluation_and_the_difference(study, tmp_path):
    text = write_tables(study)
    (line,) = [line for line in text.splitlines() if line.startswith("| A | 2 |")]
    assert "| 0.00 | 75.00 |" in line
    assert "+25.00 [" in text
    assert (tmp_path / "results" / "small.md").read_text() == text
    assert (tmp_path / "results" / "small.png").read_bytes().startswith(b"\x89PNG")


def test_a_trial_of_another_command_is_refused(study, tmp_path):
    path = written(tmp_path, variants={"a": {"config": "other.yaml"}}, evaluations=[0, 1])
    other = Study.read(path)
    with pytest.raises(InputError, match="trained by another command"):
        fit_all(other, other.trials(), "", jobs=1)


# -- the whole of it ----------------------------------------------------------------------------


def test_trials_are_trained_judged_and_tested_once(tmp_path):
    small = {
        "data.train_split": "train[:64]",
        "data.val_split": "validation[:32]",
        "data.test_split": "test[:32]",
        "data.num_workers": 0,
        "data.batch_size": 32,
        "trainer.max_epochs": 1,
    }
    config = "configs/train/quickstart.yaml"
    dense = {"config": config, "fields": small | {"model.competitors": None}}
    tuned = {"config": config, "fields": small | {"model.weights": "{folder of dense}"}}
    path = written(
        tmp_path,
        variants={"tuned": tuned, "dense": dense},
        evaluations=[0, 1],
        final={"sparse from dense": "tuned"},
        final_seeds=[0],
        final_evaluations=[0, 2],
    )
    study = Study.read(path)
    assert fit_all(study, study.trials(), "", jobs=2) == []
    rows = {row["variant"]: row for row in read_rows(study)}
    assert set(rows) == {"tuned", "dense"}
    assert rows["tuned"]["validate active, competing sites"] == pytest.approx(1 / 24)
    assert 0.05 < rows["tuned"]["validate winners that differ, least layer"] < 1
    assert "validate top1 2_samples" in rows["tuned"]
    assert judge_tests(study, study.tested(), "", jobs=1) == []
    file = judged_file(study.folder("tuned", 0), "test")
    before, trained = file.stat().st_mtime_ns, (study.folder("tuned", 0) / "trained.json").stat().st_mtime_ns
    assert fit_all(study, study.trials(), "", jobs=1) == []
    assert judge_tests(study, study.tested(), "", jobs=1) == []
    assert file.stat().st_mtime_ns == before
    assert (study.folder("tuned", 0) / "trained.json").stat().st_mtime_ns == trained


def test_a_trial_that_fails_is_named_with_its_log(tmp_path):
    variants = {"broken": {"config": "configs/train/quickstart.yaml", "fields": {"model.lr": -1}}}
    study = Study.read(written(tmp_path, variants=variants))
    (said,) = fit_all(study, study.trials(), "", jobs=1)
    assert said.startswith("broken, seed 0: training failed")
    log = Path(said.rsplit(" ", 1)[1])
    assert "lr above 0" in log.read_text()
    assert read_rows(study) == []


def test_an_untrained_trial_is_not_tested(tmp_path):
    study = Study.read(
        written(tmp_path, variants={"a": {"config": "x.yaml"}}, final={"A": "a"}, final_seeds=[0])
    )
    assert judge_tests(study, study.tested(), "", jobs=1) == ["a, seed 0: not trained; run fit first"]
