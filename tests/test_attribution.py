"""First-order contributions: gradient times activation, against gradients taken by hand."""

import pytest
import torch
from torch import nn

from lwta import LWTA
from lwta.dissect.activations import Readout
from lwta.dissect.explain import explain
from lwta.errors import InputError
from tests.by_hand import (
    CLASSES,
    CLS,
    FIRST,
    LAST,
    MEAN,
    by_hand,
    fill,
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


@pytest.mark.parametrize("layer", [FIRST, LAST])
@pytest.mark.parametrize("readout", [CLS, MEAN], ids=lambda r: r.kind)
def test_contribution_is_gradient_times_activation_over_all_positions(vit, image, layer, readout):
    explained = vit_explained(vit, image, [layer], readout)
    _, out, gradient, value, target = by_hand(vit, layer, image)
    assert explained.target == CLASSES[target]
    assert explained.score == pytest.approx(value, abs=1e-9)
    for u in explained.layers[0].fired:
        expected = sum((gradient[t, u.unit] * out[t, u.unit]).item() for t in range(25))
        assert u.contribution == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("layer", ["layer1.0.act1", "layer4.0.act2"])
def test_contribution_of_a_feature_map_is_summed_over_its_pixels(resnet, photo, layer):
    found = map_explained(resnet, photo, layer, top=0).layers[0]
    _, out, gradient, *_ = by_hand(resnet, layer, photo)
    for u in found.fired:
        expected = sum((gradient[u.unit] * out[u.unit]).flatten().tolist())
        assert u.contribution == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["gelu", "topk"])
def test_contributions_of_dense_and_top_k_layers(image, kind):
    model = vit_network(kind="topk") if kind == "topk" else vit_network(competitors=None)
    found = vit_explained(model, image, [FIRST], MEAN, top=0).layers[0]
    _, out, gradient, *_ = by_hand(model, FIRST, image)
    assert len(found.fired) > 40
    for u in found.fired:
        assert u.contribution == pytest.approx((gradient * out)[:, u.unit].sum().item(), abs=1e-9)


def test_units_are_listed_by_the_magnitude_of_their_contribution(vit, image):
    for found in vit_explained(vit, image, readout=MEAN, top=0).layers:
        sizes = [abs(u.contribution) for u in found.fired]
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) > 16


@pytest.mark.parametrize("layers", [[FIRST], [FIRST, LAST], [LAST, FIRST, "blocks.0.mlp.fc1", "head"]])
def test_all_fired_units_of_all_layers_take_one_backward_pass(vit, image, layers):
    backward = []
    handle = vit.norm.register_full_backward_hook(lambda *_: backward.append(1))
    vit_explained(vit, image, layers, MEAN, samples=3)
    handle.remove()
    assert backward == [1]


def test_several_layers_at_once_are_what_each_is_alone(vit, image):
    layers = [LAST, "blocks.0", FIRST, "blocks.1.mlp.fc2"]
    together = vit_explained(vit, image, layers, MEAN, samples=4).to_dict()["layers"]
    for layer, found in zip(layers, together, strict=True):
        assert vit_explained(vit, image, [layer], MEAN, samples=4).to_dict()["layers"] == [found]


@pytest.mark.parametrize("layer", [FIRST, LAST])
def test_a_layer_states_what_all_its_units_contribute_beside_what_silencing_all_changes(vit, image, layer):
    found = vit_explained(vit, image, [layer], CLS, top=1).layers[0]
    seen, out, gradient, *_ = by_hand(vit, layer, image)
    assert found.contribution == pytest.approx((gradient * out).sum().item(), abs=1e-9)
    told = (
        f"its units together contribute {found.contribution:+.3f} to first order{{}}; silencing all of them "
        f"changes it by {found.silenced:+.3f}"
    )
    assert found.completeness("mean") == told.format("")
    fired = winners(seen[:1], 24)[0]
    listed = float((gradient * out)[:, fired].sum())  # of those that fired at the class token, everywhere
    assert found.completeness("cls") == told.format(f", {listed:+.3f} those that fired there")
    pooled = vit_explained(vit, image, [layer], MEAN).layers[0]
    assert pooled.contribution == pytest.approx(found.contribution, abs=1e-9)


def test_where_all_that_follows_is_linear_the_contributions_sum_to_the_exact_change(image):
    model = vit_network()
    model.norm = model.fc_norm = nn.Identity()
    found = vit_explained(model, image, [LAST], top=96).layers[0]
    assert sum(u.contribution for u in found.fired) == pytest.approx(-found.silenced, abs=1e-9)
    assert abs(found.silenced) > 0.01
    for u in found.fired:
        assert u.silenced == pytest.approx(-u.contribution, abs=1e-9)


def test_contributions_of_the_logits_themselves_are_the_score(vit, image):
    explained = vit_explained(vit, image, ["head"], Readout("mean"))
    (found,) = explained.layers
    assert found.contribution == pytest.approx(explained.score, abs=1e-9)
    assert found.silenced == pytest.approx(-explained.score, abs=1e-9)


# --- awkward networks ----------------------------------------------------------------------------


class Net(nn.Module):
    """Layers that lead nowhere, and operations that overwrite what others returned."""

    def __init__(self, in_place=False):
        super().__init__()
        self.conv, self.relu, self.gelu = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.GELU()
        self.aside, self.act, self.head = nn.Linear(8, 5), LWTA(4, 1), nn.Linear(8, 4)
        self.in_place = in_place

    def forward(self, x):
        if self.in_place:
            x.sub_(0.5).mul_(2)
        x = self.act(self.conv(x))
        x -= 1
        x = self.relu(x)
        self.aside(x.mean((2, 3)))
        return self.head(self.gelu(x).mean((2, 3)))


def net_explained(model, x, **options):
    sites = {"conv": 1, "act": 1, "relu": 1, "aside": -1, "gelu": 1}
    return explain(model, x, sites, Readout("mean"), class_names=CLASSES, **options)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_that_does_not_lead_to_the_logits_contributes_nothing(frozen):
    model = fill(Net(), 0.4).requires_grad_(not frozen)
    layers = {found.layer: found for found in net_explained(model, randn(3, 6, 6).double()).layers}
    aside = layers.pop("aside")
    assert len(aside.fired) == 5
    assert {u.contribution for u in aside.fired} == {aside.contribution} == {0}
    for changed in [aside.silenced, *(u.silenced for u in aside.fired)]:  # of passes of other sizes
        assert changed == pytest.approx(0, abs=1e-12)
    assert all(abs(found.contribution) > 1e-4 for found in layers.values())


def test_what_is_overwritten_after_a_layer_is_explained_as_it_was():
    model, x = fill(Net(), 0.4), randn(3, 6, 6).double()
    for found in net_explained(model, x).layers[:3]:
        _, out, gradient, *_ = by_hand(model, found.layer, x)
        for u in found.fired:
            assert u.value == pytest.approx(out[u.unit].mean().item(), abs=1e-6)
            expected = (gradient[u.unit] * out[u.unit]).sum().item()
            assert u.contribution == pytest.approx(expected, abs=1e-9)
    won = by_hand(model, "act", x)[1]
    assert ((won > 0) & (won < 1)).any()  # what is subtracted from, and then cut off at 0


def test_a_network_that_overwrites_its_input_changes_neither_the_image_nor_what_is_found():
    x = randn(3, 6, 6).double()
    plain = fill(Net(), 0.4)
    overwriting = fill(Net(in_place=True), 0.4)
    kept = x.clone()
    found = net_explained(overwriting, x, samples=3).to_dict()
    assert torch.equal(x, kept)
    assert found == net_explained(plain, (x - 0.5) * 2, samples=3).to_dict()


@pytest.mark.parametrize("inplace", [True, False])
def test_a_resnet_with_relus_in_place_between_its_competing_layers(photo, inplace):
    model = resnet_network(placement="inner")
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    assert relus
    for relu in relus:
        relu.inplace = inplace
    for found in map_explained(model, photo, "layer1.0.act1", "layer2.0.bn2", "layer2.0.act2", top=2).layers:
        _, out, gradient, *_ = by_hand(model, found.layer, photo)
        for u in found.fired:
            expected = (gradient[u.unit] * out[u.unit]).sum().item()
            assert u.contribution == pytest.approx(expected, abs=1e-9)


def test_a_compiled_network_is_explained_as_the_same_network_not_compiled(image):
    model = vit_network(competitors=None)  # what pytest wraps of lwta would not be compiled
    model.compile(backend="eager")
    with torch.no_grad():  # what is compiled by now sees no new hooks
        for count in (1, 16):
            model(image.expand(count, -1, -1, -1))
    found = vit_explained(model, image).to_dict()
    assert found == vit_explained(vit_network(competitors=None), image).to_dict()
    assert all(abs(u["silenced"]) > 1e-6 for u in found["layers"][0]["fired"][:16])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_in_half_precision_are_compared_in_single_precision(dtype):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), LWTA(4, -1), nn.Linear(12, 4))
    fill(model, 0.3).to(dtype)
    with torch.no_grad():
        model[3].bias.copy_(torch.tensor([20.0, 19.875, 20.25, 19.0]))
    x = randn(3, 2, 2).to(dtype)
    logits = model(x[None]).float()[0].tolist()
    found = explain(model, x, {"2": -1}, Readout("mean"), class_names=CLASSES, samples=2)
    best = max(range(4), key=lambda k: logits[k])
    assert found.target == CLASSES[best]
    assert found.score == pytest.approx(logits[best] - sum(logits) / 4, abs=1e-5)
    assert sum(p for _, p in found.classes) == pytest.approx(1, abs=1e-6)
    assert found.stability.deviation >= 0
    assert len(found.layers[0].fired) == 3


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 8, 2), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(12, 1)),
    ],
    ids=["maps", "one logit"],
)
def test_what_is_no_classifier_is_refused(model):
    with pytest.raises(InputError, match=r"needs a classifier: .* logits \(n, C\) of at least two classes"):
        explain(model.eval(), randn(3, 2, 2), {"1": 1}, Readout("mean"), class_names=["one"])


def test_a_layer_that_is_called_twice_is_refused():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Flatten(), relu, nn.Linear(12, 4), relu).eval()
    with pytest.raises(InputError, match="the layer 1 is called 2 times in one pass"):
        explain(model, randn(3, 2, 2), {"1": 1}, Readout("mean"), class_names=CLASSES)
