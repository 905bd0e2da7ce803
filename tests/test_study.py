"""Studies: what they train, and in which order."""

from inspect import signature

import pytest
from lightning import Trainer

from benchmarks.accuracy.rows import read_rows
from benchmarks.accuracy.study import REPOSITORY, Study
from lwta.errors import InputError
from models.classifier import Classifier
from models.data import ImageData
from tests.studies import VARIANTS, written

STUDIES = sorted((REPOSITORY / "benchmarks" / "accuracy").glob("*.yaml"))


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


def test_some_rows_have_more_seeds(tmp_path):
    fields = {"variants": VARIANTS, "final": {"x": "dense-0.2", "y": "dense-0.1"}, "final_seeds": [0, 1]}
    more = {"dense-0.1": [2, 3], "tuned": [5]}
    study = Study.read(written(tmp_path, **fields, more_seeds=more, seeds=[0]))
    expected = {("dense-0.2", 0), ("dense-0.2", 1), *(("dense-0.1", seed) for seed in range(4))}
    assert set(names(study.tested())) == expected
    assert set(names(study.trials())) == expected | {("tuned", 0), ("tuned", 5), ("dense-0.2", 5)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"variants": VARIANTS, "final": {"x": "none"}}, "no variant 'none'"),
        ({"variants": VARIANTS, "final": {"x": "tuned"}, "against": ["y"]}, "no row of its final table"),
        ({"variants": VARIANTS, "more_seeds": {"none": [3]}}, "no variant 'none'"),
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


def test_a_config_that_is_not_there_is_named(tmp_path):
    trial = Study.read(written(tmp_path, variants={"a": {"config": "none.yaml"}})).trial("a", 0)
    with pytest.raises(InputError, match="a, seed 0: its config none.yaml cannot be read .*No such file"):
        trial.recipe(tmp_path)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_set_fields_that_train_py_knows(path):
    known = {"model": Classifier, "data": ImageData, "trainer": Trainer}
    for trial in Study.read(path).trials():
        assert (REPOSITORY / trial.config).is_file()
        for part, name, *_ in (field.split(".") for field in trial.fields):
            assert name in signature(known[part].__init__).parameters, trial


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_rows_are_of_the_recipes_of_today(path):
    study = Study.read(path)
    known = {(row["variant"], row["seed"]): row for row in read_rows(study)}
    trials = [trial for trial in study.trials() if (trial.variant, trial.seed) in known]
    assert trials
    for trial in trials:
        trial.check_recipe(trial.recipe(REPOSITORY), known[trial.variant, trial.seed])


def test_a_variant_is_judged_by_its_own_evaluations_where_it_has_some(tmp_path):
    own = {"config": "a.yaml", "grid": {"model.lr": [0.1, 0.2]}, "evaluations": [0]}
    variants = {"own": own, "final": {"config": "a.yaml"}, "other": {"config": "a.yaml"}}
    final = {"A": "own-0.1", "B": "final"}
    study = Study.read(
        written(tmp_path, variants=variants, final=final, evaluations=[0, 1], final_evaluations=[0, 9])
    )
    found = {name: study.evaluations_of(name) for name in study.variants}
    assert found == {"own-0.1": [0], "own-0.2": [0], "final": [0, 9], "other": [0, 1]}
