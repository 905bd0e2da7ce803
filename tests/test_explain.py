"""Who fired, where, against whom and for which class, against loops on small networks of random weights."""

import numpy as np
import pytest
import torch
from torch import nn

from lwta import LWTA
from lwta.dissect.activations import Readout
from lwta.dissect.explain import explain
from lwta.errors import InputError
from tests.by_hand import (
    BETA,
    CLASSES,
    CLS,
    FIRST,
    LAST,
    MAX,
    MEAN,
    by_hand,
    captured,
    fill,
    hooks,
    image,
    map_explained,
    photo,
    randn,
    resnet,
    resnet_network,
    vit,
    vit_explained,
    vit_network,
    winners,
)

__all__ = ["image", "photo", "resnet", "vit"]  # fixtures


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
    assert negative[0].silenced != 0


def test_one_of_u_units_fires_at_the_class_token(vit, image):
    for found in vit_explained(vit, image).layers:
        assert (found.units, found.competitors) == (96, 24)
        assert len(found.fired) == 4
        assert found.fired_per_position == pytest.approx(1 / 24)
        assert found.fired_ever == pytest.approx(1 / 24)
        assert "4 of 96 units fired (4.17 %) at the class token" in found.headline("cls")


def test_layers_are_explained_in_the_order_asked_for(vit, image):
    assert [found.layer for found in vit_explained(vit, image, [LAST, FIRST]).layers] == [LAST, FIRST]


@pytest.mark.parametrize("readout", [MEAN, MAX, Readout("patches", 1)], ids=lambda r: r.kind)
def test_a_pooled_readout_lists_every_unit_that_fired_at_a_patch(vit, image, readout):
    found = vit_explained(vit, image, [LAST], readout).layers[0]
    h, out, *_ = by_hand(vit, LAST, image)
    fired, values = winners(h[1:], 24), out[1:].numpy()
    assert {u.unit for u in found.fired} == set(np.flatnonzero(fired.any(0)))
    assert len(found.fired) > 16
    assert found.fired_per_position == pytest.approx(1 / 24)
    assert found.fired_ever == pytest.approx(fired.any(0).mean())
    assert found.fired_ever > found.fired_per_position
    for u in found.fired:
        column = values[:, u.unit]
        value = column.mean() if readout.kind == "mean" else column[fired[:, u.unit]].max()
        assert u.value == pytest.approx(value, rel=1e-5, abs=1e-6)
        assert u.win_rate == pytest.approx(fired[:, u.unit].mean())


def test_a_convolution_fires_one_of_u_at_each_pixel(resnet, photo):
    layer = map_explained(resnet, photo, "layer2.0.act1").layers[0]
    h, out, *_ = by_hand(resnet, "layer2.0.act1", photo)
    fired = winners(h.flatten(1).T, 8)
    assert layer.units == 128
    assert layer.fired_per_position == pytest.approx(1 / 8)
    assert {u.unit for u in layer.fired} == set(np.flatnonzero(fired.any(0)))
    for u in layer.fired:
        assert u.value == pytest.approx(out[u.unit].mean().item(), rel=1e-4, abs=1e-6)
        assert u.win_rate == pytest.approx(fired[:, u.unit].mean())


def test_of_a_dense_network_every_unit_that_is_not_zero_fired_and_nothing_competes(image):
    model = vit_network(competitors=None)
    (found,) = vit_explained(model, image, [LAST], samples=2).layers
    assert {u.unit for u in found.fired} == set(range(96))
    assert (found.competitors, found.noise, found.fired_per_position) == (None, None, 1)
    assert found.drawn == []
    for u in found.fired:
        assert (u.margin, u.probability, u.rivals, u.excluded, u.stability) == (None, None, [], None, None)
    assert all(u.silenced is not None for u in found.measured)


def test_of_a_relu_those_fired_that_are_above_zero_somewhere(photo):
    model = resnet_network(competitors=None)
    layer = "layer4.0.act2"
    found = map_explained(model, photo, layer).layers[0]
    _, out, *_ = by_hand(model, layer, photo)
    expected = set((out > 0).flatten(1).any(1).nonzero()[:, 0].tolist())
    assert {u.unit for u in found.fired} == expected
    assert 0 < len(expected) < 512


def test_of_top_k_the_k_largest_fired_at_each_position(image):
    model = vit_network(kind="topk")
    found = vit_explained(model, image, [LAST]).layers[0]
    h, _, *_ = by_hand(model, LAST, image)
    largest = sorted(range(96), key=lambda unit: -h[0, unit].item())[:4]
    assert {u.unit for u in found.fired} == set(largest)
    assert found.fired_per_position == pytest.approx(1 / 24)
    assert found.competitors is None


# --- rivals --------------------------------------------------------------------------------------


def place_of(u, readout, fired, out):
    """The position at which a unit is compared with its rivals, by a loop."""
    places = [t for t in (range(1) if readout.kind == "cls" else range(1, 25)) if fired[t, u.unit]]
    size = (
        (lambda t: out[t, u.unit].item()) if readout.kind == "max" else lambda t: abs(out[t, u.unit].item())
    )
    return max(places, key=size)


@pytest.mark.parametrize("readout", [CLS, MEAN, MAX], ids=lambda r: r.kind)
@pytest.mark.parametrize("noise", [1.0, 0.25, 0.0])
def test_probability_margin_and_rivals_agree_with_a_loop(vit, image, readout, noise):
    competition = vit.get_submodule(LAST).competition
    competition.noise = noise
    found = vit_explained(vit, image, [LAST], readout, top=96).layers[0]
    competition.noise = 1.0
    h, out, *_ = by_hand(vit, LAST, image)
    fired = winners(h, 24)
    assert found.noise == noise
    for u in found.fired:
        t = place_of(u, readout, fired, out)
        block = range(u.unit // 24 * 24, u.unit // 24 * 24 + 24)
        logit = {v: BETA * h[t, v].item() for v in block}
        weights = {v: np.exp((logit[v] - logit[u.unit]) / (noise or 1)) for v in block}
        assert u.probability == pytest.approx(weights[u.unit] / sum(weights.values()), rel=1e-6)
        rivals = sorted((v for v in block if v != u.unit), key=lambda v, logit=logit: -logit[v])[:2]
        assert [rival.unit for rival in u.rivals] == rivals
        for rival in u.rivals:
            assert rival.margin == pytest.approx(logit[u.unit] - logit[rival.unit], rel=1e-6)
            assert rival.probability == pytest.approx(weights[rival.unit] / sum(weights.values()), rel=1e-6)
        assert u.margin == u.rivals[0].margin >= 0


@pytest.mark.parametrize(("factor", "fires"), [(0.99, "unit"), (1.01, "rival")])
def test_the_rival_fires_once_the_unit_is_held_back_by_more_than_its_margin(vit, image, factor, fires):
    bias = vit.get_submodule(LAST.replace("act", "fc1")).bias
    for u in vit_explained(vit, image, [LAST]).layers[0].fired:
        kept, rival = bias.detach().clone(), u.rivals[0].unit
        with torch.no_grad():
            bias[u.unit] -= factor * u.margin / BETA
        after = {v.unit for v in vit_explained(vit, image, [LAST]).layers[0].fired}
        with torch.no_grad():
            bias.copy_(kept)
        assert {u.unit, rival} & after == {u.unit if fires == "unit" else rival}


def test_two_competitors_have_one_rival_each(image):
    (found,) = vit_explained(vit_network(competitors=2), image, [FIRST], top=96).layers
    assert len(found.fired) == 48
    for u in found.fired:
        (rival,) = u.rivals
        assert rival.unit == u.unit ^ 1
        assert u.probability + rival.probability == pytest.approx(1)


def test_what_overwrites_the_competitors_later_does_not_change_margins():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.act, self.fc2 = nn.Linear(12, 6), LWTA(3, -1), nn.Linear(6, 4)

        def forward(self, x):
            h = self.fc1(x.flatten(1))
            y = self.act(h)
            h.zero_()
            return self.fc2(y)

    model, x = fill(Net(), 0.4), randn(3, 2, 2).double()
    with captured(model.fc1) as seen, torch.no_grad():
        model(x[None])
    h = seen["output"][0]
    (found,) = explain(model, x, {"act": -1}, Readout("mean"), class_names=CLASSES).layers
    for u in found.fired:
        assert u.margin == pytest.approx((h[u.unit] - h[u.rivals[0].unit]).item(), abs=1e-6)
        assert u.margin > 0


# --- target and top ------------------------------------------------------------------------------


def test_the_predicted_class_is_explained_and_the_classes_are_the_most_probable(vit, image):
    explained = vit_explained(vit, image, [LAST])
    with torch.no_grad():
        p = vit(image[None])[0].softmax(0).tolist()
    expected = sorted(zip(CLASSES, p, strict=True), key=lambda pair: -pair[1])
    assert [name for name, _ in explained.classes] == [name for name, _ in expected]
    assert [q for _, q in explained.classes] == pytest.approx([q for _, q in expected], rel=1e-5)
    assert (explained.target, explained.against) == (expected[0][0], None)


@pytest.mark.parametrize("target", range(4))
@pytest.mark.parametrize("against", [None, 0, 3])
def test_any_class_and_the_difference_of_two_can_be_explained(vit, image, target, against):
    if target == against:
        with pytest.raises(InputError, match=f"{CLASSES[target]} cannot be set against itself"):
            vit_explained(vit, image, [LAST], target=target, against=against)
        return
    explained = vit_explained(vit, image, [LAST], target=target, against=against)
    _, out, gradient, value, _ = by_hand(vit, LAST, image, target, against)
    assert explained.target == CLASSES[target]
    assert explained.against == (None if against is None else CLASSES[against])
    assert explained.score == pytest.approx(value, abs=1e-9)
    for u in explained.layers[0].fired:
        assert u.contribution == pytest.approx((gradient * out)[:, u.unit].sum().item(), abs=1e-9)


def test_the_difference_of_two_classes_is_that_of_what_is_said_of_each(vit, image):
    one, other = (vit_explained(vit, image, [LAST], target=k).layers[0] for k in (1, 2))
    both = vit_explained(vit, image, [LAST], target=1, against=2).layers[0]
    for name in ("contribution", "silenced", "excluded"):
        of = [{u.unit: getattr(u, name) for u in layer.fired} for layer in (one, other, both)]
        assert of[2] == pytest.approx({unit: of[0][unit] - of[1][unit] for unit in of[2]}, abs=1e-9)


def test_of_two_classes_the_mean_is_half_way(image):
    model = vit_network()
    model.reset_classifier(2)
    model.eval().double()
    with torch.no_grad():
        first, second = model(image[None])[0].tolist()
    for target, expected in enumerate([(first - second) / 2, (second - first) / 2]):
        found = explain(model, image, {LAST: -1}, CLS, class_names=["no", "yes"], target=target)
        assert found.score == pytest.approx(expected, abs=1e-9)
        assert found.layers[0].contribution != 0


@pytest.mark.parametrize("target", [-1, 4, 100])
def test_a_class_that_is_not_there_is_refused(vit, image, target):
    for asked in ({"target": target}, {"target": 0, "against": target}):
        with pytest.raises(InputError, match=f"no class {target}; the network tells 4 apart"):
            vit_explained(vit, image, [LAST], **asked)


def test_the_predicted_class_cannot_be_set_against_itself_and_the_image_is_named(vit, image):
    predicted = CLASSES.index(vit_explained(vit, image, [LAST]).target)
    message = f"frog.png is predicted to be {CLASSES[predicted]}, which cannot be set against itself"
    with pytest.raises(InputError, match=message):
        vit_explained(vit, image, [LAST], against=predicted, name="frog.png")


def test_names_are_one_for_each_class(vit, image):
    with pytest.raises(InputError, match="there are 3 class names, and the network tells 4 classes apart"):
        explain(vit, image, {LAST: -1}, CLS, class_names=CLASSES[:3])


@pytest.mark.parametrize("top", [0, 1, 3, 200])
def test_top_limits_what_is_measured_and_not_what_is_listed(vit, image, top):
    whole = vit_explained(vit, image, [LAST], MEAN, top=96).layers[0]
    part = vit_explained(vit, image, [LAST], MEAN, top=top).layers[0]
    assert len(whole.measured) == len(whole.fired)
    for u, known in zip(part.measured, whole.fired[:top], strict=True):
        for name in ("silenced", "excluded", "probability"):
            assert getattr(u, name) == pytest.approx(getattr(known, name), abs=1e-9)
        assert [rival.unit for rival in u.rivals] == [rival.unit for rival in known.rivals]
    assert [u.unit for u in part.fired] == [u.unit for u in whole.fired]
    for u, known in zip(part.fired[top:], whole.fired[top:], strict=True):
        assert (u.value, u.contribution) == pytest.approx((known.value, known.contribution), abs=1e-9)
        assert (u.silenced, u.excluded, u.probability, u.rivals, u.map) == (None, None, None, [], None)
    for name in ("fired_ever", "fired_per_position", "contribution", "silenced"):
        assert getattr(part, name) == pytest.approx(getattr(whole, name), abs=1e-9)


# --- nothing stays behind ------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_an_explanation_leaves_model_and_image_as_they_were(vit, image, training):
    vit.blocks[0].norm1.train(training)  # flags are nobody's business but the caller's
    before, state = hooks(vit), {name: value.clone() for name, value in vit.state_dict().items()}
    flags = [(module.training, p.requires_grad) for module in vit.modules() for p in module.parameters()]
    pixels, seeds = image.clone(), [vit.get_submodule(layer).competition.seed for layer in (FIRST, LAST)]
    draws = torch.get_rng_state()
    vit_explained(vit, image, samples=3)
    assert hooks(vit) == before
    assert all(torch.equal(value, state[name]) for name, value in vit.state_dict().items())
    assert flags == [
        (module.training, p.requires_grad) for module in vit.modules() for p in module.parameters()
    ]
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert seeds == [vit.get_submodule(layer).competition.seed for layer in (FIRST, LAST)] == [None, None]
    assert torch.equal(image, pixels)
    assert not image.requires_grad
    assert image.grad is None
    assert torch.equal(torch.get_rng_state(), draws)
    vit.eval()


def test_the_same_image_is_explained_the_same_way_twice(vit, image):
    first, again = (vit_explained(vit, image, readout=MEAN, samples=5).to_dict() for _ in range(2))
    assert first == again
