"""A survey against single images, loops and captum layer by layer, on small networks of random weights."""

import pytest
import torch
from captum.attr import LayerGradientXActivation
from torch import nn

from lwta.dissect.activations import Readout
from lwta.dissect.survey import survey
from lwta.errors import InputError
from models.backbone import create_backbone
from tests.by_hand import FIRST, LAST, VIT, captured, fill, hooks, randn, scale_up, winners

CLS, MEAN, MAX = Readout("cls", 1), Readout("mean", 1), Readout("max", 1)
SITES = {FIRST: -1, LAST: -1}
NCHW = {"layer1.0.act1": 1, "layer3.0.act1": 1, "layer4.0.act2": 1}
READOUTS = [pytest.param(CLS, id="cls"), pytest.param(MEAN, id="mean"), pytest.param(MAX, id="max")]


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
    model, _ = create_backbone(
        "resnet10t", 4, competitors=8, placement="all", backbone_args={"zero_init_last": False}
    )
    return scale_up(model)


@pytest.fixture(scope="module")
def tokens():
    """Seven images for the ViT."""
    return randn(7, 3, 16, 24, seed=3).double()


@pytest.fixture(scope="module")
def photos():
    """Five images for the ResNet."""
    return randn(5, 3, 32, 48, seed=4).double()


@torch.no_grad()
def asked(model, images):
    """Classes for the images: in turn the one predicted, another, and none."""
    predicted = model(images).argmax(1)
    kinds = torch.arange(len(images)) % 3
    return torch.where(kinds == 0, predicted, torch.where(kinds == 1, (predicted + 1) % 4, -1))


def in_batches(images, targets, size=3, first=10):
    """Batches of images numbered from ``first``, an empty one among them."""
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        yield first + torch.arange(len(images))[part], images[part], targets[part]
        yield torch.empty(0, dtype=torch.long), torch.empty(0), torch.empty(0, dtype=torch.long)


def surveyed(model, images, sites, readout, targets=None, **options):
    targets = asked(model, images) if targets is None else targets
    return survey(model, in_batches(images, targets, **options), sites, readout)


def alone(model, layer, image, target):
    """One image: input and output of a layer, and gradient x output of the question it raises."""
    with captured(model.get_submodule(layer)) as seen:
        logits = model(image[None])[0]
    best = int(logits.argmax())
    against = logits.mean() if target in (-1, best) else logits[target]
    gradient = torch.autograd.grad(logits[best] - against, seen["output"])[0][0]
    out = seen["output"].detach()[0]
    return seen["input"].detach()[0], out, gradient * out, best


def by_position(x, readout=None):
    """(T, D) of one image's tokens (T, D) or map (D, H, W), all or those that are read."""
    if x.ndim == 3:
        return x.flatten(1).T
    if readout is None:
        return x
    return x[:1] if readout.kind == "cls" else x[readout.prefix :]


def check_values(found, model, layer, images, readout, competitors):
    """What a layer's survey says of values and wins, against loops."""
    fired = torch.zeros(found.values.shape[1])
    places = 0
    for i, image in enumerate(images):
        h, out, _, _ = alone(model, layer, image, -1)
        h, out = by_position(h, readout), by_position(out, readout)
        fires = torch.from_numpy(winners(h, competitors))
        places += len(h)
        fired += fires.sum(0)
        for unit in range(h.shape[1]):
            column, fire = out[:, unit], fires[:, unit]
            value = column.mean() if readout.kind == "mean" else 0.0
            if readout.kind != "mean" and fire.any():
                value = column[fire].max()
            assert found.won[i, unit] == fire.any()
            assert found.values[i, unit].item() == pytest.approx(float(value), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(found.win_rate, fired / places)


def rivals_by_loops(model, layer, images, readout, competitors):
    """Unit -> place in its block -> how often that one came second where the unit won."""
    counts = None
    for image in images:
        h = by_position(alone(model, layer, image, -1)[0], readout)
        counts = torch.zeros(h.shape[1], competitors, dtype=torch.long) if counts is None else counts
        for t in range(len(h)):
            for start in range(0, h.shape[1], competitors):
                block = h[t, start : start + competitors].tolist()
                first, second = sorted(range(competitors), key=block.__getitem__)[:-3:-1]
                counts[start + first, second] += 1
    return counts


# --- what fired ----------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", READOUTS)
def test_values_and_wins_agree_with_loops(vit, tokens, readout):
    found = surveyed(vit, tokens, SITES, readout)
    assert list(found.layers) == [FIRST, LAST]
    for name, layer in found.layers.items():
        assert layer.competitors == 24
        assert (layer.values.dtype, layer.won.dtype) == (torch.float32, torch.bool)
        assert layer.values.shape == layer.won.shape == layer.contributions.shape == (7, 96)
        check_values(layer, vit, name, tokens, readout, 24)


def test_values_and_wins_of_a_convolution_agree_with_loops(resnet, photos):
    found = surveyed(resnet, photos, NCHW, Readout("mean"))
    for name, layer in found.layers.items():
        assert layer.competitors == 8
        check_values(layer, resnet, name, photos, Readout("mean"), 8)


@pytest.mark.parametrize("readout", READOUTS)
def test_a_negative_winner_fired(vit, tokens, readout):
    for layer in surveyed(vit, tokens, SITES, readout).layers.values():
        block = slice(24, 48)
        assert layer.won[:, block].any(1).all()
        assert (layer.values[:, block][layer.won[:, block]] < 0).all()
        assert layer.win_rate[block].sum().item() == pytest.approx(1)
        assert layer.contributions[:, block].abs().max() > 1e-3
        for start in range(0, 96, 24):
            assert layer.win_rate[start : start + 24].sum().item() == pytest.approx(1)


def test_images_come_with_their_numbers_classes_and_predictions(vit, tokens):
    targets = asked(vit, tokens)
    found = surveyed(vit, tokens, SITES, CLS)
    with torch.no_grad():
        logits = vit(tokens)
    assert found.images.tolist() == list(range(10, 17))
    assert torch.equal(found.targets, targets)
    assert torch.equal(found.predicted, logits.argmax(1))
    assert found.classes == 4
    assert {-1} < set(targets.tolist())


# --- rivals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", READOUTS)
def test_rivals_are_the_seconds_of_their_blocks_by_loops(vit, tokens, readout):
    for name, layer in surveyed(vit, tokens, SITES, readout).layers.items():
        assert torch.equal(layer.rivals, rivals_by_loops(vit, name, tokens, readout, 24))
        places = 7 * (1 if readout.kind == "cls" else 24)
        torch.testing.assert_close(layer.rivals.sum(1) / places, layer.win_rate)


def test_rivals_of_a_convolution_are_counted_at_every_pixel(resnet, photos):
    for name, layer in surveyed(resnet, photos, NCHW, Readout("max")).layers.items():
        assert torch.equal(layer.rivals, rivals_by_loops(resnet, name, photos, Readout("max"), 8))
        own = layer.rivals[torch.arange(len(layer.rivals)), torch.arange(len(layer.rivals)) % 8]
        assert not own.any()


def test_where_nothing_competes_there_are_no_rivals_and_what_is_not_zero_fired(photos):
    model, _ = create_backbone("resnet10t", 4, competitors=None)
    layer = "layer3.0.act1"
    found = surveyed(scale_up(model), photos, {layer: 1}, Readout("mean")).layers[layer]
    assert (found.competitors, found.rivals) == (None, None)
    for i, image in enumerate(photos):
        _, out, product, _ = alone(model, layer, image, asked(model, photos)[i])
        assert torch.equal(found.won[i], (out > 0).flatten(1).any(1))
        torch.testing.assert_close(found.values[i], out.mean((1, 2)).float())
        torch.testing.assert_close(found.contributions[i], product.sum((1, 2)).float(), rtol=1e-4, atol=1e-6)


# --- contributions -------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", READOUTS)
def test_contributions_are_gradient_times_activation_of_each_images_own_question(vit, tokens, readout):
    targets = asked(vit, tokens)
    found = surveyed(vit, tokens, SITES | {"blocks.1": 2}, readout)  # a block and a layer inside it
    for name, layer in found.layers.items():
        for i, image in enumerate(tokens):
            *_, product, best = alone(vit, name, image, int(targets[i]))
            assert found.predicted[i] == best
            torch.testing.assert_close(layer.contributions[i], product.sum(0).float(), rtol=1e-4, atol=1e-6)
        assert layer.contributions.abs().max() > 1e-2


def test_contributions_of_a_convolution_are_those_of_captum_layer_by_layer(resnet, photos):
    targets = asked(resnet, photos)
    found = surveyed(resnet, photos, NCHW, Readout("mean"))
    for name, layer in found.layers.items():
        for i, image in enumerate(photos):
            best = int(found.predicted[i])
            other = int(targets[i])

            def score(x, best=best, other=other):
                logits = resnet(x)
                return logits[:, best] - (logits.mean(1) if other in (-1, best) else logits[:, other])

            product = LayerGradientXActivation(score, resnet.get_submodule(name)).attribute(image[None])[0]
            expected = product.detach().sum((1, 2)).float()
            torch.testing.assert_close(layer.contributions[i], expected, rtol=1e-4, atol=1e-6)
            assert layer.contributions[i].abs().max() > 1e-4


def test_a_unit_that_fires_nowhere_contributes_nothing(vit, tokens):
    found = surveyed(vit, tokens, SITES, MEAN).layers[FIRST]
    nowhere = 0
    for i, image in enumerate(tokens):
        silent = ~torch.from_numpy(winners(alone(vit, FIRST, image, -1)[0], 24)).any(0)
        assert not found.contributions[i, silent].any()
        nowhere += int(silent.sum())
    assert nowhere > 10


def test_what_an_activation_after_the_layer_overwrites_was_read_in_time(photos):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).double().eval()  # fmt: skip
    found = surveyed(model, photos, {"1": 1, "2": 1}, Readout("mean"))
    out = model[1](model[0](photos)).detach()
    torch.testing.assert_close(found.layers["1"].values, out.mean((2, 3)).float())
    assert (found.layers["1"].values < found.layers["2"].values).all()
    # The rest is linear in what the activation passes, so that both layers contribute the same.
    torch.testing.assert_close(found.layers["1"].contributions, found.layers["2"].contributions)
    weight = model[5].weight.detach()
    best = found.predicted[2]  # its class is unknown
    expected = out[2].relu().mean((1, 2)) * (weight[best] - weight.mean(0))
    torch.testing.assert_close(found.layers["2"].contributions[2], expected.float())


# --- the pass ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_survey_does_not_depend_on_how_images_are_batched(vit, tokens, size):
    one, other = (surveyed(vit, tokens, SITES, MEAN, size=k) for k in (3, size))
    assert torch.equal(one.predicted, other.predicted)
    for name in SITES:
        for a, b in zip(one.layers[name], other.layers[name], strict=True):
            torch.testing.assert_close(a, b)


def test_all_layers_take_one_forward_and_one_backward_pass_per_batch(vit, tokens, monkeypatch):
    passes, gradients, real = [], [], torch.autograd.grad
    targets = asked(vit, tokens)
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: gradients.append(1) or real(*a, **k))
    handle = vit.register_forward_hook(lambda module, inputs, out: passes.append(len(out)))
    surveyed(vit, tokens, SITES, MEAN, targets)
    handle.remove()
    assert passes == [3, 3, 1]
    assert len(gradients) == 3


def test_a_survey_is_of_the_argmax_and_leaves_the_network_as_it_was(vit, tokens):
    vit.requires_grad_(True)
    vit.blocks[0].mlp.fc1.weight.requires_grad_(False)
    before, trained = hooks(vit), [p.requires_grad for p in vit.parameters()]
    state = {name: value.clone() for name, value in vit.state_dict().items()}
    calm = surveyed(vit, tokens, SITES, MEAN)
    vit.train()  # where winners are drawn
    found = survey(vit, in_batches(tokens, calm.targets), SITES, MEAN)
    assert torch.equal(found.layers[LAST].won, calm.layers[LAST].won)
    assert not vit.training
    assert hooks(vit) == before
    assert [p.requires_grad for p in vit.parameters()] == trained
    assert all(p.grad is None for p in vit.parameters())
    assert all(torch.equal(value, state[name]) for name, value in vit.state_dict().items())
    assert not found.layers[LAST].contributions.requires_grad
    assert not found.layers[LAST].values.requires_grad


def test_a_pass_that_fails_leaves_the_network_as_it_was(vit, tokens):
    vit.requires_grad_(True)
    before = hooks(vit)

    def batches():
        yield from in_batches(tokens[:2], torch.tensor([-1, -1]))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        survey(vit, batches(), SITES, CLS)
    assert hooks(vit) == before
    assert all(p.requires_grad for p in vit.parameters())


# --- refusals ------------------------------------------------------------------------------------


def test_a_survey_of_no_image_is_refused(vit):
    empty = in_batches(randn(0, 3, 16, 24), torch.empty(0, dtype=torch.long))
    with pytest.raises(InputError, match="no image of the probe set decodes"):
        survey(vit, empty, SITES, CLS)


def test_a_class_that_the_network_does_not_know_is_refused(vit, tokens):
    with pytest.raises(InputError, match="an image is of class 4, and the network tells 4 apart"):
        surveyed(vit, tokens[:1], SITES, CLS, torch.tensor([4]))


def test_a_network_that_returns_no_logits_is_refused(tokens):
    model, targets = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).double(), torch.full((7,), -1)
    with pytest.raises(InputError, match=r"needs a classifier: a network that returns logits \(n, C\)"):
        surveyed(model, tokens, {"1": 1}, MAX, targets)


def test_a_layer_called_twice_is_refused_by_its_name(tokens):
    act = nn.ReLU()
    layers = [nn.Flatten(), nn.Linear(1152, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 4)]
    with pytest.raises(InputError, match="the layer 2 is called at several places in one pass"):
        surveyed(nn.Sequential(*layers).double(), tokens, {"2": 1}, Readout("mean"), torch.full((7,), -1))
