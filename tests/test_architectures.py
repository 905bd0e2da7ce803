"""Networks of timm made sparse, as docs/architectures.md lists them, and what timm's names promise."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import create_feature_extractor
from torch import nn

from benchmarks.architectures import DOCS, check, fires_and_learns, globs, page, read
from lwta import LWTA
from lwta.errors import InputError
from lwta.layers import competitions
from models.timm_names import PREFIX

ROWS = read().set_index("network", drop=False)
#: The others take seconds each; the command that makes the table has run them.
SMALL = [name for name, row in ROWS.iterrows() if row["swapped"] and row["parameters"] < 12_000_000]
NETS = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
    "resnet10t": {},
    "test_convnext": {},
    "test_efficientnet": {},
}
nets = pytest.mark.parametrize("name", NETS)


def build(name, **options):
    torch.manual_seed(0)
    options = NETS[name] | options
    return timm.create_model(PREFIX + name, **options).eval()


def images(channels=3, count=2):
    return torch.randn(count, channels, 32, 32, generator=torch.Generator().manual_seed(1))


def test_there_are_forty_of_twelve_families():
    assert len(SMALL) >= 40
    assert ROWS.loc[SMALL, "family"].nunique() >= 12


@pytest.mark.parametrize("name", SMALL)
def test_one_unit_of_each_block_fires_and_every_weight_learns(name):
    found = check(name)
    assert found == {key: ROWS.loc[name, key] for key in found}


def test_the_page_is_of_the_table():
    assert page(read()) == (DOCS / "architectures.md").read_text()


def test_names_of_sites_are_shortened_where_their_numbers_vary():
    names = ["stages.0.blocks.0.mlp.act", "stages.0.blocks.1.mlp.act", "head.act", "layer1.act", "layer2.act"]
    assert globs(names) == ["stages.0.blocks.*.mlp.act", "head.act", "layer*.act"]
    assert globs(names, ["layer3.act"])[2:] == ["layer1.act", "layer2.act"]
    twice = ["b.0.bn1.act", "b.1.bn2.act", "b.2.bn2.act"]
    assert globs(twice, ["b.0.bn3.act", "c.0.bn2.act"]) == ["b.0.bn1.act", "b.*.bn2.act"]


def test_the_check_finds_what_does_not_compete_as_it_should():
    for wrong in (nn.GELU(), LWTA(2, 3), nn.Identity()):
        model = timm.create_model("lwta_test_convnext", num_classes=5)
        act = model.get_submodule("stages.0.blocks.0.mlp.act")
        fires_and_learns(model, 32)
        act.forward = wrong.forward
        with pytest.raises(AssertionError, match="stages.0.blocks.0.mlp.act"):
            fires_and_learns(model, 32)
    model = timm.create_model("lwta_test_convnext", num_classes=5)
    model.head.fc.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    with pytest.raises(AssertionError, match="no gradient reaches head.fc.unused"):
        fires_and_learns(model, 32)


def test_every_architecture_has_a_sparse_name():
    names = set(timm.list_models())
    dense = {name for name in names if not name.startswith(PREFIX)}
    assert names - dense == {PREFIX + name for name in dense}
    assert len(dense) > 1000
    tags = {name.removeprefix(PREFIX) for name in timm.list_models(f"{PREFIX}*", pretrained=True)}
    assert tags == {name for name in timm.list_models(pretrained=True) if not name.startswith(PREFIX)}


def test_a_sparse_name_takes_what_the_swap_and_the_layer_do():
    model = build("resnet10t", competitors={"layer1.*": 4}, active_fraction=0.1, placement="inner", noise=0.3)
    found = {name: (layer.competitors, layer.noise) for name, layer in competitions(model).items()}
    assert found == {f"layer{k}.0.act1": (4 if k == 1 else 8, 0.3) for k in (1, 2, 3, 4)}
    assert build("resnet10t", kind="relu", placement="inner").swap_report.swapped[0].kind == "ReLU"
    by_default = build("vit_tiny_patch16_224", competitors=None)
    assert {layer.competitors for layer in competitions(by_default).values()} == {24}
    with pytest.raises(InputError, match="5 competitors do not divide the 64 units of layer1.0.act1"):
        build("resnet10t", competitors=5)
    with pytest.raises(RuntimeError, match="Invalid pretrained tag .none. for resnet10t"):
        timm.create_model("lwta_resnet10t.none")


@nets
def test_heads_and_channels_are_chosen_as_in_timm(name):
    x, width = images(), build(name).num_features
    assert build(name, num_classes=0)(x).shape == (2, width)
    assert build(name, in_chans=5)(images(5)).shape == (2, 1000)
    model = build(name, num_classes=7)
    model.reset_classifier(4)
    assert model(x).shape == (2, 4)
    features = model.forward_features(x)
    assert build(name, num_classes=0, global_pool="avg")(x).shape == (2, width)
    assert build(name, num_classes=0, global_pool="")(x).shape == features.shape
    assert torch.equal(model.forward_head(features), model(x))


@nets
def test_features_are_those_on_the_way(name):
    model, x = build(name), images()
    last, between = model.forward_intermediates(x, norm=False)
    assert torch.equal(last, model.forward_features(x))
    depth = len(between)
    features = build(name, features_only=True, out_indices=list(range(depth)))
    features.load_state_dict(_renamed(model, features))
    for a, b in zip(features(x), between, strict=True):
        assert torch.equal(a, b)
    if hasattr(model, "get_intermediate_layers"):
        (layer,) = model.get_intermediate_layers(x, n=1)
        assert torch.equal(layer, between[-1].flatten(2).transpose(1, 2))


@pytest.mark.parametrize("name", ["repvgg_a0", "vgg11"])
def test_a_network_competes_alike_with_and_without_its_head(name):
    torch.manual_seed(0)
    whole = timm.create_model(PREFIX + name, num_classes=5).eval()
    headless = timm.create_model(PREFIX + name, num_classes=0).eval()
    assert competitions(headless).keys() == competitions(whole).keys()
    headless.load_state_dict(whole.state_dict(), strict=False)
    whole.reset_classifier(0)
    assert torch.equal(headless(images()), whole(images()))


@pytest.mark.parametrize("kind", ["list", "dict", "getter", "hook", "fx"])
def test_features_of_any_kind_hold_what_the_weights_do(kind, tmp_path):
    whole = build("resnet10t")
    for layer in competitions(whole).values():
        layer.spread.fill_(3)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    source = {"file": str(tmp_path / "w.safetensors")}
    part = build(
        "resnet10t", pretrained=True, pretrained_cfg_overlay=source, features_only=True, feature_cls=kind
    )
    assert [float(layer.spread) for layer in competitions(part).values()] == [3] * 4
    assert [x.shape for x in _several(part(images()))] == [
        x.shape for x in _several(timm.create_model("resnet10t", features_only=True)(images()))
    ]


def _several(features):
    return list(features.values()) if isinstance(features, dict) else list(features)


def test_features_that_hang_on_an_activation_are_all_there():
    shapes = [
        [x.shape for x in timm.create_model(f"{prefix}xception41", features_only=True)(images())]
        for prefix in ("", PREFIX)
    ]
    assert len(shapes[0]) == 5
    assert shapes[0] == shapes[1]


def _renamed(model, features):
    """Weights of a network under the names that one of features has for them."""
    flat = {name.replace(".", "_"): value for name, value in model.state_dict().items()}
    return {name: flat[name.removeprefix("model.").replace(".", "_")] for name in features.state_dict()}


@nets
def test_a_graph_of_features_has_the_competitions_as_its_leaves(name):
    model, x = build(name), images()
    # timm's norms with an activation are leaves themselves.
    place = "blocks.4" if name == "test_efficientnet" else list(competitions(model))[-1]
    seen = []
    hook = model.get_submodule(place).register_forward_hook(lambda _module, _x, out: seen.append(out))
    model(x)
    hook.remove()
    graph = create_feature_extractor(model, {place: "values"})
    (values,) = graph(x).values()
    assert torch.equal(values, seen[0])
    assert competitions(graph).keys() == competitions(model).keys()


@nets
def test_weights_go_from_one_to_another(name):
    first, second, x = build(name), build(name), images()
    first.train()(images(count=4))  # competitions have seen something
    with torch.no_grad():
        for weight in first.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(x), second(x))


@nets
@pytest.mark.usefixtures("compiler")
def test_a_sparse_name_is_exported(name):
    model = build(name)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: torch.export.Dim("images")},))
    torch.testing.assert_close(program.module()(images(count=3)), model(images(count=3)), rtol=0, atol=1e-5)
