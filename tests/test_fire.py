"""fire: the units that fired on each image, against plain loops over images, positions and pairs."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

import dissect
from commands.fire import overlap
from tests.conftest import refused
from tests.toy import (
    COUNT,
    WORDS,
    label_args,
    labelled,
    network,
    network_args,
    outputs,
    passes,
    pixels,
    probe,
    toys,
)

__all__ = ["passes", "toys"]  # fixtures

LAYERS = ("blocks.0.mlp.act", "blocks.1.mlp.act")
DATA = f"--data=shapes:validation[:{COUNT}]"


def fired(*args):
    """The table that fire writes."""
    dissect.main(["fire", "--out=out", *map(str, args)])
    return pd.read_parquet("out/fired.parquet")


def winners(net, layer):
    """For each image, position and block the unit of the largest input: (N, T, B); and the inputs."""
    inputs = outputs(net.model, layer.replace("act", "fc1"), pixels(net))
    blocks = inputs.unflatten(2, (-1, 24))
    return blocks.argmax(3) + 24 * torch.arange(blocks.shape[2]), inputs


def test_at_the_class_token_the_winner_of_each_block_fired(toys):
    table, net = fired(*network_args("vit"), DATA), network("vit")
    classes = [target for _, target in probe()]
    rows = set()
    for layer in LAYERS:
        won, inputs = winners(net, layer)
        for image in range(COUNT):
            for unit in won[image, 0].tolist():
                rows.add((image, classes[image], layer, unit))
                found = table.query("image == @image and layer == @layer and unit == @unit")["value"]
                if image % 40 == 0:
                    assert found.tolist() == pytest.approx([inputs[image, 0, unit].item()], abs=1e-5)
    found = list(table[["image", "class", "layer", "unit"]].itertuples(index=False, name=None))
    assert len(found) == len(set(found)) == 2 * COUNT * 4
    assert set(found) == rows
    blocks = table["unit"] // 24
    assert (table.groupby(["image", "layer", blocks]).size() == 1).all()


def test_where_positions_are_pooled_every_winner_anywhere_fired(toys, capsys):
    table, net = (
        fired(*network_args("vit"), DATA, "--readout=mean", "--layers=blocks.1.mlp.act"),
        network("vit"),
    )
    won, inputs = winners(net, LAYERS[1])
    for image in range(0, COUNT, 17):
        own = table[table["image"] == image].set_index("unit")["value"]
        units = sorted({unit for position in won[image, 1:].tolist() for unit in position})
        assert own.index.tolist() == units
        for unit in units:
            passed = [inputs[image, t, unit].item() * (unit in won[image, t]) for t in range(1, 17)]
            assert own[unit] == pytest.approx(sum(passed) / 16, abs=1e-5)
    rate = len(table) / COUNT / 96
    assert f"{100 * rate:.2f} % of 96 units fire on an image" in capsys.readouterr().out


def test_the_overlap_of_fired_sets_is_that_of_a_loop_over_pairs(toys, capsys):
    table = fired(*network_args("vit"), DATA, "--layers=blocks.1.mlp.act")
    sets = [set(table.loc[table["image"] == i, "unit"]) for i in range(COUNT)]
    classes, shares = [target for _, target in probe()], {True: [], False: []}
    for i in range(COUNT):
        for j in range(i):
            shares[classes[i] == classes[j]].append(len(sets[i] & sets[j]) / len(sets[i] | sets[j]))
    within, between = np.mean(shares[True]), np.mean(shares[False])
    told = capsys.readouterr().out
    assert f"fired sets overlap {within:.3f} within a class, {between:.3f} between classes" in told
    assert f"{table['unit'].nunique()} on any" in told
    assert "distinct labels" not in told


def test_images_without_class_or_without_fired_units_make_no_overlap():
    won = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]).bool()
    assert overlap(won, torch.tensor([0, 0, 1, -1, 1])) == pytest.approx(((1 / 2 + 0) / 2, 0))
    within, between = overlap(won, torch.tensor([0, 0, 0, -1, -1]))
    assert within == pytest.approx(1 / 6)
    assert np.isnan(between)


def test_labels_of_fired_units_are_counted(toys, capsys):
    table = labelled(*label_args("vit"), "--layers=blocks.1.mlp.act")
    capsys.readouterr()
    units = fired(*network_args("vit"), DATA, "--layers=blocks.1.mlp.act")["unit"].unique()
    labels = table.loc[table["unit"].isin(units), "label"].dropna()
    assert 1 < labels.nunique() <= len(WORDS)
    told = f"; {labels.nunique()} distinct labels of {len(labels)} that fired"
    assert told in capsys.readouterr().out


def test_broken_images_are_named_and_left_out(toys, capsys):
    (toys / "images").mkdir()
    for i, (image, _) in zip(range(21), probe(), strict=False):
        image.save(toys / "images" / f"{i}.png")
    (toys / "images" / "3.png").write_bytes(b"nothing")
    table = fired(*network_args("vit"), "--data=images", "--batch_size=2", "--layers=blocks.1.mlp.act")
    assert table["image"].unique().tolist() == [i for i in range(21) if i != 3]
    captured = capsys.readouterr()
    assert "left out 1 images that do not decode: 3.png" in captured.err
    assert re.search(r"fired sets overlap 0\.\d{3} within a class\n", captured.out)  # and nothing of others
    for path in (toys / "images").iterdir():
        path.write_bytes(b"nothing")
    message = refused(dissect.main, ["fire", "--out=none", *network_args("vit"), "--data=images"])
    assert "more than 5 % of the 21 images do not decode, such as 0.png" in message
    assert list((toys / "none").iterdir()) == []


def test_what_cannot_be_told_is_refused_before_the_images_are_read(toys):
    assert "name the images with --data" in refused(dissect.main, ["fire", *network_args("vit")])
    labelled(*label_args("vit"), "--layers=blocks.1.mlp.act")
    torch.save({k: v + 1 for k, v in network("vit").model.state_dict().items()}, "other.pt")
    args = ["fire", "--out=out", *network_args("vit"), "--weights=other.pt", DATA]
    assert "made from other weights" in refused(dissect.main, args)
    assert not (toys / "out" / "fired.parquet").exists()


def test_a_run_tells_of_its_test_split(shapes_run, tmp_path, capsys):
    dissect.main(["fire", f"--run={shapes_run}", f"--out={tmp_path}"])
    table = pd.read_parquet(tmp_path / "fired.parquet")
    assert table["image"].nunique() == 24
    assert (table.groupby(["image", "layer"]).size() == 4).all()  # a winner in each block of 24
    assert "24 images; wrote" in capsys.readouterr().out
