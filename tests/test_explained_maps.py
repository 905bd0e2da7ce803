"""Where units fired: maps over the grid of patches or pixels, against loops."""

import numpy as np
import pytest
import torch

from lwta.dissect.activations import Readout
from lwta.dissect.maps import position_maps
from lwta.layers import watch
from tests.by_hand import (
    CLS,
    COLUMNS,
    FIRST,
    LAST,
    MEAN,
    ROWS,
    by_hand,
    image,
    map_explained,
    photo,
    randn,
    resnet,
    vit,
    vit_explained,
    vit_network,
    winners,
)

__all__ = ["image", "photo", "resnet", "vit"]  # fixtures


@pytest.mark.parametrize("readout", [CLS, MEAN], ids=lambda r: r.kind)
def test_a_map_holds_the_value_at_each_patch_and_zero_where_the_unit_did_not_fire(vit, image, readout):
    found = vit_explained(vit, image, [FIRST], readout, top=96).layers[0]
    h, out, *_ = by_hand(vit, FIRST, image)
    fired = winners(h, 24)
    for u in found.fired:
        assert u.map.shape == (ROWS, COLUMNS)
        for r in range(ROWS):
            for c in range(COLUMNS):
                t = 1 + r * COLUMNS + c
                assert (u.map[r, c] != 0) == fired[t, u.unit]
                assert u.map[r, c] == pytest.approx(out[t, u.unit].item(), rel=1e-5, abs=1e-6)


def test_a_map_lies_over_the_image_as_the_network_saw_it(image):
    model = vit_network(competitors=8)
    with torch.no_grad():  # no attention: each token of the first block sees its own patch
        model.blocks[0].attn.proj.weight.zero_()
        model.blocks[0].attn.proj.bias.zero_()
    other = image.clone()
    other[:, 8:12, 20:24] = randn(3, 4, 4, seed=5)  # patch in row 2, column 5
    grids = []
    for x in (image, other):
        fired = vit_explained(model, x, [FIRST], MEAN, top=96).layers[0].fired
        whole = np.zeros((96, ROWS, COLUMNS))
        for u in fired:
            whole[u.unit] = u.map
        grids.append(whole)
    differs = ~np.isclose(grids[0], grids[1], rtol=1e-4, atol=1e-5).all(0)
    assert np.argwhere(differs).tolist() == [[2, 5]]


def test_the_map_of_a_convolution_is_its_feature_map(resnet, photo):
    found = map_explained(resnet, photo, "layer2.0.act1", top=10).layers[0]
    _, out, *_ = by_hand(resnet, "layer2.0.act1", photo)
    assert out.shape[1:] == (4, 6)
    for u in found.measured:
        torch.testing.assert_close(torch.tensor(u.map, dtype=out.dtype), out[u.unit], rtol=1e-4, atol=1e-5)


def test_a_single_pixel_and_a_token_layer_without_a_grid_have_no_map(vit, resnet, image):
    found = vit_explained(vit, image, [LAST], grids=lambda n: None).layers[0]
    assert [u.map for u in found.fired] == [None] * 4
    small = map_explained(resnet, randn(3, 32, 32).double(), "layer4.0.act2", top=3).layers[0]
    assert [u.map for u in small.measured] == [None] * 3


def test_maps_of_many_images_are_those_of_each(vit):
    images = randn(3, 3, 16, 24).double()
    grids = {24: (ROWS, COLUMNS)}.get
    with torch.no_grad(), watch(vit, {LAST: -1}) as calls:
        vit(images)
        for i in range(3):
            vit(images[i : i + 1])
    whole, *single = (position_maps(firing, Readout("mean", 1), grids) for firing in calls[LAST])
    assert whole.shape == (3, ROWS, COLUMNS, 96)
    torch.testing.assert_close(whole, torch.cat(single))
