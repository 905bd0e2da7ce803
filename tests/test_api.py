"""dissect() in Python: the table and exemplars of the command, of a module, a name or a run."""

import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset

import dissect as command
from dissect import dissect
from lwta.errors import InputError
from tests.toy import COUNT, label_args, labelled, network, of_folder, passes, probe, toys

__all__ = ["passes", "toys"]  # fixtures

OPTIONS = {"layers": ["act", "body.0"], "concepts": "words.txt", "clip": "shapes"}


class Images(Dataset):
    """Images of somebody's own."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def same(found, expected):
    pd.testing.assert_frame_equal(
        found.table.drop(columns="fingerprint").reset_index(drop=True),
        expected.table.drop(columns="fingerprint").reset_index(drop=True),
    )
    columns = ["layer", "unit", "rank", "image", "value", "position"]
    pd.testing.assert_frame_equal(
        found.exemplars[columns].reset_index(drop=True), expected.exemplars[columns].reset_index(drop=True)
    )
    assert found.units == expected.units


@pytest.fixture
def expected(toys):
    """What the command makes."""
    labelled(*label_args(), "--layers=[act, body.0]")
    return of_folder("out")


def test_a_module_gets_the_labels_of_the_command(expected):
    net = network()
    net.model.train()
    net.model.conv.eval()
    given = probe()
    for data in (given, Images([given[i] for i in range(COUNT)]), [given[i] for i in range(COUNT)]):
        same(dissect(net.model, probe=data, transform=net.transform, **OPTIONS), expected)
    assert net.model.training
    assert not net.model.conv.training
    images = f"shapes:validation[:{COUNT}]"
    same(dissect(net.model, probe=images, image_size=32, **OPTIONS), expected)


def test_a_name_and_a_folder_of_images(expected, toys):
    found = dissect(
        "toys:net", weights="random", image_size=32, probe=f"shapes:validation[:{COUNT}]", **OPTIONS
    )
    same(found, expected)
    for i, (image, _) in zip(range(COUNT), probe(), strict=False):
        image.save(toys / f"{i:03}.png")
    found = dissect("toys:net", weights="random", image_size=32, probe=toys, **OPTIONS)
    same(found, expected)
    assert found.exemplars["name"].tolist() == [f"{i:03}.png" for i in found.exemplars["image"]]


def test_a_run_by_its_folder(shapes_run, tmp_path):
    args = ["--probe=train[:200]", "--readout=mean", "--prior=0.75"]
    command.main(["label", f"--run={shapes_run}", f"--out={tmp_path}", *args])
    same(dissect(shapes_run, probe="train[:200]", readout="mean", prior=0.75), of_folder(str(tmp_path)))
    assert not (shapes_run / "labels.parquet").exists()


def test_transforms_are_told_apart_by_what_they_do(toys, passes):
    net, given = network(), probe()

    def times(factor):
        return lambda image: factor * net.transform(image)

    found = [
        dissect(net.model, probe=given, transform=times(factor), **OPTIONS).exemplars["value"].tolist()
        for factor in (1.0, 2.0, 1.0)
    ]
    assert found[0] == found[2] != found[1]
    assert [sorted(made) for made in passes] == [["Activations", "Embeddings"], ["Activations"]]


def test_a_frozen_module_needs_no_gradient(toys):
    net = network()
    net.model.requires_grad_(False)
    assert len(dissect(net.model, probe=probe(), transform=net.transform, **OPTIONS).table) == 40


def test_what_would_be_ignored_is_refused(toys):
    with pytest.raises(InputError, match="weights are of a model named by text"):
        dissect(torch.nn.ReLU(), weights="w.pt")
    with pytest.raises(InputError, match="toys:vit has a transform of its own"):
        dissect("toys:vit", transform=lambda image: image)


def test_what_is_no_probe_set_is_refused(toys):
    net = network()
    for data, told in (
        (
            Images([(torch.zeros(3, 32, 32), 0)] * 20),
            "a dataset with len.. and .i. that gives .PIL image, class.",
        ),
        (Images([{"image": 1}] * 20), "a dataset with len"),
        (iter([]), "a dataset with len"),
        (Images([]), "holds no image; name another with --probe"),
        (None, "name the images to label on with --probe"),
    ):
        with pytest.raises(InputError, match=told):
            dissect(net.model, probe=data, transform=net.transform, **OPTIONS)
    with pytest.raises(InputError, match="names no network"):
        dissect("runs/nowhere", probe=probe(), **OPTIONS)
    with pytest.raises(TypeError, match="unexpected keyword argument 'priors'"):
        dissect(net.model, probe=probe(), priors=1, **OPTIONS)
