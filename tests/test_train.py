"""Training from the command line: what a run leaves behind, resuming it, and bad input."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

import train
from models.checkpoint import read_checkpoint, run_checkpoint
from models.classifier import Classifier
from models.schedule import Schedule
from tests.conftest import refused


class StopAt(Callback):
    """Breaks a run off at the start of an epoch, or in the middle of it."""

    def __init__(self, epoch: int, batch: int | None = None) -> None:
        self.epoch, self.batch = epoch, batch

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if self.batch is None and trainer.current_epoch == self.epoch:
            raise Stopped

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            raise Stopped


class Stopped(Exception):
    """The power went out."""


def rows(run: Path, epoch: int | None = None) -> list[dict[str, str]]:
    """Logged rows of a run, over all its versions."""
    out = []
    for path in sorted(run.glob("metrics/version_*/metrics.csv")):
        with path.open(newline="") as file:
            out += [row for row in csv.DictReader(file) if epoch is None or row["epoch"] == str(epoch)]
    return out


def values(run: Path, epoch: int) -> dict[str, float]:
    """Everything logged of an epoch."""
    merged = {key: value for row in rows(run, epoch) for key, value in row.items() if value}
    return {key: float(value) for key, value in merged.items()}


def test_a_run_leaves_config_checkpoints_and_metrics(tiny):
    tiny.fit()
    config = yaml.safe_load((tiny.folder / "config.yaml").read_text())
    assert config["model"]["competitors"] == 24
    assert config["trainer"]["max_epochs"] == 3
    assert {p.name for p in (tiny.folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list(tiny.folder.glob("tensorboard/version_0/events*"))
    last = values(tiny.folder, 2)
    assert 0 <= last["val/winner_entropy"] <= 1
    assert last["train/lr"] > 0
    assert last["val/active_fraction"] == pytest.approx(1 / 24)
    for layer in ("blocks.0.mlp.act", "blocks.1.mlp.act"):
        assert last[f"val/{layer}/active_fraction"] == pytest.approx(1 / 24)
        assert 0 <= last[f"val/{layer}/winner_entropy"] <= 1
    assert last["val/top1"] > 0.6  # three colours; chance is a third
    assert last["val/top5"] == 1.0  # of three classes
    assert last["train/noise"] == pytest.approx(0.1)


VARIANTS = {
    "plain": {},
    "ema": {"trainer__callbacks+": "lightning.pytorch.callbacks.EMAWeightAveraging"},
    "mixing, KL, balance, workers": {
        "data__mixup": 0.2,
        "data__cutmix": 1.0,
        "data__num_workers": 1,
        "model__kl_weight": 0.01,
        "model__balance_weight": "{start: 0.1, end: 0.0, epochs: 2}",
    },
}


@pytest.mark.parametrize("stop", [{"epoch": 1}, {"epoch": 2}, {"epoch": 1, "batch": 1}], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_as_the_uninterrupted_one(tiny, tmp_path, variant, stop):
    options = VARIANTS[variant]
    tiny.fit(run=tmp_path / "whole", **options)
    callbacks = ["--trainer.callbacks+=tests.test_train.StopAt"] + [
        f"--trainer.callbacks.{key}={value}" for key, value in stop.items()
    ]
    with pytest.raises(Stopped):
        train.main(tiny.args(**options) + callbacks)
    tiny.fit(ckpt_path=tiny.folder / "checkpoints" / "last.ckpt", **options)
    for epoch in range(stop["epoch"], 3):
        assert values(tiny.folder, epoch) == values(tmp_path / "whole", epoch)
    ours, theirs = (
        read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
        for run in (tiny.folder, tmp_path / "whole")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def logged_by_test(run: Path) -> list[dict[str, float]]:
    """What each ``test`` of a run logged."""
    found = [{k: float(v) for k, v in row.items() if k.startswith("test/") and v} for row in rows(run)]
    return [row for row in found if row]


def test_test_reports_every_evaluation_from_the_run_folder_alone(tiny):
    tiny.fit()
    train.main(["test", f"--config={tiny.folder / 'config.yaml'}"])
    (scores,) = logged_by_test(tiny.folder)
    assert {f"test/top1/{name}" for name in ("argmax", "1_sample", "10_samples")} <= scores.keys()
    assert scores["test/active_fraction"] == pytest.approx(1 / 24)
    again = Classifier.from_checkpoint(run_checkpoint(tiny.folder))
    assert again.hparams["class_names"] == ["blue", "green", "red"]
    assert next(iter(again.modules())).training is False


def test_testing_twice_gives_the_same_numbers(tiny):
    tiny.fit(model__noise=5.0)
    command = ["test", f"--config={tiny.folder / 'config.yaml'}", "--model.test_evaluations=[0, 1, 3]"]
    train.main(command)
    train.main(command)
    first, second = logged_by_test(tiny.folder)
    assert first == second
    assert "test/top1/3_samples" in first


@pytest.mark.parametrize(
    ("activation", "competitors", "fraction"),
    [("lwta", "null", 1.0), ("topk", 24, 1 / 24), ("relu", "null", None), ("gelu", "null", 1.0)],
)
def test_baselines_are_a_config_value(tiny, activation, competitors, fraction):
    tiny.fit(model__activation=activation, model__competitors=competitors, trainer__max_epochs=1)
    measured = values(tiny.folder, 0)["val/active_fraction"]
    if fraction is None:
        assert 0.01 < measured < 0.99
    else:
        assert measured == pytest.approx(fraction, abs=1e-3)


def test_schedules_reach_the_competition(tiny):
    tiny.fit(model__tau="{start: 2.0, end: 1.0, epochs: 1}", model__beta=1.5)
    competition = (
        Classifier.from_checkpoint(run_checkpoint(tiny.folder)).backbone.blocks[0].mlp.act.competition
    )
    # The best epoch may be any; after the first, tau has come down.
    assert competition.beta == 1.5
    assert competition.tau == pytest.approx(
        Schedule(2.0, 1.0, 1).at(read_checkpoint(tiny.folder / "checkpoints" / "best.ckpt")["epoch"] + 0.75)
    )


def test_both_terms_enter_the_loss_with_their_weights(tiny, tmp_path):
    # With so small a step, and nothing drawn, every run sees the same network.
    still = {"model__lr": 1e-12, "model__noise": 0.0, "trainer__max_epochs": 1}
    still["model__backbone_args"] = "{img_size: 16, patch_size: 4, embed_dim: 24, depth: 2, num_heads: 2}"
    logged = []
    weights = [(0.0, 0.0), (0.5, 0.0), (0.5, 2.0)]
    for place, (kl, balance) in enumerate(weights):
        run = tmp_path / str(place)
        tiny.fit(run=run, model__kl_weight=kl, model__balance_weight=balance, **still)
        logged.append(values(run, 0))
    plain, with_kl, with_both = logged
    assert "train/kl" not in plain
    assert with_kl["train/kl"] > 0.001
    assert with_kl["train/loss"] == pytest.approx(plain["train/loss"] + 0.5 * with_kl["train/kl"], rel=1e-5)
    assert 0.5 < with_both["train/usage_entropy"] < 1
    assert with_both["train/loss"] == pytest.approx(
        with_kl["train/loss"] - 2.0 * with_both["train/usage_entropy"], rel=1e-5
    )


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            {"model__competitors": 23},
            "23 competitors do not divide the 96 units of blocks.0.mlp.act; .* 24, 32",
        ),
        (
            {"model__sites": "[stages.*.act]"},
            r"sites 'stages.\*.act' matches no activation; .*blocks.0.mlp.act",
        ),
        ({"model__backbone": "vit_gigantic"}, "timm knows no model 'vit_gigantic'"),
        ({"model__activation": "relu"}, "relu has no competitors; set competitors to null"),
        ({"data__root": "/nowhere"}, "there is no data at /nowhere; set data.root"),
        ({"data__name": "hfds", "data__root": "/nowhere"}, "there is no data at /nowhere"),
        ({"data__batch_size": 100}, "48 training images do not fill a batch of 100"),
        ({"data__mixup": 0.5, "data__batch_size": 11}, "make data.batch_size even, not 11"),
        ({"data__batch_size": 0}, "data.batch_size is at least 1, not 0"),
        ({"data__name": "imagefolder"}, "data.name 'imagefolder' is not known"),
        ({"data__train_split": ""}, "must not be empty"),
        ({"data__interpolation": "cubic"}, "data.interpolation is one of nearest, bilinear, bicubic"),
        ({"data__num_classes": 2}, "the data has 3 classes and data.num_classes is 2"),
        ({"data__dataset_args": "{foo: 1}"}, "cannot read split 'train' .*foo"),
        (
            {"model__backbone_args": "{embed_dim: 25, num_heads: 2}"},
            "timm cannot build 'vit_tiny_patch16_224'",
        ),
        ({"model__beta": -1.0}, "beta must be above 0"),
        ({"model__noise": ".nan"}, "noise must be finite"),
        ({"model__sites": "[]"}, "sites names no site"),
        ({"model__lr": -1.0}, "lr above 0"),
        ({"model__optimizer_args": "{foo: 1}"}, "timm refuses the optimizer or scheduler .*foo"),
        (
            {"data__val_split": "holdout"},
            "there is no split 'holdout' in .* it holds test, train, validation",
        ),
        ({"data__image_size": 32}, "data.image_size is 32 and the backbone is built for 16 x 16"),
        ({"model__tau": "{start: 1.0, end: 0.0, epochs: 2}"}, "tau must stay above 0"),
        ({"model__noise": -1.0}, "noise must be at least 0"),
        ({"model__optimizer": "adamwx"}, "timm knows no optimizer 'adamwx'"),
        ({"model__scheduler": "plateau"}, "scheduler is one of cosine, .* not 'plateau'"),
        ({"model__evaluation": -1}, "an evaluation is 0 for the argmax or a number of samples"),
        (
            {"model__competitors": "null", "model__sites": "[stem.*]"},
            r"sites 'stem.\*' matches no activation",
        ),
        ({"ckpt_path": "/nowhere.ckpt"}, "there is no checkpoint /nowhere.ckpt"),
        ({"model__competitors": "null", "model__kl_weight": 0.1}, "kl_weight .* need competing units"),
        ({"trainer__max_epochs": -1}, "needs trainer.max_epochs"),
        ({"model__weights": "/nowhere"}, "there is no run or file /nowhere to start from; train it first"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tiny, option, sentence):
    message = refused(train.main, tiny.args(**option))
    assert re.search(sentence, message), message
    assert not tiny.folder.exists()


def test_a_refused_run_starts_once_it_is_corrected(tiny):
    refused(train.main, tiny.args(data__batch_size=100))
    tiny.fit(trainer__max_epochs=1)
    assert (tiny.folder / "checkpoints" / "last.ckpt").exists()


def test_a_refused_resume_leaves_the_run_as_it_was(tiny):
    tiny.fit(trainer__max_epochs=1)
    before = (tiny.folder / "config.yaml").read_text()
    last = tiny.folder / "checkpoints" / "last.ckpt"
    for change in ({"model__competitors": 12}, {"model__optimizer": "sgd"}):
        assert "use the config of its run" in refused(train.main, tiny.args(ckpt_path=last, **change))
    assert (tiny.folder / "config.yaml").read_text() == before


def test_being_terminated_is_no_success(tiny):
    root = Path(train.__file__).parent
    command = [sys.executable, root / "train.py", *tiny.args(trainer__max_epochs=500)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        while not (tiny.folder / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "resume from checkpoints/last.ckpt" in said


def test_a_truncated_checkpoint_is_refused_before_anything_is_written(tiny, tmp_path):
    tiny.fit(trainer__max_epochs=1)
    whole = (tiny.folder / "checkpoints" / "last.ckpt").read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    message = refused(train.main, tiny.args(run=tmp_path / "other", ckpt_path=cut))
    assert "cut.ckpt is truncated or not a plain checkpoint" in message
    assert not (tmp_path / "other").exists()


class Boom:
    """Pickles into a call."""

    def __reduce__(self):
        return (Path("ran").touch, ())


def test_a_checkpoint_cannot_run_code(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": Boom()}, tmp_path / "evil.ckpt")
    message = refused(train.main, tiny.args(ckpt_path=tmp_path / "evil.ckpt"))
    assert "not a plain checkpoint" in message
    assert not (tmp_path / "ran").exists()


def test_a_run_is_not_overwritten(tiny):
    tiny.fit(trainer__max_epochs=1)
    before = (tiny.folder / "checkpoints" / "last.ckpt").read_bytes()
    message = refused(train.main, tiny.args())
    assert "already holds a run; resume it with --ckpt_path" in message
    assert (tiny.folder / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (1, "the loss is nan in epoch 1, batch 3; lower model.lr"),
        (3, "the weights are no longer finite after epoch 1"),
    ],
    ids=["mid-epoch", "last update"],
)
def test_nan_stops_the_run_and_keeps_the_checkpoints_before_it(tiny, batch, sentence):
    tiny.fit(trainer__max_epochs=1)
    last = tiny.folder / "checkpoints" / "last.ckpt"
    before = {path.name: path.read_bytes() for path in last.parent.iterdir()}
    poison = ["--trainer.callbacks+=tests.test_train.Poison", f"--trainer.callbacks.batch={batch}"]
    message = refused(train.main, [*tiny.args(ckpt_path=last, trainer__log_every_n_steps=4), *poison])
    assert sentence in message
    assert {path.name: path.read_bytes() for path in last.parent.iterdir()} == before


class Poison(Callback):
    """Makes the weights NaN after a batch of the second epoch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == (1, self.batch):
            with torch.no_grad():
                pl_module.backbone.head.weight.fill_(torch.nan)


def test_a_checkpoint_of_another_network_is_refused(tiny, tmp_path):
    tiny.fit(trainer__max_epochs=1)
    last = tiny.folder / "checkpoints" / "last.ckpt"
    message = refused(train.main, tiny.args(run=tmp_path / "other", ckpt_path=last, model__competitors=8))
    assert "has model.competitors=24 and the config 8" in message
    torch.save({"a": 1}, tmp_path / "foreign.ckpt")
    message = refused(train.main, tiny.args(run=tmp_path / "other", ckpt_path=tmp_path / "foreign.ckpt"))
    assert "foreign.ckpt is no checkpoint of train.py: it lacks hyper_parameters" in message
    assert not (tmp_path / "other").exists()


def test_a_resumed_run_is_still_tested_by_its_best_checkpoint(tiny):
    tiny.fit(trainer__max_epochs=1)
    tiny.fit(ckpt_path=tiny.folder / "checkpoints" / "last.ckpt", trainer__max_epochs=2)
    assert yaml.safe_load((tiny.folder / "config.yaml").read_text())["ckpt_path"] is None
    train.main(["test", f"--config={tiny.folder / 'config.yaml'}"])
    assert len(logged_by_test(tiny.folder)) == 1


def test_a_moved_run_keeps_its_best_checkpoint(tiny):
    tiny.fit(model__lr=1e-2)
    moved = tiny.folder.rename(tiny.folder.parent / "moved")
    best = (moved / "checkpoints" / "best.ckpt").read_bytes()
    tiny.fit(
        run=moved, ckpt_path=moved / "checkpoints" / "last.ckpt", model__lr=1e-2, trainer__max_epochs=4,
        **{"trainer__callbacks+": "tests.test_train.Spoil"},
    )  # fmt: skip
    assert values(moved, 3)["val/top1"] < 0.5
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == best


class Spoil(Callback):
    """Sets the head to zero after the last batch of the fourth epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.current_epoch == 3 and trainer.is_last_batch:
            with torch.no_grad():
                for parameter in pl_module.backbone.head.parameters():
                    parameter.zero_()


@pytest.mark.parametrize("normalize", ["false", "true"])  # a dense network knows no spread of logits
def test_a_sparse_run_starts_from_a_dense_one_and_needs_it_only_once(tiny, tmp_path, normalize):
    dense = tmp_path / "dense"
    tiny.fit(run=dense, model__competitors="null", trainer__max_epochs=1)
    # With so small a step the weights after training are those before it.
    start = {"model__weights": dense, "model__normalize": normalize}
    tiny.fit(**start, model__lr=1e-12, model__weight_decay=0.0, trainer__max_epochs=1)
    before, after = (Classifier.from_checkpoint(run_checkpoint(run)) for run in (dense, tiny.folder))
    assert after.report.swapped
    found = after.backbone.state_dict()
    weights = before.backbone.state_dict()
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in weights.items())
    assert len(found) - len(weights) == (2 * len(after.report.swapped) if normalize == "true" else 0)
    dense.rename(tmp_path / "gone")
    config, last = tiny.folder / "config.yaml", tiny.folder / "checkpoints" / "last.ckpt"
    train.main(["fit", f"--config={config}", f"--ckpt_path={last}", "--trainer.max_epochs=2"])
    train.main(["test", f"--config={config}"])
    assert yaml.safe_load(config.read_text())["model"]["weights"] == str(dense)


def test_a_checkpoint_from_before_logits_were_normalised_is_read_as_it_was_trained(tiny):
    tiny.fit(trainer__max_epochs=1)
    config, last = tiny.folder / "config.yaml", tiny.folder / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    del saved["hyper_parameters"]["normalize"]
    torch.save(saved, last)
    assert Classifier.from_checkpoint(last).hparams["normalize"] is False
    again = ["fit", f"--config={config}", f"--ckpt_path={last}", "--trainer.max_epochs=2"]
    said = refused(train.main, [*again, "--model.normalize=true"])
    assert "has model.normalize=False and the config True" in said
    train.main(again)
    assert read_checkpoint(last)["epoch"] == 1


def test_a_run_resumes_from_its_own_config_alone(tiny, tmp_path):
    tiny.fit(run=tmp_path / "whole")
    stop = ["--trainer.callbacks+=tests.test_train.StopAt", "--trainer.callbacks.epoch=1"]
    with pytest.raises(Stopped):
        train.main([*tiny.args(), *stop])
    config = tiny.folder / "config.yaml"
    last = tiny.folder / "checkpoints" / "last.ckpt"
    train.main(["fit", f"--config={config}", f"--ckpt_path={last}", "--trainer.callbacks=null"])
    assert values(tiny.folder, 2) == values(tmp_path / "whole", 2)


def test_an_averaged_run_is_tested_by_its_average(tiny):
    tiny.fit(**VARIANTS["ema"])
    train.main(["test", f"--config={tiny.folder / 'config.yaml'}"])
    (scores,) = logged_by_test(tiny.folder)
    saved = read_checkpoint(tiny.folder / "checkpoints" / "best.ckpt")
    ours = Classifier.from_checkpoint(run_checkpoint(tiny.folder)).state_dict()
    assert all(torch.equal(ours[key], saved["state_dict"][key]) for key in ours)
    assert any(not torch.equal(ours[key], saved["current_model_state"][key]) for key in ours)
    assert 0 <= scores["test/top1/argmax"] <= 1


def test_two_processes_see_different_images_and_agree_on_the_metrics(tiny):
    tiny.fit(trainer__strategy="ddp_spawn", trainer__devices=2, data__batch_size=6, trainer__max_epochs=2)
    epoch = values(tiny.folder, 1)
    assert epoch["val/active_fraction"] == pytest.approx(1 / 24)
    assert epoch["val/top1"] > 0.4
    tiny.fit(run=tiny.folder.parent / "one", trainer__max_epochs=2)
    # The same images in an epoch, 12 to an update: the schedules end at the same values.
    for name in ("train/noise", "train/lr"):
        assert epoch[name] == pytest.approx(values(tiny.folder.parent / "one", 1)[name])


def test_testing_a_folder_without_a_run_is_refused(tiny):
    args = ["test", *tiny.args()[1:]]
    assert "holds no checkpoint" in refused(train.main, args)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "foo"])
def test_an_accelerator_that_is_not_there_is_one_sentence(tiny, accelerator):
    message = refused(train.main, tiny.args(trainer__accelerator=accelerator))
    assert re.search("gpu backend|CUDAAccelerator|accelerator name.*'foo'", message), message
    assert not tiny.folder.exists()
