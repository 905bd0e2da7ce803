"""What silencing and excluding change, against passes through timm's blocks by hand and loops."""

import pytest
import torch
from captum.attr import LayerFeatureAblation
from torch import nn

from lwta import LWTA
from lwta.dissect.activations import Readout
from lwta.dissect.explain import explain
from tests.by_hand import (
    CLASSES,
    CLS,
    FIRST,
    LAST,
    MEAN,
    by_hand,
    compete,
    competing,
    image,
    logits_with,
    map_explained,
    photo,
    randn,
    resnet,
    score,
    vit,
    vit_explained,
    vit_network,
    zeroing,
)

__all__ = ["image", "photo", "resnet", "vit"]  # fixtures

TOKENS = -1  # axis of the units


def exact(model, layer, image, change, explained, against=None):
    """Change of the explained score where a layer returns ``change(input, output)``."""
    target = CLASSES.index(explained.target)
    with torch.no_grad():
        before = score(model(image[None]), target, against)
    return float(score(logits_with(model, layer, image, change)[None], target, against) - before)


@torch.no_grad()
def through_the_blocks(vit, image, weight, barred=()):
    """Logits (C,) of a ViT of two blocks: in the second, competition by loops and fc2 with ``weight``."""
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(image[None])))
    x = vit.blocks[0](x)
    block = vit.blocks[1]
    x = x + block.attn(block.norm1(x))
    h = block.mlp.fc1(block.norm2(x))[0]
    values, _ = compete(h, 24, barred)
    x = x + (values @ weight.T + block.mlp.fc2.bias)[None]
    return vit.head(vit.norm(x)[0, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("against", [None, 0])
def test_silencing_a_unit_of_the_last_block_agrees_with_a_manual_pass(image, dtype, against):
    model = vit_network().to(dtype)
    target = 2
    found = vit_explained(model, image.to(dtype), [LAST], MEAN, top=96, target=target, against=against)
    whole = model.blocks[1].mlp.fc2.weight.detach()
    plain = through_the_blocks(model, image.to(dtype), whole)
    torch.testing.assert_close(plain, model(image.to(dtype)[None])[0].detach(), rtol=0, atol=1e-4)
    tolerance, sizes = (1e-4 if dtype == torch.float32 else 1e-9), []
    for u in found.layers[0].measured:
        weight = whole.clone()
        weight[:, u.unit] = 0
        silent = through_the_blocks(model, image.to(dtype), weight)
        change = score(silent[None], target, against) - score(plain[None], target, against)
        assert u.silenced == pytest.approx(change.item(), abs=tolerance)
        without = through_the_blocks(model, image.to(dtype), whole, barred=(u.unit,))
        change = score(without[None], target, against) - score(plain[None], target, against)
        assert u.excluded == pytest.approx(change.item(), abs=tolerance)
        sizes.append(abs(u.silenced))
    assert max(sizes) > 0.1
    nothing = through_the_blocks(model, image.to(dtype), torch.zeros_like(whole))
    change = score(nothing[None], target, against) - score(plain[None], target, against)
    assert found.layers[0].silenced == pytest.approx(change.item(), abs=tolerance)


@pytest.mark.parametrize("layer", [FIRST, LAST])
@pytest.mark.parametrize("readout", [CLS, MEAN], ids=lambda r: r.kind)
def test_silenced_excluded_and_all_silenced_are_those_of_passes_by_hand(vit, image, layer, readout):
    explained = vit_explained(vit, image, [layer], readout, top=9)
    found = explained.layers[0]
    for u in found.measured:
        silent = exact(vit, layer, image, zeroing(u.unit, axis=TOKENS), explained)
        assert u.silenced == pytest.approx(silent, abs=1e-9)
        without = exact(vit, layer, image, competing(24, (u.unit,)), explained)
        assert u.excluded == pytest.approx(without, abs=1e-9)
    nothing = exact(vit, layer, image, lambda h, out: 0 * out, explained)
    assert found.silenced == pytest.approx(nothing, abs=1e-9)
    assert max(abs(u.silenced) for u in found.measured) > 1e-2
    assert max(abs(u.excluded - u.silenced) for u in found.measured) > 1e-2


@pytest.mark.parametrize("layer", [FIRST, LAST])
def test_silencing_is_the_unit_taken_out_of_the_next_layer(vit, image, layer):
    explained = vit_explained(vit, image, [layer])
    weight = vit.get_submodule(layer.replace("act", "fc2")).weight
    target = CLASSES.index(explained.target)
    for u in explained.layers[0].fired:
        with torch.no_grad():
            kept = weight[:, u.unit].clone()
            before = score(vit(image[None]), target)
            weight[:, u.unit] = 0
            after = score(vit(image[None]), target)
            weight[:, u.unit] = kept
        assert u.silenced == pytest.approx(float(after - before), abs=1e-9)


def test_silencing_agrees_with_captums_ablation(vit, image):
    explained = vit_explained(vit, image, [LAST])
    target = CLASSES.index(explained.target)
    ablation = LayerFeatureAblation(lambda x: score(vit(x), target), vit.get_submodule(LAST)).attribute(
        image[None], layer_mask=torch.arange(96).expand(1, 25, 96)
    )
    for u in explained.layers[0].fired:
        assert u.silenced == pytest.approx(-ablation[0, 0, u.unit].item(), abs=1e-9)


@pytest.mark.parametrize("layer", ["layer1.0.act1", "layer4.0.act2"])
def test_units_of_feature_maps_are_silenced_and_excluded_at_every_pixel(resnet, photo, layer):
    explained = map_explained(resnet, photo, layer, top=4)
    for u in explained.layers[0].measured:
        silent = exact(resnet, layer, photo, zeroing(u.unit, axis=1), explained)
        assert u.silenced == pytest.approx(silent, abs=1e-9)
        without = exact(resnet, layer, photo, competing(8, (u.unit,)), explained)
        assert u.excluded == pytest.approx(without, abs=1e-9)
        assert u.silenced != 0 != u.excluded


@pytest.mark.parametrize("kind", ["gelu", "topk"])
def test_where_nothing_competes_units_are_silenced_and_not_excluded(image, kind):
    model = vit_network(kind="topk") if kind == "topk" else vit_network(competitors=None)
    explained = vit_explained(model, image, [FIRST, "blocks.0"], MEAN, top=5)
    for found in explained.layers:
        assert len(found.measured) == 5
        for u in found.measured:
            silent = exact(model, found.layer, image, zeroing(u.unit, axis=TOKENS), explained)
            assert u.silenced == pytest.approx(silent, abs=1e-9)
            assert u.excluded is None


def test_the_other_of_two_competitors_wins_when_one_is_excluded(image):
    model = vit_network(competitors=2)
    explained = vit_explained(model, image, [LAST], MEAN, top=8)
    h, out, *_ = by_hand(model, LAST, image)
    for u in explained.layers[0].measured:
        other = u.unit ^ 1
        swapped = out.clone()
        swapped[:, u.unit], swapped[:, other] = 0, h[:, other]
        change = exact(model, LAST, image, lambda _, found, swapped=swapped: swapped[None], explained)
        assert u.excluded == pytest.approx(change, abs=1e-9)


@pytest.mark.parametrize("batch_size", [1, 4, 9, 64])
def test_changes_do_not_depend_on_the_batch_size(vit, image, batch_size):
    one = vit_explained(vit, image, [LAST], MEAN, top=9, batch_size=3).layers[0].measured
    other = vit_explained(vit, image, [LAST], MEAN, top=9, batch_size=batch_size).layers[0].measured
    assert [u.unit for u in one] == [u.unit for u in other]
    assert len(one) == 9
    for a, b in zip(one, other, strict=True):
        assert (a.silenced, a.excluded) == pytest.approx((b.silenced, b.excluded), abs=1e-9)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_units_are_measured_in_batches(vit, image, batch_size):
    sizes = []
    handle = vit.patch_embed.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    vit_explained(vit, image, [LAST], MEAN, top=7, batch_size=batch_size)
    handle.remove()
    batches = [min(batch_size, 7 - start) for start in range(0, 7, batch_size)]
    twice = [size for size in batches for _ in ("silenced", "excluded")]
    assert sizes == [1, 1, *twice, 1]  # what fired, attribution, each, all together


def test_what_single_precision_adds_is_rounding(image):
    double = vit_network(std=0.2)
    found = vit_explained(double, image, readout=MEAN)
    double.float()
    for batch_size in (1, 16):
        single = vit_explained(double, image.float(), readout=MEAN, batch_size=batch_size)
        for layer, known in zip(single.layers, found.layers, strict=True):
            expected = {u.unit: u for u in known.measured}
            assert len(layer.measured) == 16
            for u in layer.measured:
                assert u.silenced == pytest.approx(expected[u.unit].silenced, abs=1e-5)
                assert u.excluded == pytest.approx(expected[u.unit].excluded, abs=1e-5)
                assert u.contribution == pytest.approx(expected[u.unit].contribution, abs=1e-5)


def test_half_precision_stays_within_its_own_rounding():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 24), LWTA(6, -1), nn.Linear(24, 4)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    x = randn(3, 2, 2)
    known = explain(model, x, {"2": -1}, Readout("mean"), class_names=CLASSES)
    for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.08)):
        half = explain(model.to(dtype), x.to(dtype), {"2": -1}, Readout("mean"), class_names=CLASSES)
        expected = {u.unit: u for u in known.layers[0].fired}
        assert {u.unit for u in half.layers[0].fired} == set(expected)
        for u in half.layers[0].fired:
            for name in ("silenced", "excluded", "contribution", "margin"):
                assert getattr(u, name) == pytest.approx(getattr(expected[u.unit], name), abs=tolerance)
        model.float()
