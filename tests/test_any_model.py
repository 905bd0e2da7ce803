"""label and explain for networks without a run: of libraries, of a function, at layers of any kind."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image

import dissect
from models.network import load_network
from tests.conftest import refused
from tests.reference_similarity import less_prior, soft_wpmi_likelihood
from tests.toy import (
    MODULE,
    SIZE,
    WORDS,
    cosines,
    label_args,
    labelled,
    network,
    network_args,
    of_folder,
    outputs,
    passes,
    pixels,
    probe,
    strongest,
    toys,
    write_module,
)

__all__ = ["passes", "toys"]  # fixtures


def same(found, expected):
    columns = [name for name in expected.columns if name != "fingerprint"]
    pd.testing.assert_frame_equal(
        found[columns].reset_index(drop=True), expected[columns].reset_index(drop=True)
    )


@pytest.fixture
def photo(toys):
    probe()[0][0].save(toys / "photo.png")
    return "photo.png"


def folder_of_images(folder, count, broken=()):
    """Images of two folders, some of them no images."""
    for i, (image, _) in zip(range(count), probe(), strict=False):
        path = folder / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i in broken:
            path.write_bytes(b"nothing")
        else:
            image.save(path)
    return folder


# --- layers --------------------------------------------------------------------------------------


def test_layers_of_any_kind_are_labelled_in_one_pass_and_each_as_alone(toys, passes):
    together = labelled(*label_args(), "--layers=[act, body*, conv]")
    assert passes == [["Embeddings", "Activations"]]
    units = {"conv": 16, "act": 16, "body": 10, "body.0": 24, "body.1": 24, "body.2": 10}
    assert together["layer"].value_counts(sort=False).to_dict() == units
    for layer in ("body.0", "act"):  # a Linear, a GELU
        dissect.main(["label", *label_args(), f"--layers={layer}", "--out=alone", "--cache=other"])
        same(
            of_folder("alone").table.query("layer == @layer"),
            together[together["layer"] == layer],
        )


@pytest.mark.parametrize("layer", ["act", "body.0"])
def test_labels_are_those_of_plain_loops(toys, layer):
    table, net = labelled(*label_args(), f"--layers={layer}"), network()
    maps = outputs(net.model, layer, pixels(net))
    values = maps.flatten(2).mean(2) if maps.ndim == 4 else maps
    lists = strongest(values, (maps.flatten(2) != 0).any(2) if maps.ndim == 4 else maps != 0)
    presence = cosines([image for image, _ in probe()])
    scores = less_prior(soft_wpmi_likelihood(lists, presence), 1)
    assert table["label"].tolist() == [WORDS[k] for k in scores.argmax(1)]
    np.testing.assert_allclose(table["score"], scores.max(1), atol=2e-3)
    exemplars = pd.read_parquet("out/exemplars.parquet").groupby("unit")["image"].apply(list)
    assert exemplars.tolist() == [listed[:20] for listed in lists]


def test_layers_that_cannot_be_dissected_are_refused_or_named(toys, capsys):
    assert "pair returns a tuple, not one tensor; name a module inside" in refused(
        dissect.main, ["label", *label_args(), "--layers=pair"]
    )
    message = refused(dissect.main, ["label", *label_args(), "--layers=blocks.*"])
    assert "no layer matches 'blocks.*'; the nearest are conv, act" in message
    labelled(*label_args(), "--layers=*a*")  # act and pair
    assert "left out 1 layers: pair returns a tuple" in capsys.readouterr().err


def test_a_readout_that_a_layer_cannot_give_is_refused_before_the_pass(toys, passes):
    vit = ["label", *label_args("vit")]
    for asked, told in (
        ("--layers=patch_embed", "the layer patch_embed comes before the class token joins the patches"),
        ("--layers=head", "needs a class token, and the layer head has none; use mean or max"),
        ("--layers=[blocks.0, patch_embed]", "patch_embed comes before the class token"),
    ):
        assert told in refused(dissect.main, [*vit, asked])
    assert "this network's head pools, use mean" in refused(
        dissect.main, ["label", *label_args(), "--readout=cls"]
    )
    assert passes == []
    assert len(labelled(*label_args("vit"), "--layers=head", "--readout=mean")) == 5


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "layer"), [("timm:resnet10t", "layer1.0.act2"), ("torchvision:resnet18", "layer1")]
)
def test_networks_of_libraries_by_name_and_with_weights_of_a_file(toys, model, layer):
    options = [f"--model={model}", f"--image_size={SIZE}", f"--layers={layer}", *label_args()[4:]]
    dissect.main(["label", *options, "--weights=random"])
    folder = toys / "dissections" / model.replace(":", "-")
    assert sorted(path.name for path in folder.iterdir()) == [
        "exemplars.parquet",
        "labels.csv",
        "labels.parquet",
    ]
    table = of_folder(str(folder)).table
    assert len(table) == 64
    assert table["label"].notna().any()
    torch.save(load_network(model, "random").model.state_dict(), "weights.pt")
    same(labelled(*options, "--weights=weights.pt"), table)


def test_a_network_is_named_once(toys):
    for args in ([], ["--run=somewhere", *network_args()]):
        message = refused(dissect.main, ["label", *args, "--probe=shapes"])
        assert "name the network: --run FOLDER of a trained run, or --model timm:NAME" in message


def test_an_edited_forward_is_another_network(toys, passes):
    before = labelled(*label_args(), "--layers=body.1")
    labelled(*label_args(), "--layers=body.1")
    assert len(passes) == 1
    write_module(toys, "toys", MODULE.replace("x.mean((2, 3))", "x.amax((2, 3))"))
    after = labelled(*label_args(), "--layers=body.1")
    assert passes[1:] == [["Activations"]]
    assert after["score"].tolist() != before["score"].tolist()


# --- probe sets ----------------------------------------------------------------------------------


def test_images_have_to_be_named_and_there(toys):
    message = refused(dissect.main, ["label", *network_args()])
    assert "name the images to label on with --probe, such as a folder" in message
    (toys / "empty").mkdir()
    for probed in ("empty", "nowhere"):
        assert probed in refused(
            dissect.main, ["label", *network_args(), f"--probe={probed}", "--clip=shapes"]
        )


def test_few_broken_images_are_left_out_and_named(toys, capsys):
    folder = folder_of_images(toys / "images", 60, broken={7, 30})
    table = labelled(*label_args(), f"--probe={folder}", "--layers=act")
    captured = capsys.readouterr()
    assert "left out 2 images that do not decode: a/030.png, b/007.png" in captured.err
    assert "of 58 images of" in captured.out
    assert (table["wins"] == 58).all()


def test_many_broken_images_are_refused_every_time(toys):
    folder = folder_of_images(toys / "images", 60, broken={7, 30, 31, 32})
    for _ in range(2):
        message = refused(dissect.main, ["label", *label_args(), f"--probe={folder}", "--batch_size=16"])
        assert "more than 5 % of the 60 images do not decode, such as a/030.png" in message


def test_classes_of_folders_are_concepts_where_there_are_some(toys):
    folder = folder_of_images(toys / "images", 40)
    table = labelled(*network_args(), f"--probe={folder}", "--layers=act")
    assert set(table["label"]) <= {"a", "b"}
    message = refused(dissect.main, ["label", *network_args(), f"--probe={folder / 'a'}"])
    assert "these images are of 0 classes" in message
    assert "give a list with --concepts" in message


# --- explain -------------------------------------------------------------------------------------


def explained(capsys, *args):
    capsys.readouterr()
    dissect.main(["explain", "--out=out", "--json", *map(str, args)])
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_explain_labels_the_units_that_fired_and_remembers_them(toys, photo, passes, capsys):
    (first,), told = explained(capsys, photo, *label_args("vit"))
    assert "page: out/explanations/photo.html" in told
    assert os.path.isfile("out/explanations/photo.html")
    layers = ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    assert [layer["layer"] for layer in first["layers"]] == layers
    words = {}
    for layer in first["layers"]:
        assert len(layer["fired"]) == 4
        for row in layer["fired"]:
            assert len(row["rivals"]) == 2
            words |= {(layer["layer"], word["unit"]): word for word in [row, *row["rivals"]]}
    known = of_folder("out")
    assert set(zip(known.table["layer"], known.table["unit"], strict=True)) == set(words)
    assert known.partial == layers
    (again,), _ = explained(capsys, photo, *network_args("vit"))
    assert again == first
    assert len(passes) == 1
    whole = labelled(*label_args("vit"), "--layers=[blocks.0.mlp.act, blocks.1.mlp.act]")
    assert len(passes) == 1
    found = whole[[pair in words for pair in zip(whole["layer"], whole["unit"], strict=True)]]
    same(found, known.table)
    for row in found.itertuples():
        word = words[row.layer, row.unit]
        assert word["label"] == (None if pd.isna(row.label) else row.label)
        assert word["reason"] == (None if pd.isna(row.reason) else row.reason)


def test_explain_without_labels_or_images_to_make_them_says_so(toys, photo, capsys):
    (found,), told = explained(capsys, photo, *network_args(), "--layers=act", "--top=3")
    assert "no labels: name images to label on with --probe" in told
    assert [row["label"] for row in found["layers"][0]["fired"]] == [None] * 16
    assert [row["silenced"] is not None for row in found["layers"][0]["fired"]] == [True] * 3 + [False] * 13
    assert not os.path.exists("out/labels.parquet")
    message = refused(dissect.main, ["explain", "--out=out", "none.png", *network_args()])
    assert "there is no image none.png" in message


def test_values_before_an_activation_in_place_are_those_before_it(toys, photo, capsys):
    resnet = ["--model=torchvision:resnet18", "--weights=random", f"--image_size={SIZE}"]
    (found,), _ = explained(capsys, photo, *resnet, "--layers=layer1.0.bn1", "--top=64")
    model = torchvision.models.resnet18()
    net = load_network("torchvision:resnet18", "random", "cpu", SIZE)
    assert any(isinstance(m, torch.nn.ReLU) and m.inplace for m in model.modules())
    values = outputs(net.model, "layer1.0.bn1", net.transform(Image.open(photo))[None]).mean((2, 3))[0]
    rows = found["layers"][0]["fired"]
    assert len(rows) == 64
    assert (values < 0).any()
    for row in rows:
        assert row["value"] == pytest.approx(values[row["unit"]].item(), abs=1e-4)


def test_labels_of_other_weights_are_not_shown(toys, photo):
    labelled(*label_args(), "--layers=act")
    torch.save({k: v + 1 for k, v in network().model.state_dict().items()}, "other.pt")
    message = refused(
        dissect.main, ["explain", "--out=out", photo, *network_args(), "--weights=other.pt", "--layers=act"]
    )
    assert "out/labels.parquet was made from other weights than the network's" in message
