"""Every shipped config loads, builds its model and takes one step, on stand-in data."""

from pathlib import Path

import pytest
import yaml

import train

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "train").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_one_step(path, parquet_folder, tmp_path, capsys):
    train.main(
        [
            "fit",
            f"--config={path}",
            f"--data.root={parquet_folder}",
            f"--run={tmp_path / 'run'}",
            "--data.train_split=train",
            "--data.val_split=test",
            "--data.batch_size=8",
            "--trainer.fast_dev_run=1",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
        ]
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_has_a_header_and_names_its_own_run(path):
    text = path.read_text()
    for part in ("# Command:", f"configs/train/{path.name}", "# Data:", "# Result:"):
        assert part in text
    assert yaml.safe_load(text)["run"] == f"runs/{path.stem}"


def test_there_are_configs():
    assert len(CONFIGS) >= 6
