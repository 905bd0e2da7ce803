"""Explanations against passes, gradients and loops done by hand, on small networks of random weights."""

import json
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import LayerFeatureAblation
from torch import nn

from lwta.dissect.activations import Readout
from lwta.dissect.explain import explain, silenced
from lwta.dissect.labels import COLUMNS
from lwta.errors import InputError
from lwta.layers import watch
from models.backbone import create_backbone

CLASSES = ["ant", "bee", "cat", "dog"]
FIRST, LAST = "blocks.0.mlp.act", "blocks.1.mlp.act"
ROWS, COLUMNS_OF_GRID = 4, 6
VIT = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
MAPS = {"grids": lambda n: (ROWS, COLUMNS_OF_GRID) if n == 24 else None}
CLS = Readout("cls", 1)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(model, std):
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "bn" not in name:
            nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval().double()  # so that 1e-5 holds on any machine


def scale_up(model):
    """Weights that let one unit of a wide layer move the logits."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=2 / fan_in**0.5, generator=generator)
    return model.eval().double()  # so that 1e-5 holds on any machine


@pytest.fixture(scope="module")
def vit():
    """24 competitors in 4 blocks of each layer; beta 2; the second block wins with negative values only."""
    model, _ = create_backbone("vit_tiny_patch16_224", 4, backbone_args=VIT, competitors=24, beta=2.0)
    fill(model, 0.3)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc1.bias[24:48] -= 12
    return model


@pytest.fixture(scope="module")
def resnet():
    """ResNet-10, 8 competitors, sites of NCHW; no branch starts at zero."""
    model, _ = create_backbone("resnet10t", 4, competitors=8, backbone_args={"zero_init_last": False})
    return scale_up(model)


@pytest.fixture
def image():
    return randn(3, 16, 24).double()


@pytest.fixture
def photo():
    return randn(3, 32, 48).double()


def vit_explained(vit, image, sites=(FIRST, LAST), readout=CLS, **options):
    return explain(vit, image, dict.fromkeys(sites, -1), readout, class_names=CLASSES, **(MAPS | options))


def score(model, target):
    def function(x):
        logits = model(x)
        return logits[:, target] - logits.mean(1)

    return function


@contextmanager
def captured(module):
    """Input and output of a module, by a hook of our own."""
    seen = {}

    def hook(module, inputs, out):
        seen["input"], seen["output"] = inputs[0], out

    handle = module.register_forward_hook(hook)
    yield seen
    handle.remove()


def by_hand(model, layer, image, target=None):
    """What goes into and out of a layer, the gradient of the score there, score and target."""
    with captured(model.get_submodule(layer)) as seen:
        logits = model(image[None])
    target = int(logits[0].argmax()) if target is None else target
    value = logits[0, target] - logits[0].mean()
    gradient = torch.autograd.grad(value, seen["output"])[0]
    return seen["input"].detach()[0], seen["output"].detach()[0], gradient[0], value.item(), target


def winners(h, competitors):
    """Unit -> position -> bool by loops: h is (T, D)."""
    fired = np.zeros(h.shape, dtype=bool)
    for t in range(h.shape[0]):
        for start in range(0, h.shape[1], competitors):
            block = h[t, start : start + competitors].tolist()
            fired[t, start + block.index(max(block))] = True
    return fired


def table_of(*rows, layer=LAST):
    """Labels of some units, by the columns given."""
    blank = {"layer": layer, "alive": True, "wins": 20, "win_rate": 0.1, "negative": False}
    return pd.DataFrame([blank | row for row in rows], columns=list(COLUMNS))


# --- who fired -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [FIRST, LAST])
def test_the_fired_units_at_the_class_token_are_the_winners_of_the_competition(vit, image, layer):
    found = vit_explained(vit, image, [layer]).layers[0]
    h, out, *_ = by_hand(vit, layer, image)
    expected = set(np.flatnonzero(winners(h[:1], 24)[0]))
    assert {u.unit for u in found.fired} == expected
    assert len(found.fired) == 4
    for u in found.fired:
        assert u.value == pytest.approx(h[0, u.unit].item(), rel=1e-6)
        assert u.value == pytest.approx(out[0, u.unit].item(), rel=1e-6)
        assert u.win_rate == 1


@pytest.mark.parametrize("layer", [FIRST, LAST])
def test_a_negative_winner_fired(vit, image, layer):
    found = vit_explained(vit, image, [layer]).layers[0]
    negative = [u for u in found.fired if 24 <= u.unit < 48]
    assert len(negative) == 1
    assert negative[0].value < -1
    assert negative[0].change != 0


def test_one_of_u_units_fires_at_the_class_token(vit, image):
    for found in vit_explained(vit, image).layers:
        assert (found.units, found.competitors) == (96, 24)
        assert found.fired_per_position == pytest.approx(1 / 24)
        assert found.fired_ever == pytest.approx(1 / 24)
        assert "4 of 96 units fired (4.17 %) at the class token" in found.headline("cls")


def test_layers_are_explained_in_the_order_asked_for(vit, image):
    assert [found.layer for found in vit_explained(vit, image, [LAST, FIRST]).layers] == [LAST, FIRST]


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_a_pooled_readout_lists_every_unit_that_fired_at_a_patch(vit, image, kind):
    found = vit_explained(vit, image, [LAST], Readout(kind, 1), top=96).layers[0]
    h, out, *_ = by_hand(vit, LAST, image)
    fired, values = winners(h[1:], 24), out[1:].numpy()
    assert {u.unit for u in found.fired} == set(np.flatnonzero(fired.any(0)))
    assert found.fired_per_position == pytest.approx(1 / 24)
    assert found.fired_ever == pytest.approx(fired.any(0).mean())
    assert found.fired_ever > found.fired_per_position
    for u in found.fired:
        column = values[:, u.unit]
        value = column.mean() if kind == "mean" else column[fired[:, u.unit]].max()
        assert u.value == pytest.approx(value, rel=1e-5, abs=1e-6)
        assert u.win_rate == pytest.approx(fired[:, u.unit].mean())


def test_a_layer_states_what_all_its_units_contribute(vit, image):
    found = vit_explained(vit, image, [LAST], Readout("cls", 1), top=1).layers[0]
    everyone = vit_explained(vit, image, [LAST], Readout("cls", 1), top=96).layers[0]
    assert len(found.fired) == 1
    assert found.contribution == pytest.approx(sum(u.contribution for u in everyone.fired), rel=1e-5)


def test_a_pooled_readout_states_both_fractions(vit, image):
    explained = vit_explained(vit, image, [LAST], Readout("mean", 1))
    found = explained.layers[0]
    count = round(found.fired_ever * 96)
    line = f"{count} of 96 units fired ({100 * count / 96:.2f} %) somewhere, 4.17 % per position"
    assert line in found.headline("mean")
    assert line in explained.table()


def test_a_convolution_fires_one_of_u_at_each_pixel(resnet, photo):
    found = explain(resnet, photo, {"layer2.0.act1": 1}, Readout("mean"), class_names=CLASSES, top=128)
    layer = found.layers[0]
    h, out, *_ = by_hand(resnet, "layer2.0.act1", photo)
    fired = winners(h.flatten(1).T, 8)
    assert layer.units == 128
    assert layer.fired_per_position == pytest.approx(1 / 8)
    assert {u.unit for u in layer.fired} == set(np.flatnonzero(fired.any(0)))
    for u in layer.fired:
        assert u.value == pytest.approx(out[u.unit].mean().item(), rel=1e-4, abs=1e-6)
        assert u.win_rate == pytest.approx(fired[:, u.unit].mean())


def test_a_dense_layer_has_neither_margins_nor_rivals(photo):
    model, _ = create_backbone("resnet10t", 4, competitors=None)
    layer = "layer4.0.act2"
    found = explain(scale_up(model), photo, {layer: 1}, Readout("mean"), class_names=CLASSES, top=512)
    _, out, *_ = by_hand(model, layer, photo)
    assert found.layers[0].competitors is None
    assert {u.unit for u in found.layers[0].fired} == set(
        (out > 0).flatten(1).any(1).nonzero()[:, 0].tolist()
    )
    assert all(u.margin is None and u.rival is None for u in found.layers[0].fired)


# --- contribution and change ---------------------------------------------------------------------


@pytest.mark.parametrize("layer", [FIRST, LAST])
@pytest.mark.parametrize("readout", [CLS, Readout("mean", 1)], ids=["cls", "mean"])
def test_contribution_is_gradient_times_activation_over_all_positions(vit, image, layer, readout):
    explained = vit_explained(vit, image, [layer], readout, top=96)
    _, out, gradient, value, target = by_hand(vit, layer, image)
    assert explained.target == CLASSES[target]
    assert explained.logit == pytest.approx(value, abs=1e-5)
    for u in explained.layers[0].fired:
        expected = sum((gradient[t, u.unit] * out[t, u.unit]).item() for t in range(25))
        assert u.contribution == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_contributions_at_the_last_class_token_sum_to_gradient_times_output(vit, image):
    explained = vit_explained(vit, image, [LAST])
    _, out, gradient, *_ = by_hand(vit, LAST, image)
    total = sum(u.contribution for u in explained.layers[0].fired)
    assert total == pytest.approx((gradient * out).sum().item(), rel=1e-4, abs=1e-5)
    assert abs(total) > 0.01


def test_units_are_listed_by_the_magnitude_of_their_contribution(vit, image):
    for found in vit_explained(vit, image, readout=Readout("mean", 1), top=96).layers:
        sizes = [abs(u.contribution) for u in found.fired]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("layer", [FIRST, LAST])
@pytest.mark.parametrize("readout", [CLS, Readout("mean", 1)], ids=["cls", "mean"])
def test_change_is_that_of_a_pass_with_the_unit_zeroed(vit, image, layer, readout):
    explained = vit_explained(vit, image, [layer], readout, top=12)
    function = score(vit, CLASSES.index(explained.target))
    for u in explained.layers[0].fired:

        def zero(module, inputs, out, unit=u.unit):
            out = out.clone()
            out[:, :, unit] = 0
            return out

        with torch.no_grad():
            before = function(image[None]).item()
            handle = vit.get_submodule(layer).register_forward_hook(zero)
            after = function(image[None]).item()
            handle.remove()
        assert u.change == pytest.approx(after - before, abs=1e-5)
    assert max(abs(u.change) for u in explained.layers[0].fired) > 1e-2


@pytest.mark.parametrize("layer", [FIRST, LAST])
def test_change_is_that_of_the_unit_taken_out_of_the_next_layer(vit, image, layer):
    explained = vit_explained(vit, image, [layer])
    weight = vit.get_submodule(layer.replace("act", "fc2")).weight
    function = score(vit, CLASSES.index(explained.target))
    for u in explained.layers[0].fired:
        with torch.no_grad():
            kept = weight[:, u.unit].clone()
            before = function(image[None]).item()
            weight[:, u.unit] = 0
            after = function(image[None]).item()
            weight[:, u.unit] = kept
        assert u.change == pytest.approx(after - before, abs=1e-5)


def test_change_agrees_with_captums_ablation(vit, image):
    explained = vit_explained(vit, image, [LAST])
    ablation = LayerFeatureAblation(
        score(vit, CLASSES.index(explained.target)), vit.get_submodule(LAST)
    ).attribute(image[None], layer_mask=torch.arange(96).expand(1, 25, 96))
    for u in explained.layers[0].fired:
        assert u.change == pytest.approx(-ablation[0, 0, u.unit].item(), abs=1e-5)


@pytest.mark.parametrize("layer", ["layer1.0.act1", "layer4.0.act2"])
def test_contribution_and_change_of_a_convolution_agree_with_those_by_hand(resnet, photo, layer):
    explained = explain(resnet, photo, {layer: 1}, Readout("mean"), class_names=CLASSES, top=6)
    _, out, gradient, *_ = by_hand(resnet, layer, photo)
    function = score(resnet, CLASSES.index(explained.target))
    for u in explained.layers[0].fired:
        expected = (gradient[u.unit] * out[u.unit]).sum().item()
        assert u.contribution == pytest.approx(expected, rel=1e-4, abs=1e-5)

        def zero(module, inputs, out, unit=u.unit):
            return out.index_fill(1, torch.tensor(unit), 0)

        with torch.no_grad():
            before = function(photo[None]).item()
            handle = resnet.get_submodule(layer).register_forward_hook(zero)
            after = function(photo[None]).item()
            handle.remove()
        assert u.change == pytest.approx(after - before, abs=1e-5)
        assert u.change != 0


def test_changes_do_not_depend_on_the_batch_size(vit, image):
    one = vit_explained(vit, image, [LAST], Readout("mean", 1), top=9, batch_size=1).layers[0].fired
    four = vit_explained(vit, image, [LAST], Readout("mean", 1), top=9, batch_size=4).layers[0].fired
    assert len(one) == len(four) == 9
    for a, b in zip(one, four, strict=True):
        assert a.unit == b.unit
        assert a.change == pytest.approx(b.change, abs=1e-5)


# --- margin and rival ----------------------------------------------------------------------------


@pytest.mark.parametrize("readout", [CLS, Readout("mean", 1)], ids=["cls", "mean"])
def test_margin_and_rival_agree_with_a_loop(vit, image, readout):
    found = vit_explained(vit, image, [LAST], readout, top=96).layers[0]
    h, out, *_ = by_hand(vit, LAST, image)
    places = range(1) if readout.kind == "cls" else range(1, 25)
    fired = winners(h, 24)
    for u in found.fired:
        where = max((t for t in places if fired[t, u.unit]), key=lambda t, u=u: abs(out[t, u.unit].item()))
        block = range(u.unit // 24 * 24, u.unit // 24 * 24 + 24)
        rival = max((v for v in block if v != u.unit), key=lambda v, where=where: h[where, v].item())
        assert u.rival == rival
        assert u.margin == pytest.approx(2.0 * (h[where, u.unit] - h[where, rival]).item(), rel=1e-4)
        assert u.margin >= 0


@pytest.mark.parametrize(("factor", "fires"), [(0.99, "unit"), (1.01, "rival")])
def test_the_rival_fires_once_the_unit_is_held_back_by_more_than_its_margin(vit, image, factor, fires):
    bias = vit.get_submodule(LAST.replace("act", "fc1")).bias
    for u in vit_explained(vit, image, [LAST]).layers[0].fired:
        kept = bias.detach().clone()
        with torch.no_grad():
            bias[u.unit] -= factor * u.margin / 2.0  # beta
        after = {v.unit for v in vit_explained(vit, image, [LAST]).layers[0].fired}
        with torch.no_grad():
            bias.copy_(kept)
        assert {u.unit, u.rival} & after == {u.unit if fires == "unit" else u.rival}


# --- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", [CLS, Readout("mean", 1)], ids=["cls", "mean"])
def test_a_map_holds_the_value_at_each_patch_and_zero_where_the_unit_did_not_fire(vit, image, readout):
    found = vit_explained(vit, image, [FIRST], readout, top=96).layers[0]
    h, out, *_ = by_hand(vit, FIRST, image)
    fired = winners(h, 24)
    for u in found.fired:
        grid = np.array(u.map)
        assert grid.shape == (ROWS, COLUMNS_OF_GRID)
        for r in range(ROWS):
            for c in range(COLUMNS_OF_GRID):
                t = 1 + r * COLUMNS_OF_GRID + c
                assert (grid[r, c] != 0) == fired[t, u.unit]
                assert grid[r, c] == pytest.approx(out[t, u.unit].item(), rel=1e-5, abs=1e-6)


def test_a_map_lies_over_the_image_as_the_network_saw_it(image):
    model, _ = create_backbone("vit_tiny_patch16_224", 4, backbone_args=VIT, competitors=8)
    fill(model, 0.3)
    with torch.no_grad():  # no attention: each token of the first block sees its own patch
        model.blocks[0].attn.proj.weight.zero_()
        model.blocks[0].attn.proj.bias.zero_()
    other = image.clone()
    other[:, 8:12, 20:24] = randn(3, 4, 4, seed=5)  # patch in row 2, column 5
    grids = []
    for x in (image, other):
        fired = vit_explained(model, x, [FIRST], Readout("mean", 1), top=96).layers[0].fired
        whole = np.zeros((96, ROWS, COLUMNS_OF_GRID))
        for u in fired:
            whole[u.unit] = u.map
        grids.append(whole)
    differs = ~np.isclose(grids[0], grids[1], rtol=1e-4, atol=1e-5).all(0)
    assert np.argwhere(differs).tolist() == [[2, 5]]


def test_the_map_of_a_convolution_is_its_feature_map(resnet, photo):
    layer = "layer2.0.act1"
    found = explain(resnet, photo, {layer: 1}, Readout("mean"), class_names=CLASSES, top=10).layers[0]
    _, out, *_ = by_hand(resnet, layer, photo)
    assert out.shape[1:] == (4, 6)
    for u in found.fired:
        torch.testing.assert_close(torch.tensor(u.map, dtype=out.dtype), out[u.unit], rtol=1e-4, atol=1e-5)


def test_a_token_layer_without_a_grid_has_no_map(vit, image):
    found = vit_explained(vit, image, [LAST], grids=lambda n: None).layers[0]
    assert [u.map for u in found.fired] == [None] * 4


# --- target and top ------------------------------------------------------------------------------


def test_the_predicted_class_is_explained_and_the_classes_are_the_most_probable(vit, image):
    explained = vit_explained(vit, image, [LAST])
    with torch.no_grad():
        p = vit(image[None])[0].softmax(0).tolist()
    expected = sorted(zip(CLASSES, p, strict=True), key=lambda pair: -pair[1])
    assert [name for name, _ in explained.classes] == [name for name, _ in expected]
    assert [q for _, q in explained.classes] == pytest.approx([q for _, q in expected], rel=1e-5)
    assert explained.target == expected[0][0]


@pytest.mark.parametrize("target", range(4))
def test_another_class_can_be_explained(vit, image, target):
    explained = vit_explained(vit, image, [LAST], target=target)
    _, out, gradient, value, _ = by_hand(vit, LAST, image, target)
    assert explained.target == CLASSES[target]
    assert explained.logit == pytest.approx(value, abs=1e-5)
    for u in explained.layers[0].fired:
        assert u.contribution == pytest.approx((gradient * out)[:, u.unit].sum().item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("target", [-1, 4, 100])
def test_a_class_that_is_not_there_is_refused(vit, image, target):
    with pytest.raises(InputError, match=f"no class {target}; the network tells 4 apart"):
        vit_explained(vit, image, [LAST], target=target)


@pytest.mark.parametrize("top", [0, 1, 3])
def test_top_limits_what_is_listed_and_not_what_is_counted(vit, image, top):
    whole = vit_explained(vit, image, [LAST], Readout("mean", 1), top=96).layers[0]
    part = vit_explained(vit, image, [LAST], Readout("mean", 1), top=top).layers[0]
    assert [u.unit for u in part.fired] == [u.unit for u in whole.fired[:top]]
    assert all(u.change is not None for u in part.fired)
    assert (part.fired_ever, part.fired_per_position) == (whole.fired_ever, whole.fired_per_position)


# --- labels --------------------------------------------------------------------------------------


def test_labels_appear_with_their_units_and_their_rivals(vit, image):
    first, second, third, fourth = vit_explained(vit, image, [LAST]).layers[0].fired
    labels = table_of(
        {"unit": first.unit, "label": "grass", "label_2": "forest", "score": 1.0},
        {"unit": first.rival, "label": "sea"},
        {"unit": second.unit, "alive": False, "reason": "never won"},
    )
    elsewhere = table_of({"unit": third.unit, "label": "of another layer"}, layer=FIRST)
    explained = vit_explained(vit, image, [LAST], labels=pd.concat([labels, elsewhere]))
    one, two, three, four = explained.layers[0].fired
    assert (one.label, one.runner_up, one.reason, one.rival_label) == ("grass", "forest", None, "sea")
    assert (two.label, two.runner_up, two.reason) == (None, None, "never won")
    assert (three.label, three.reason) == (four.label, four.reason) == (None, "not labelled")
    assert four.unit == fourth.unit
    text = explained.table()
    assert "grass" in text
    assert f"{first.rival} (sea)" in text
    assert "(never won)" in text
    assert "of another layer" not in text


@pytest.mark.parametrize("typed", [False, True], ids=["as made", "as read"])
def test_a_value_of_the_other_sign_than_the_label_describes_is_marked(vit, image, typed):
    fired = vit_explained(vit, image, [LAST]).layers[0].fired
    assert {u.value < 0 for u in fired} == {True, False}
    for negative in (True, False):
        labels = table_of(*({"unit": u.unit, "label": "grass", "negative": negative} for u in fired))
        labels = labels.astype(COLUMNS) if typed else labels
        explained = vit_explained(vit, image, [LAST], labels=labels)
        for u in explained.layers[0].fired:
            assert u.sign_differs is ((u.value < 0) != negative)
        lines = {int(line.split()[0]): line for line in explained.table().splitlines() if "grass" in line}
        for u in fired:
            assert ("other sign" in lines[u.unit]) == ((u.value < 0) != negative)


def test_without_a_label_no_sign_differs(vit, image):
    fired = vit_explained(vit, image, [LAST]).layers[0].fired
    labels = table_of(*({"unit": u.unit, "negative": True, "reason": "rare"} for u in fired))
    for table in (labels, None):
        explained = vit_explained(vit, image, [LAST], labels=table)
        assert not any(u.sign_differs for u in explained.layers[0].fired)


# --- what is handed on ---------------------------------------------------------------------------


def test_an_explanation_is_json_and_loses_nothing_there(vit, image):
    unit = vit_explained(vit, image, [LAST]).layers[0].fired[0].unit
    labels = table_of({"unit": unit, "label": "grass"}).astype(COLUMNS)
    explained = vit_explained(vit, image, labels=labels, name="test:12")
    found = json.loads(json.dumps(explained.to_dict(), allow_nan=False))
    assert (found["image"], found["target"], found["readout"]) == ("test:12", explained.target, "cls")
    assert found["classes"] == [list(pair) for pair in explained.classes]
    for layer, there in zip(explained.layers, found["layers"], strict=True):
        assert there["layer"] == layer.layer
        assert there["fired_per_position"] == layer.fired_per_position
        for u, row in zip(layer.fired, there["fired"], strict=True):
            assert row == {name: getattr(u, name) for name in row}
            assert {"unit", "label", "value", "margin", "rival", "contribution", "change", "map"} <= set(row)


def test_the_table_holds_the_numbers(vit, image):
    explained = vit_explained(vit, image, name="test:12")
    lines = explained.table().splitlines()
    assert lines[0].startswith(f"test:12: {explained.classes[0][0]} {explained.classes[0][1]:.2f}")
    assert lines[1] == f"logit of {explained.target} above the mean of all: {explained.logit:+.2f}"
    for layer in explained.layers:
        start = next(i for i, line in enumerate(lines) if line.startswith(layer.layer)) + 2
        for u, line in zip(layer.fired, lines[start:], strict=False):
            words = line.replace("(not labelled)", "").replace("(no label)", "").split()
            unit, value, margin, rival, contribution, change = map(float, words)
            assert (unit, rival) == (u.unit, u.rival)
            assert value == pytest.approx(u.value, abs=0.0051)
            assert margin == pytest.approx(u.margin, abs=0.0051)
            assert contribution == pytest.approx(u.contribution, abs=0.00051)
            assert change == pytest.approx(u.change, abs=0.00051)


# --- nothing stays behind ------------------------------------------------------------------------


def hooks(model):
    return [
        (name, kind, len(getattr(module, kind)))
        for name, module in model.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ]


def test_an_explanation_leaves_model_and_image_as_they_were(vit, image):
    before, state = hooks(vit), {name: value.clone() for name, value in vit.state_dict().items()}
    with torch.no_grad():
        logits = vit(image[None])
    pixels = image.clone()
    vit_explained(vit, image)
    assert hooks(vit) == before
    with torch.no_grad():
        assert torch.equal(vit(image[None]), logits)
    assert all(torch.equal(value, state[name]) for name, value in vit.state_dict().items())
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert torch.equal(image, pixels)
    assert not image.requires_grad
    assert image.grad is None
    assert not vit.training


def test_the_same_image_is_explained_the_same_way_twice(vit, image):
    assert vit_explained(vit, image).to_dict() == vit_explained(vit, image).to_dict()


def test_silencing_and_watching_leave_no_hook_behind_even_where_the_pass_fails(vit, image):
    before = hooks(vit)
    with torch.no_grad():
        logits = vit(image[None])
        with watch(vit, {FIRST: -1, LAST: -1}), silenced(vit, LAST, [3], 2):
            assert hooks(vit) != before
            vit(image[None])
        assert hooks(vit) == before
        with pytest.raises(InterruptedError), watch(vit, {LAST: -1}), silenced(vit, LAST, [3], 2):
            raise InterruptedError
        assert hooks(vit) == before
        assert torch.equal(vit(image[None]), logits)


@pytest.mark.parametrize("layout", ["tokens", "NCHW"])
def test_silencing_zeroes_one_unit_per_image_and_nothing_else(layout):
    shape, dim = ((3, 5, 4), 2) if layout == "tokens" else ((3, 4, 2, 5), 1)
    x = randn(*shape) + 10
    model = nn.Sequential(nn.Identity())
    with silenced(model, "0", [2, 0, 2], dim):
        found = model(x)
    for i, unit in enumerate([2, 0, 2]):
        for other in range(4):
            expected = torch.zeros_like(x[i].select(dim - 1, other))
            if other != unit:
                expected = x[i].select(dim - 1, other)
            assert torch.equal(found[i].select(dim - 1, other), expected)
