"""What compare refuses, in one sentence each, before anything is written."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import commands.compare
import dissect
from lwta.errors import InputError
from models.compare import run_names
from models.judge import judge_all, split_images
from models.run import load_run
from tests.comparing import compare_args, numbers, set_data
from tests.conftest import refused


def other_pixels(test: Path) -> None:
    with Image.open(test / "green" / "003.png") as image:
        pixels = np.asarray(image).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(test / "green" / "003.png")


def other_class(test: Path) -> None:
    """The same images in the same order, the last blue one now called green."""
    for path in sorted((test / "green").iterdir(), reverse=True):
        path.rename(path.with_name(f"{int(path.stem) + 1:03}.png"))
    last = sorted((test / "blue").iterdir())[-1]
    last.rename(test / "green" / "000.png")


def broken_image(test: Path) -> None:
    (test / "red" / "007.png").write_bytes(b"no image")


def fewer_images(test: Path) -> None:
    (test / "red" / "007.png").unlink()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (other_pixels, "sparse and .*dense are judged on different data: image 11 or its class"),
        (other_class, "sparse and .*dense are judged on different data: image 7 or its class"),
        (broken_image, "sparse and .*dense are judged on different data: image 23 or its class"),
        (fewer_images, "sparse has 24 images to be judged on and .*dense has 23"),
    ],
)
def test_runs_on_other_data_are_refused_and_nothing_is_written(
    runs, image_folder, tmp_path, change, sentence
):
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    change(data / "test")
    set_data(runs[1], root=str(data))
    message = refused(dissect.main, compare_args(runs, "--batch_size=24"))
    assert re.search(sentence, message), message
    assert not (runs[0].parent / "comparison").exists()


def test_runs_of_other_classes_are_refused(compared):
    opened = [load_run(compared.sparse), load_run(compared.dense)]
    opened[1].model.hparams["class_names"] = ["sea", "leaf", "fire"]
    images = [split_images(run, "test") for run in opened]
    with pytest.raises(InputError, match="tell different classes apart .blue, green, red .* sea, leaf, fire"):
        judge_all(opened, images, 24)


def test_a_split_without_an_image_is_refused(runs, image_folder, tmp_path):
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    for path in (data / "test").glob("*/*.png"):
        path.write_bytes(b"no image")
    message = refused(dissect.main, compare_args(runs, f"--root={data}"))
    assert "no image of the split decodes" in message


def test_a_run_without_labels_is_refused_before_any_work(runs, monkeypatch):
    (runs[1] / "labels.parquet").unlink()
    monkeypatch.setattr(commands.compare, "judge_all", lambda *_: pytest.fail("judged"))
    message = refused(dissect.main, compare_args(runs))
    assert f"{runs[1]} has no labels" in message
    assert f"dissect.py label --run {runs[1]}" in message


def test_labels_of_other_weights_are_refused(runs):
    for name in ("labels.parquet", "exemplars.parquet"):
        shutil.copy(runs[0] / name, runs[1] / name)
    assert "was made from other weights" in refused(dissect.main, compare_args(runs))


def test_labels_of_some_units_do_not_compare(runs):
    (runs[0] / "labels.parquet").unlink()
    dissect.main(["explain", f"--run={runs[0]}", "test:0"])
    message = refused(dissect.main, compare_args(runs))
    assert "only some units of blocks.0.mlp.act are labelled, those that explain came upon" in message
    assert f"label all with dissect.py label --run {runs[0]}" in message
    dissect.main(["label", f"--run={runs[0]}"])
    dissect.main(compare_args(runs))
    assert numbers(runs[0].parent)["label_units"].tolist() == [192, 192]


def test_the_same_run_twice_is_refused(runs):
    again = runs[0].parent / "dense" / ".." / "sparse"
    assert "is given twice" in refused(dissect.main, compare_args([*runs, again]))


def test_runs_of_one_name_are_told_apart_by_their_folders():
    assert run_names(["runs/a", "old/b"]) == ["a", "b"]
    assert run_names(["runs/a", "old/a"]) == ["runs/a", "old/a"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nowhere"], "nowhere is no run: it has no config.yaml"),
        (["--split=holdout"], "there is no split 'holdout'"),
        (["--batch_size=0"], "batch_size is at least 1"),
        (["--out={run}/config.yaml"], "config.yaml is a file; name a folder with --out"),
    ],
)
def test_bad_input_is_one_sentence(compared, options, sentence):
    options = [option.format(run=compared.sparse) for option in options]
    assert sentence in refused(dissect.main, ["compare", str(compared.sparse), *options])
