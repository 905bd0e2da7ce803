"""Training from the command line: what a run leaves behind, resuming it, and bad input."""

import csv
import re
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

import train
from models.backbone import read_checkpoint
from models.classifier import Classifier
from models.schedule import Schedule


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
    again = Classifier.from_run(tiny.folder)
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
    competition = Classifier.from_run(tiny.folder).backbone.blocks[0].mlp.act.competition
    # The best epoch may be any; after the first, tau has come down.
    assert competition.beta == 1.5
    assert competition.tau == pytest.approx(
        Schedule(2.0, 1.0, 1).at(read_checkpoint(tiny.folder / "checkpoints" / "best.ckpt")["epoch"] + 0.75)
    )


# --- bad input --------------------------------------------------------------------------------


def refused(capsys, args: list[str]) -> str:
    """Run a command that must fail; its one sentence."""
    with pytest.raises(SystemExit) as stop:
        train.main(args)
    message = str(stop.value.code)
    assert message.startswith("error: "), message
    assert "\n" not in message
    return message


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
        ({"ckpt_path": "/nowhere.ckpt"}, "there is no checkpoint /nowhere.ckpt"),
        ({"model__competitors": "null", "model__kl_weight": 0.1}, "kl_weight .* need competing units"),
        ({"trainer__max_epochs": -1}, "needs trainer.max_epochs"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tiny, capsys, option, sentence):
    message = refused(capsys, tiny.args(**option))
    assert re.search(sentence, message), message
    assert not list(tiny.folder.glob("checkpoints/*"))


def test_a_truncated_checkpoint_is_refused_before_anything_is_written(tiny, capsys, tmp_path):
    tiny.fit(trainer__max_epochs=1)
    whole = (tiny.folder / "checkpoints" / "last.ckpt").read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    message = refused(capsys, tiny.args(run=tmp_path / "other", ckpt_path=cut))
    assert "cut.ckpt is truncated or not a plain checkpoint" in message
    assert not (tmp_path / "other").exists()


class Boom:
    """Pickles into a call."""

    def __reduce__(self):
        return (Path("ran").touch, ())


def test_a_checkpoint_cannot_run_code(tiny, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": Boom()}, tmp_path / "evil.ckpt")
    message = refused(capsys, tiny.args(ckpt_path=tmp_path / "evil.ckpt"))
    assert "not a plain checkpoint" in message
    assert not (tmp_path / "ran").exists()


def test_a_run_is_not_overwritten(tiny, capsys):
    tiny.fit(trainer__max_epochs=1)
    before = (tiny.folder / "checkpoints" / "last.ckpt").read_bytes()
    message = refused(capsys, tiny.args())
    assert "already holds a run; resume it with --ckpt_path" in message
    assert (tiny.folder / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_nan_loss_stops_the_run_and_keeps_the_checkpoints_before_it(tiny, capsys):
    tiny.fit(trainer__max_epochs=1)
    last = tiny.folder / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    message = refused(capsys, tiny.args(ckpt_path=last, trainer__callbacks="tests.test_train.Poison"))
    assert "the loss is nan in epoch 1, batch 3; lower model.lr" in message
    assert last.read_bytes() == before


class Poison(Callback):
    """Makes the weights NaN in the middle of an epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            with torch.no_grad():
                pl_module.backbone.head.weight.fill_(torch.nan)


def test_testing_a_folder_without_a_run_is_refused(tiny, capsys):
    args = ["test", *tiny.args()[1:]]
    assert "holds no checkpoint" in refused(capsys, args)
