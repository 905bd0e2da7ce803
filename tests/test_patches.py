"""Readout patches: exemplars are patches, labelled by what CLIP sees in them and around them."""

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

import dissect
from commands.patches import crop_box
from tests.conftest import refused
from tests.reference_similarity import less_prior, soft_wpmi_likelihood
from tests.toy import (
    WORDS,
    cosines,
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

LAYER = "blocks.1.mlp.act"
ASKED = [f"--layers={LAYER}", "--readout=patches"]


@pytest.mark.parametrize(
    ("position", "grid", "size", "box"),
    [
        (0, (4, 4), (32, 32), (0, 0, 16, 16)),
        (5, (4, 4), (32, 32), (0, 0, 24, 24)),
        (6, (4, 4), (32, 32), (8, 0, 32, 24)),
        (15, (4, 4), (32, 32), (16, 16, 32, 32)),
        (7, (2, 5), (20, 50), (10, 0, 40, 20)),  # row 1, column 2
        (4, (3, 3), (100, 100), (0, 0, 100, 100)),
        (0, (3, 3), (100, 100), (0, 0, 67, 67)),
    ],
)
def test_a_crop_is_the_patch_with_its_neighbours_as_far_as_there_are_any(position, grid, size, box):
    assert crop_box(position, grid, size) == box


def peaks():
    """Of every image and unit: the largest value at a patch, where it fired, and its position; by loops."""
    net = network("vit")
    inputs = outputs(net.model, "blocks.1.mlp.fc1", pixels(net))[:, 1:]
    winner = inputs.unflatten(2, (-1, 24)).argmax(3) + 24 * torch.arange(4)
    found = {}
    for image in range(len(inputs)):
        for position, units in enumerate(winner[image].tolist()):
            for unit in units:
                value = inputs[image, position, unit].item()
                if value > found.get((unit, image), (-np.inf, 0))[0]:
                    found[unit, image] = value, position
    return found


def test_exemplars_are_the_patches_where_a_unit_was_strongest(toys):
    table, found = labelled(*label_args("vit"), *ASKED), peaks()
    negative = table.loc[table["negative"], "unit"].tolist()
    exemplars = pd.read_parquet("out/exemplars.parquet")
    exemplars = exemplars[~exemplars["unit"].isin(negative)]
    assert exemplars["unit"].nunique() > 10
    for unit, rows in exemplars.groupby("unit"):
        own = {image: peak for (other, image), peak in found.items() if other == unit}
        expected = sorted(own, key=lambda image, own=own: -own[image][0])[:20]
        assert rows["image"].tolist() == expected
        assert rows["position"].tolist() == [own[image][1] for image in expected]
        assert rows["value"].tolist() == pytest.approx([own[image][0] for image in expected], abs=1e-5)


def test_labels_are_those_of_crops_made_by_hand(toys):
    table, found, net = labelled(*label_args("vit"), *ASKED), peaks(), network("vit")
    heard = table.loc[table["wins"] >= 10, "unit"].tolist()
    assert not table["negative"][heard].any()
    lists, numbers, crops = [], {}, []  # a patch that several units share is looked at once
    for unit in heard:
        own = {image: peak for (other, image), peak in found.items() if other == unit}
        strongest = sorted(own, key=lambda image, own=own: -own[image][0])[:100]
        patches = [(image, own[image][1]) for image in strongest]
        for image, position in patches:
            if (image, position) in numbers:
                continue
            numbers[image, position] = len(crops)
            row, column = divmod(position, 4)
            seen = net.transform(probe()[image][0])
            mean, std = (torch.tensor(values)[:, None, None] for values in (net.mean, net.std))
            part = (seen * std + mean).clamp(0, 1)
            part = part[:, max(0, row - 1) * 8 : (row + 2) * 8, max(0, column - 1) * 8 : (column + 2) * 8]
            crops.append(to_pil_image(part))
        lists.append([numbers[patch] for patch in patches])
    scores = less_prior(soft_wpmi_likelihood(lists, cosines(crops)), 1)
    np.testing.assert_allclose(table["score"][heard], scores.max(1), atol=3e-3)
    assert table["label"][heard].tolist() == [WORDS[k] for k in scores.argmax(1)]


def test_a_second_time_nothing_is_run(toys, passes):
    first = labelled(*label_args("vit"), *ASKED)
    assert passes == [["Activations"], ["Embeddings"]]
    pd.testing.assert_frame_equal(labelled(*label_args("vit"), *ASKED), first)
    other = labelled(*label_args("vit"), *ASKED, "--concepts=shapes")
    assert set(other["label"].dropna()) - set(WORDS)
    assert len(passes) == 2
    labelled(*label_args("vit"), *ASKED, "--force")
    assert passes[2:] == [["Activations"], ["Embeddings"]]


def test_without_patches_or_encoder_it_is_refused_before_the_pass(toys, passes):
    message = refused(
        dissect.main, ["label", *label_args("vit"), "--readout=patches", "--similarity=cos", ASKED[0]]
    )
    assert "readout patches looks at exemplars, and cos at every image" in message
    for args, told in (
        ([*label_args(), "--layers=act"], "the layer act has no grid of patches; use readout max"),
        ([*label_args("vit"), "--layers=head"], "the layer head has no grid of patches; use readout max"),
        (
            [*network_args("vit"), label_args()[4]],
            "readout patches needs an encoder that looks at the patches",
        ),
    ):
        assert told in refused(dissect.main, ["label", *args, "--readout=patches"])
    assert passes == []
