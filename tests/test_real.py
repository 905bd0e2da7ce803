"""The narrow road on real photographs: train a little, label, explain."""

import json
from pathlib import Path

import pandas as pd
import pytest

import dissect
import train
from models.data import ImageData
from models.run import load_run

pytestmark = pytest.mark.real
CONFIG = Path(__file__).parents[1] / "configs" / "train" / "cifar10_vit_lwta24.yaml"


def test_the_photographs_are_all_there(cifar10):
    data = ImageData(str(cifar10), "hfds", dataset_args={"input_key": "img", "target_key": "label"})
    assert len(data.dataset("train")) == 50_000
    assert len(data.dataset("test")) == 10_000
    assert data.class_names[3:6] == ["cat", "deer", "dog"]


def test_a_sparse_network_learns_and_explains_a_photograph(cifar10, tmp_path, capsys):
    run = tmp_path / "run"
    train.main(
        [
            "fit", f"--config={CONFIG}", f"--data.root={cifar10}", f"--run={run}",
            "--data.train_split=train[:6400]", "--data.val_split=train[49000:]",
            "--model.warmup_epochs=0.2", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
        ]
    )  # fmt: skip
    log = pd.read_csv(run / "metrics" / "version_0" / "metrics.csv")
    assert log["val/top1"].max() > 0.2  # twice chance
    assert log["val/active_fraction"].dropna().item() == pytest.approx(1 / 24)
    dissect.main(["label", f"--run={run}"])
    labels = pd.read_parquet(run / "labels.parquet")
    assert len(labels) == 4 * 384
    assert set(labels["label"].dropna()) <= set(load_run(run).data.class_names)
    capsys.readouterr()
    dissect.main(["explain", f"--run={run}", "test:0", "--json"])
    (explanation,) = json.loads(capsys.readouterr().out)
    assert len(explanation["layers"][0]["fired"]) == 16
    assert (run / "explanations" / "test-0.html").stat().st_size > 10_000
