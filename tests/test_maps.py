"""Maps of where units fired, against the layer's output image by image."""

import numpy as np
import pytest
import torch

from lwta.dissect.activations import Readout
from lwta.dissect.maps import exemplar_maps, position_maps
from lwta.layers import Firing
from models.backbone import create_backbone
from tests.by_hand import FIRST, LAST, VIT, captured, fill, hooks, randn, scale_up, winners

ROWS, COLUMNS = 4, 6


def grids(patches):
    return (ROWS, COLUMNS) if patches == ROWS * COLUMNS else None


@pytest.fixture(scope="module")
def vit():
    """24 competitors in 4 blocks of each layer; the second block wins with negative values only."""
    model, _ = create_backbone("vit_tiny_patch16_224", 4, backbone_args=VIT, competitors=24)
    fill(model, 0.3)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc1.bias[24:48] -= 12
    return model


@pytest.fixture(scope="module")
def images():
    return randn(6, 3, 16, 24).double()


def in_batches(images, size=4):
    """Batches numbered from 20, with something more in each and an empty one among them."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield 20 + start + torch.arange(len(part)), part, "more"
        yield torch.empty(0, dtype=torch.long), torch.empty(0), "more"


@torch.no_grad()
def outputs(model, layer, image):
    """Input and output of a layer for one image."""
    with captured(model.get_submodule(layer)) as seen:
        model(image[None])
    return seen["input"][0], seen["output"][0]


# --- the maps of a call --------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 3])
def test_a_map_has_the_layers_own_grid_wherever_its_units_lie(dim):
    shape = (2, 5, 3, 4) if dim == 1 else (2, 3, 4, 5)
    values, fired = randn(*shape), randn(*shape, seed=1) > 0
    found = position_maps(Firing(values, fired, dim), Readout("mean"), grids)
    assert found.shape == (2, 3, 4, 5)
    for i, r, c, d in np.ndindex(2, 3, 4, 5):
        where = (i, d, r, c) if dim == 1 else (i, r, c, d)
        assert found[i, r, c, d] == (values[where] if fired[where] else 0)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_tokens_are_laid_out_row_by_row_without_the_prefix(prefix):
    values = randn(2, prefix + 24, 5)
    found = position_maps(Firing(values, values > 0, 2), Readout("mean", prefix), grids)
    for i, r, c, d in np.ndindex(2, ROWS, COLUMNS, 5):
        assert found[i, r, c, d] == values[i, prefix + r * COLUMNS + c, d].clamp_min(0)


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1, 1), (2, 23, 5)], ids=["ND", "one pixel", "no grid"])
def test_without_a_grid_there_is_no_map(shape):
    values = randn(*shape)
    dim = 2 if len(shape) == 3 else 1
    assert position_maps(Firing(values, values > 0, dim), Readout("mean"), grids) is None


# --- the maps of exemplars -----------------------------------------------------------------------


@pytest.mark.parametrize("readout", [Readout("cls", 1), Readout("mean", 1)], ids=["cls", "mean"])
@pytest.mark.parametrize("size", [1, 4, 6])
def test_maps_hold_the_value_at_each_patch_where_the_unit_won(vit, images, readout, size):
    asked = {FIRST: {20: [3, 30], 25: [95]}, LAST: {23: range(96)}}
    found = exemplar_maps(vit, in_batches(images, size), {FIRST: -1, LAST: -1}, readout, grids, asked)
    pairs = {(layer, unit, image) for layer, some in asked.items() for image in some for unit in some[image]}
    assert set(found) == pairs
    negative = 0
    for (layer, unit, image), values in found.items():
        h, out = outputs(vit, layer, images[image - 20])
        fired = winners(h, 24)[:, unit]
        assert (values.dtype, values.shape) == (np.float32, (ROWS, COLUMNS))
        for r, c in np.ndindex(ROWS, COLUMNS):
            t = 1 + r * COLUMNS + c
            assert values[r, c] == pytest.approx(out[t, unit].item() if fired[t] else 0, rel=1e-5)
            assert (values[r, c] != 0) == fired[t]
        negative += int((values < 0).any() and 24 <= unit < 48)
    assert negative


def test_maps_of_a_convolution_are_its_feature_maps():
    model, _ = create_backbone("resnet10t", 4, competitors=8, backbone_args={"zero_init_last": False})
    scale_up(model)
    photos, sites = randn(3, 3, 32, 48).double(), {"layer2.0.act1": 1, "layer4.0.act2": 1}
    asked = {name: {21: [0, 5, 63], 22: [5]} for name in sites}
    found = exemplar_maps(model, in_batches(photos, 2), sites, Readout("mean"), grids, asked)
    assert {key[0] for key in found} == {"layer2.0.act1", "layer4.0.act2"}
    assert len(found) == 8
    for (layer, unit, image), values in found.items():
        _, out = outputs(model, layer, photos[image - 20])
        np.testing.assert_allclose(values, out[unit].numpy(), rtol=1e-5, atol=1e-7)


def test_a_layer_without_a_grid_has_no_maps_and_the_others_keep_theirs(vit, images):
    asked = {FIRST: {20: [1]}, "head": {20: [1]}}
    sites = {FIRST: -1, "head": 1}
    assert set(exemplar_maps(vit, in_batches(images), sites, Readout("mean", 1), grids, asked)) == {
        (FIRST, 1, 20)
    }
    none = exemplar_maps(vit, in_batches(images), sites, Readout("mean", 1), lambda n: None, asked)
    assert none == {}


def test_a_map_keeps_nothing_of_the_images_beside_it(vit, images):
    found = exemplar_maps(vit, in_batches(images), {FIRST: -1}, Readout("mean", 1), grids, {FIRST: {20: [1]}})
    values = found[FIRST, 1, 20]
    whole = values if values.base is None else values.base
    assert whole.nbytes == values.nbytes


def test_the_pass_leaves_the_network_in_evaluation_mode_and_without_hooks(vit, images):
    before = hooks(vit)
    vit.train()
    exemplar_maps(vit, in_batches(images), {FIRST: -1}, Readout("mean", 1), grids, {FIRST: {20: [1]}})
    assert not any(module.training for module in vit.modules())
    assert hooks(vit) == before
