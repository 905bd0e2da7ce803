"""Training from the command line: what a run leaves behind, resuming it, and bad input."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

import train
from models.backbone import read_checkpoint


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
