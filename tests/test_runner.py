"""Trials are trained, judged and tested once each, whatever happens to their folders."""

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from benchmarks.accuracy import trials
from benchmarks.accuracy.rows import read_right, read_rows, right_of, write_rows
from benchmarks.accuracy.scores import judge_run
from benchmarks.accuracy.study import REPOSITORY, Study
from benchmarks.accuracy.tables import write_tables
from benchmarks.accuracy.trial import Trial
from benchmarks.accuracy.trials import Runner
from lwta.errors import InputError
from tests.studies import CONFIG, FIELDS, judged, scored, written


def test_which_images_were_right_outlives_the_folders(study, tmp_path):
    (tmp_path / "runs").rename(tmp_path / "gone")
    write_rows(study)
    assert len(read_rows(study)) == 4
    right = right_of(read_right(study), "a", 1, "test", "1_sample")
    assert right.tolist() == [True] * 6 + [False] * 2
    assert Runner(study, "", 1).fit(study.trials()) == []
    assert Runner(study, "", 1).test(study.tested()) == []


class Stand:
    """Stands in for training and judging in processes of their own, and knows what was asked of them."""

    def __init__(self, monkeypatch, ends=()):
        self.asked, self.ends = [], list(ends)
        monkeypatch.setattr(Runner, "_run", lambda runner, words, log: self.run(runner.study, words))

    def run(self, study, words):
        if "judge" in words:
            folder, split = Path(words[3]), words[4]
            self.asked.append((split, folder.parent.name))
            scored(study.trial(folder.parent.name, int(folder.name[4:])), split, RIGHT)
            return 0
        folder = Path(words[words.index("--run") + 1])
        self.asked.append(("resume" if "--ckpt_path" in words else "train", folder.parent.name))
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").touch()
        return self.ends.pop(0) if self.ends else 0


RIGHT = {"argmax": [True] * 8, "1_sample": [True] * 4 + [False] * 4}


def test_a_trial_that_was_cut_off_goes_on_and_its_row_says_so(tmp_path, monkeypatch):
    study = Study.read(written(tmp_path, variants={"a": {"config": CONFIG}}, evaluations=[0, 1]))
    stand = Stand(monkeypatch, ends=[1, 0])
    (failed,) = Runner(study, "", 1).fit(study.trials())
    assert failed.startswith("a, seed 0: training failed")
    assert Runner(study, "", 1).fit(study.trials()) == []
    assert stand.asked == [("train", "a"), ("resume", "a"), ("validate", "a")]
    (row,) = read_rows(study)
    assert row["resumed at"] == row["commit"] == trials.commit()
    assert "minutes" not in row  # of the last part alone they would say little


def test_what_another_starts_from_is_trained_again_where_it_is_gone(tmp_path, monkeypatch):
    tuned = {"config": CONFIG, "fields": {"model.weights": "<folder of dense>"}}
    fields = {"variants": {"dense": {"config": CONFIG}, "tuned": tuned}, "evaluations": [0, 1]}
    study = Study.read(written(tmp_path, **fields))
    judged(study.trial("dense", 0), "validate", RIGHT)
    write_rows(study)
    (tmp_path / "runs").rename(tmp_path / "gone")
    stand = Stand(monkeypatch)
    assert Runner(study, "", 1).fit(study.trials()) == []
    assert stand.asked == [
        ("train", "dense"),
        ("validate", "dense"),
        ("train", "tuned"),
        ("validate", "tuned"),
    ]
    assert Runner(study, "", 1).fit(study.trials()) == []
    assert len(stand.asked) == 4


def test_test_images_are_read_once_though_the_network_is_trained_again(study, tmp_path, monkeypatch):
    before = read_rows(study)
    (tmp_path / "runs").rename(tmp_path / "gone")
    stand = Stand(monkeypatch)
    study.final_evaluations = [0, 1, 5]
    assert Runner(study, "", 1).fit(study.trials()) == []
    assert stand.asked == []
    judged(study.trial("a", 0), "validate", RIGHT)  # trained again by hand
    write_rows(study)
    assert Runner(study, "", 1).test(study.tested()) == []
    assert (read_rows(study), stand.asked) == (before, [])


def test_a_network_that_is_gone_is_trained_again_for_the_test_images(tmp_path, monkeypatch):
    tuned = {"config": CONFIG, "fields": {"model.weights": "<folder of dense>"}}
    variants = {"dense": {"config": CONFIG}, "tuned": tuned, "other": {"config": CONFIG}}
    final = {"variants": variants, "final": {"D": "dense", "T": "tuned", "O": "other"}, "final_seeds": [0]}
    study = Study.read(written(tmp_path, **final, final_evaluations=[0, 1]))
    for trial in study.trials():
        judged(trial, "validate", RIGHT)
    write_rows(study)
    (tmp_path / "runs").rename(tmp_path / "gone")
    stand = Stand(monkeypatch)
    assert Runner(study, "", 1).test(study.tested("[dt]*")[::-1]) == []
    dense, tuned = ([(what, name) for what in ("train", "validate", "test")] for name in ("dense", "tuned"))
    assert stand.asked == dense + tuned
    rows = {row["variant"]: row for row in read_rows(study)}
    assert {rows[name]["commit"] for name in ("dense", "tuned")} == {trials.commit()}
    assert rows["other"]["commit"] == "abc"
    assert [name for name, row in rows.items() if row["test images"] == 8] == ["dense", "tuned"]


def test_test_images_wait_where_a_network_trained_again_is_another(tmp_path, monkeypatch):
    study = Study.read(
        written(
            tmp_path,
            **FIELDS | {"final": {"A": "a"}, "seeds": [0], "final_seeds": [0], "against": [], "curves": {}},
        )
    )
    judged(study.trial("a", 0), "validate", RIGHT | {"argmax": [True] * 7 + [False]})
    write_rows(study)
    (tmp_path / "runs").rename(tmp_path / "gone")
    stand = Stand(monkeypatch)
    (said,) = Runner(study, "", 1).test(study.tested())
    assert said.startswith(
        "a, seed 0: another network than its row's (validation top1 argmax 1.0000, then 0.8750)"
    )
    assert ("test", "a") not in stand.asked
    assert [row["validate top1 argmax"] for row in read_rows(study) if row["variant"] == "a"] == [1.0]
    assert Runner(study, "", 1).test(study.tested()) == []
    assert stand.asked[-1] == ("test", "a")


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_chain_of_starts_is_trained_link_by_link(jobs, tmp_path, monkeypatch):
    variants = {"c": {"config": CONFIG, "fields": {"model.weights": "<folder of b>"}}}
    variants |= {
        "b": {"config": CONFIG, "fields": {"model.weights": "<folder of a>"}},
        "a": {"config": CONFIG},
    }
    study = Study.read(written(tmp_path, variants=variants, evaluations=[0, 1]))
    stand = Stand(monkeypatch)
    assert Runner(study, "", jobs).fit(study.trials()[::-1]) == []
    assert [name for what, name in stand.asked if what == "train"] == ["a", "b", "c"]


def test_a_row_written_anew_leaves_nothing_of_the_network_before(study):
    trial = study.trial("a", 0)
    judged(trial, "validate", {"argmax": [True] * 8})
    write_rows(study)
    found = read_right(study)
    found = found[(found["variant"] == "a") & (found["seed"] == 0)]
    assert {(one.split, one.evaluation) for one in found.itertuples()} == {
        ("validate", "argmax"), ("test", "argmax"), ("test", "1_sample")
    }  # fmt: skip
    assert all(right_of(found, "a", 0, "validate", "argmax"))


def test_a_folder_of_another_recipe_makes_no_row(study, tmp_path):
    before = read_rows(study)
    variants = FIELDS["variants"] | {"a": {"config": CONFIG, "fields": {"model.lr": 1.0}}}
    other = Study.read(written(tmp_path, **FIELDS | {"variants": variants}))
    judged(study.trial("a", 0), "validate", {"argmax": [False] * 8, "1_sample": [False] * 8})
    write_rows(other)
    assert read_rows(other) == before
    with pytest.raises(InputError, match="a, seed 0 was trained otherwise"):
        write_tables(other)


def test_the_start_of_a_trial_that_is_tested_is_trained_again_and_not_tested(tmp_path, monkeypatch):
    tuned = {"config": CONFIG, "fields": {"model.weights": "<folder of dense>"}}
    fields = {"variants": {"dense": {"config": CONFIG}, "tuned": tuned}, "final": {"T": "tuned"}}
    fields |= {"final_seeds": [0], "final_evaluations": [0, 1]}
    study = Study.read(written(tmp_path, **fields))
    for trial in study.trials():
        judged(trial, "validate", RIGHT)
    write_rows(study)
    (tmp_path / "runs").rename(tmp_path / "gone")
    stand = Stand(monkeypatch)
    changed = {"dense": {"config": CONFIG, "fields": {"model.lr": 1.0}}, "tuned": tuned}
    other = Study.read(written(tmp_path, **fields | {"variants": changed}))
    with pytest.raises(InputError, match="dense, seed 0 was trained otherwise"):
        Runner(other, "", 1).test(other.tested())
    assert Runner(study, "", 1).test(study.tested()) == []
    assert [what for what, name in stand.asked if name == "dense"] == ["train", "validate"]
    assert [what for what, name in stand.asked if name == "tuned"] == ["train", "validate", "test"]


def test_a_run_is_judged_on_the_test_images_once(study):
    folder = study.trial("a", 0).folder
    with pytest.raises(InputError, match="which are read once"):
        judge_run(str(folder), "test", [0], "")


def test_a_trial_that_another_process_is_at_is_left_to_it(tmp_path, monkeypatch):
    study = Study.read(written(tmp_path, variants={"a": {"config": CONFIG}}))
    stand, (trial,) = Stand(monkeypatch), study.trials()
    trial.folder.mkdir(parents=True)
    with FileLock(trial.folder / "lock"):
        (said,) = Runner(study, "", 1).fit([trial])
    assert said == "a, seed 0: another process is at it; run this again when that has ended"
    assert stand.asked == []


def test_words_that_look_like_numbers_stay_words(study, monkeypatch):
    monkeypatch.setattr(Trial, "recipe", lambda trial, repository: "0123456789e2")
    for trial in study.trials():
        trial.write("trained", {"command": "c", "recipe": "0123456789e2", "commit": "1234567", "minutes": 1})
    write_rows(study)
    assert {(row["recipe"], row["commit"]) for row in read_rows(study)} == {("0123456789e2", "1234567")}


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
    with pytest.raises(InputError, match="small has no final row and no curve that matches"):
        study.tested()


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
