"""What a swap reaches, on which axis, and what it refuses."""

from fnmatch import fnmatchcase

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from lwta import LWTA, TopK
from lwta.errors import InputError
from lwta.layers import watch
from models.backbone import create_backbone
from models.input_size import image_size
from models.placement import default_sites
from models.sites import find_sites
from models.swap import swap
from models.trace import trace

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}

# name, arguments, placement, sites swapped and left, axis
FAMILIES = [
    ("vit_tiny_patch16_224", VIT, "all", 2, 0, -1),
    ("deit_tiny_patch16_224", VIT, "all", 2, 0, -1),
    ("deit_tiny_distilled_patch16_224", VIT, "all", 2, 0, -1),
    ("resnet18", {}, "all", 17, 0, 1),
    ("resnet18", {}, "inner", 8, 9, 1),
    ("resnet50", {}, "all", 49, 0, 1),
    ("resnet50", {}, "inner", 32, 17, 1),
    ("resnet18", {}, "last", 8, 9, 1),
    ("resnet50", {}, "last", 16, 33, 1),
]


@pytest.mark.parametrize(("name", "args", "placement", "swapped", "left", "dim"), FAMILIES)
def test_each_family_fires_one_of_u_at_every_site(name, args, placement, swapped, left, dim):
    model, report = create_backbone(name, 5, backbone_args=args, competitors=8, placement=placement)
    assert (len(report.swapped), len(report.left)) == (swapped, left)
    assert {site.dim for site in report.swapped} == {dim}
    x = torch.randn(2, 3, 16, 16) if args else torch.randn(2, 3, 64, 64)
    with torch.no_grad(), watch(model.eval(), {site.name: dim for site in report.swapped}) as calls:
        model(x)
    for site in report.swapped:
        (firing,) = calls[site.name]
        assert firing.fired.shape[firing.dim] == site.units
        assert (firing.fired.unflatten(firing.dim, (-1, 8)).sum(firing.dim + 1) == 1).all()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_last_activation_of_a_block_is_read_by_its_last_convolution(name):
    model = timm.create_model(name)
    read = []
    convolution = "conv3" if name == "resnet50" else "conv2"
    for place in default_sites(model, trace(model, (64, 64)), "last"):
        block, out = model.get_submodule(place.rpartition(".")[0]), []
        model.get_submodule(place).register_forward_hook(lambda _m, _i, o, out=out: out.append(o))
        block.get_submodule(convolution).register_forward_pre_hook(
            lambda _m, i, out=out: read.append(i[0] is out[-1])
        )
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, 32, 32))
    assert read == [True] * (16 if name == "resnet50" else 8)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_every_parameter_gets_a_gradient(name):
    args = VIT if "vit" in name else {}
    model, _ = create_backbone(name, 5, backbone_args=args, competitors=8)
    model.train()(
        torch.randn(4, 3, 64, 64) if not args else torch.randn(4, 3, 16, 16)
    ).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_weights_stay_and_keep_their_names():
    before = timm.create_model("resnet18", num_classes=5)
    weights = {key: value.clone() for key, value in before.state_dict().items()}
    report = swap(before, competitors=8)
    after = before.state_dict()
    added = {f"{site.name}.competition.{name}" for site in report.swapped for name in ("spread", "batches")}
    assert after.keys() == weights.keys() | added
    assert all(torch.equal(after[key], weights[key]) for key in weights)


def test_a_local_checkpoint_is_kept_through_the_swap(tmp_path):
    torch.manual_seed(0)
    dense = timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT)
    torch.save(dense.state_dict(), tmp_path / "dense.pth")
    sparse, _ = create_backbone(
        "vit_tiny_patch16_224", 5, backbone_args=VIT | {"checkpoint_path": str(tmp_path / "dense.pth")}
    )
    assert torch.equal(sparse.blocks[1].mlp.fc1.weight, dense.blocks[1].mlp.fc1.weight)


def test_the_trace_leaves_mode_and_statistics_alone():
    model = timm.create_model("resnet18", num_classes=5).train()
    find_sites(model, (64, 64))
    assert model.training
    assert model.bn1.num_batches_tracked == 0
    assert not model.act1._forward_hooks
    assert not model.act1._forward_pre_hooks


def test_an_axis_follows_the_layer_not_the_shape():
    class Square(nn.Module):
        """Tokens and maps whose axes all have the same size."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.act1 = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
            self.linear, self.act2, self.act3 = nn.Linear(8, 8), nn.GELU(), nn.SiLU()

        def forward(self, x):
            x = self.act1(self.norm(self.conv(x)))
            x = self.act2(self.linear(x))
            return self.act3(self.linear(x) + x)

    sites = {site.name: site.dim for site in find_sites(Square(), (8, 8))}
    assert sites == {"act1": 1, "act2": -1, "act3": -1}


class Rearranged(nn.Module):
    """An activation fed by a tensor that an operation rearranged."""

    def __init__(self, rearrange):
        super().__init__()
        self.conv, self.act, self.rearrange = nn.Conv2d(3, 8, 1), nn.ReLU(), rearrange

    def forward(self, x):
        return self.act(self.rearrange(self.conv(x)))


def test_a_permutation_is_followed():
    model = Rearranged(lambda x: x.permute(0, 2, 3, 1))
    swap(model, competitors=4, sites=["act"], image_size=(8, 8))
    assert isinstance(model.act, LWTA)
    assert model.act.competition.dim == -1


def test_an_axis_that_cannot_be_told_is_asked_for():
    model = Rearranged(lambda x: F.pixel_shuffle(x, 2))  # four units become four positions of one
    with pytest.raises(InputError, match="axis of the units of act cannot be told .* set model.dim"):
        swap(model, competitors=4, sites=["act"], image_size=(8, 8))
    assert isinstance(model.act, nn.ReLU)
    swap(model, competitors=4, sites=["act"], dim=-1, image_size=(8, 8))
    assert isinstance(model.act, LWTA)
    assert model.act.competition.dim == -1


def test_a_sum_of_tensors_that_disagree_tells_no_axis():
    class Disagreeing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear, self.act = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.ReLU()
            self.norm, self.act2 = nn.LayerNorm([8, 8, 8]), nn.ReLU()

        def forward(self, x):
            x = self.conv(x)
            return self.act(x + self.linear(x)) + self.act2(self.norm(x))

    assert [site.dim for site in find_sites(Disagreeing(), (8, 8))] == [None, None]


def test_a_dense_twin_is_measured_at_the_sites_that_would_compete():
    dense, sparse = (
        swap(timm.create_model("resnet18", num_classes=5), competitors=u, placement="inner")
        for u in (None, 8)
    )
    assert [site.name for site in dense.chosen] == [site.name for site in sparse.swapped]
    assert dense.swapped == []


def test_a_module_called_twice_is_refused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, x):
            return self.act(self.fc(self.act(self.fc(x))))

    with pytest.raises(InputError, match="act is called 2 times in one pass"):
        swap(Shared(), competitors=3, sites=["act"], image_size=(8, 8))


def test_functional_activations_are_not_claimed():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return F.relu(self.fc(x))

    with pytest.raises(InputError, match=r"sites '\*' matches no activation; the network has: none"):
        swap(Functional(), competitors=4, sites=["*"], image_size=(8, 8))


def test_a_refused_swap_leaves_the_network_whole():
    model = timm.create_model("resnet18", num_classes=5, channels=[48, 64, 96, 192])
    with pytest.raises(
        InputError, match="48 competitors do not divide the 64 units of layer2.0.act1; .* 32, 64"
    ):
        swap(model, competitors=48)
    assert not [m for m in model.modules() if isinstance(m, LWTA)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "maxout"}, "activation is one of lwta, topk, relu, gelu, not 'maxout'"),
        ({"kind": "gelu", "competitors": 8}, "gelu has no competitors"),
        ({"sites": ["blocks.9.*"]}, r"sites 'blocks.9.\*' matches no activation"),
        ({"placement": "outer"}, "placement is one of all, inner, last, not 'outer'"),
        ({"competitors": 1}, "at least 2 competitors, got 1; null is the dense network"),
    ],
)
def test_contradictions_are_refused(options, sentence):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT)
    with pytest.raises(InputError, match=sentence):
        swap(model, image_size=(16, 16), **options)


def test_activations_that_blocks_share_are_asked_for():
    with pytest.raises(
        InputError, match="layer1.0.relu is called 5 times in one pass; name model.sites, of act1"
    ):
        swap(timm.create_model("res2next50", num_classes=5), active_fraction=0.04, image_size=(32, 32))


def test_a_plain_sequence_competes_wherever_a_layer_reads():
    model = timm.create_model("vgg11", num_classes=5)
    report = swap(model, competitors=32, image_size=(32, 32))
    convolutions = [name for name, module in model.features.named_children() if isinstance(module, nn.Conv2d)]
    after = [f"features.{int(name) + 1}" for name in convolutions]
    assert [site.name for site in report.swapped] == [*after, "pre_logits.act1", "pre_logits.act2"]


GATED = [
    ("seresnet18", ["layer*.se.*"]),
    ("efficientnet_b0", ["blocks.*.se.*"]),
    ("regnety_002", ["*.se.*"]),
    ("resnest14d", ["*.conv2.act1"]),
    ("skresnet18", ["*.attn.act"]),
    ("legacy_seresnet18", ["*.se_module.*"]),
    ("ese_vovnet19b_slim_dw", ["*.attn.gate"]),
]


@pytest.mark.parametrize(("name", "globs"), GATED)
def test_gates_never_compete(name, globs):
    model = timm.create_model(name, num_classes=5)
    with pytest.raises(InputError, match="matches gates alone, which weigh units; they never compete"):
        swap(model, active_fraction=0.04, sites=globs, image_size=(64, 64))
    if name != "legacy_seresnet18":  # whose blocks share their activations
        report = swap(model, active_fraction=0.04, placement="all", image_size=(64, 64))
        left = {site.name for site in report.left}
        gated = {site.name for site in report.left if any(fnmatchcase(site.name, glob) for glob in globs)}
        assert gated
        assert left == gated | {n for n in left if n.endswith(".gate") or n.startswith("conv1.")}


def test_a_block_may_squash_without_being_a_gate():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
            self.act, self.squash = nn.ReLU(), nn.Sigmoid()

        def forward(self, x):
            a, b, c, d = self.layers
            return d(self.squash(c(b(self.act(a(x))))))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, 32, 1), nn.ModuleList([Block()])

        def forward(self, x):
            return self.blocks[0](self.stem(x).flatten(2).mT)

    report = swap(Net(), competitors=8, image_size=(4, 4))
    assert [site.name for site in report.swapped] == ["blocks.0.act"]
    assert [site.name for site in report.left] == ["blocks.0.squash"]


def test_an_active_fraction_takes_the_nearest_divisor_of_each_width():
    model = timm.create_model("efficientnet_b0", num_classes=5)
    report = swap(model, active_fraction=0.04, image_size=(64, 64))
    assert {(site.units, site.competitors) for site in report.swapped} == {
        (32, 32), (96, 24), (144, 24), (240, 24), (480, 24), (672, 24), (1152, 24)
    }  # fmt: skip
    assert all(
        model.get_submodule(site.name).competition.competitors == site.competitors for site in report.swapped
    )


def test_globs_give_sites_their_own_number_of_competitors():
    report = swap(
        timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT),
        competitors={"blocks.0.*": 12, "*": 24},
    )
    assert [site.competitors for site in report.swapped] == [12, 24]
    model = timm.create_model("rexnet_100", num_classes=5)
    report = swap(model, competitors={"features.13.*": 6}, active_fraction=0.04, image_size=(64, 64))
    assert {site.competitors for site in report.swapped if site.name.startswith("features.13.")} == {6}
    assert len(report.swapped) == 16


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"competitors": {"blocks.0.*": 12}}, "no glob of competitors matches blocks.1.mlp.act; add one"),
        (
            {"competitors": {"blocks.7.*": 12, "*": 2}},
            r"'blocks.7.\*' matches no site; they are blocks.0.mlp",
        ),
        ({"competitors": {}}, "competitors names no site; null is the dense network"),
        ({"competitors": {"*": 1}}, "at least 2 competitors, got 1"),
        ({"active_fraction": 0.6}, "active_fraction lies above 0 and is at most 0.5, not 0.6"),
        ({"active_fraction": 0.001}, "of the 96 units of blocks.0.mlp.act no number near 1e.03 can compete"),
        ({"kind": "relu", "competitors": None, "active_fraction": 0.04}, "relu has no competitors"),
    ],
)
def test_numbers_that_fit_no_site_are_refused(options, sentence):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT)
    with pytest.raises(InputError, match=sentence):
        swap(model, image_size=(16, 16), **options)
    assert not [m for m in model.modules() if isinstance(m, LWTA)]


def test_a_width_without_a_near_divisor_names_those_it_has():
    model = timm.create_model("csatv2", num_classes=5)
    with pytest.raises(InputError, match="1544 units of stages.3.1.act .* nearest are 2, 4, 8, 193; give"):
        swap(model, active_fraction=0.04, image_size=(64, 64))


def test_an_activation_made_of_others_is_swapped_whole():
    model = timm.create_model("poolformerv2_s12", num_classes=5)
    report = swap(model, active_fraction=0.04, image_size=(64, 64))
    assert all(isinstance(model.get_submodule(site.name), LWTA) for site in report.swapped)
    assert not [name for name, _ in model.named_modules() if name.endswith("mlp.act.relu")]


@pytest.mark.parametrize(("kind", "module"), [("relu", nn.ReLU), ("gelu", nn.GELU), ("topk", TopK)])
def test_baselines_take_the_same_sites(kind, module):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT)
    report = swap(model, kind, 8 if kind == "topk" else None, image_size=(16, 16))
    assert {type(block.mlp.act) for block in model.blocks} == {module}
    assert {site.kind for site in report.swapped} == {module.__name__}
    if kind == "topk":
        assert model.blocks[0].mlp.act.k == 96 // 8


def test_null_competitors_leave_the_network_dense():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT)
    report = swap(model, "lwta", None, image_size=(16, 16))
    assert report.swapped == []
    assert str(report) == (
        "Activations: nothing at 0 of 2 sites; left as built: blocks.0.mlp.act, blocks.1.mlp.act"
    )
    assert [site.name for site in report.left] == ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    assert isinstance(model.blocks[0].mlp.act, nn.GELU)


def test_a_swapped_network_keeps_the_mode_of_each_module_and_needs_no_image_size():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT).eval()
    model.blocks[1].train()
    swap(model, competitors=8)
    for block, mode in zip(model.blocks, (False, True), strict=True):
        assert {module.training for module in block.modules()} == {mode}
        assert block.mlp.act.competition.training is mode
    assert model.training is False


def test_a_backbone_knows_its_image_size():
    assert image_size(timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT)) == (16, 16)
    assert image_size(timm.create_model("resnet18", num_classes=5)) == (224, 224)


def test_an_activation_under_two_names_is_swapped_under_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.head = nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 5, 1)
            self.body = nn.Sequential(self.first, self.act, self.head)

        def forward(self, x):
            return self.body(x).mean((2, 3))

    model = Twice()
    report = swap(model, competitors=8, image_size=(8, 8))
    assert model.act is model.body[1]
    assert isinstance(model.act, LWTA)
    with watch(model, {site.name: site.dim for site in report.swapped}) as calls:
        model(torch.randn(2, 3, 8, 8))
    assert [len(firings) for firings in calls.values()] == [1]


def test_who_watches_an_activation_watches_what_takes_its_place():
    model, seen = timm.create_model("resnet10t"), []
    model.layer1[0].act1.register_forward_hook(lambda _module, x, out: seen.append((x[0], out)))
    model.layer1[0].act1.register_forward_pre_hook(lambda *_: seen.append("before"))
    swap(model.eval(), competitors=8)
    seen.clear()
    model(torch.randn(1, 3, 32, 32))
    before, (x, out) = seen
    assert before == "before"
    assert torch.equal(out, model.layer1[0].act1(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_network_of_any_precision_is_swapped(dtype):
    for name, args in (("vit_tiny_patch16_224", VIT), ("resnet10t", {})):
        model = timm.create_model(name, **args).to(dtype)
        assert swap(model, competitors=8).swapped
        assert {value.dtype for value in model.parameters()} == {dtype}


def test_a_network_without_memory_is_swapped():
    with torch.device("meta"):
        model = timm.create_model("lwta_vit_tiny_patch16_224", **VIT)
    assert [site.competitors for site in model.swap_report.swapped] == [24, 24]


def test_channels_are_those_of_the_network():
    model = timm.create_model("resnet10t", in_chans=1)
    assert len(swap(model, competitors=8).swapped) == 4
    sparse = timm.create_model("lwta_resnet10t", pretrained_cfg_overlay={"input_size": (2, 32, 32)})
    assert sparse(torch.zeros(2, 2, 32, 32)).shape == (2, 1000)


@pytest.mark.parametrize("competitors", [np.int64(8), torch.tensor(8)])
def test_any_whole_number_is_one(competitors):
    model = timm.create_model("resnet10t")
    swap(model, competitors=competitors)
    assert model.layer1[0].act1.competition.competitors == 8
    sparse = timm.create_model("lwta_resnet10t", competitors=competitors)
    assert {site.competitors for site in sparse.swap_report.swapped} == {8}


@pytest.mark.parametrize("competitors", [12.0, "12", {"*": 2.5}])
def test_what_is_no_whole_number_is_refused(competitors):
    for make in (
        lambda: swap(timm.create_model("resnet10t"), competitors=competitors),
        lambda: timm.create_model("lwta_resnet10t", competitors=competitors),
    ):
        with pytest.raises(InputError, match="competitors are a whole number, or several by glob, not"):
            make()
    with pytest.raises(InputError, match="competitors and active_fraction both say U"):
        timm.create_model("lwta_resnet10t", competitors=8, active_fraction=0.1)


def test_a_network_of_functions_alone_has_nothing_to_swap():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 5, 1)

        def forward(self, x):
            return self.head(F.relu(self.first(x))).mean((2, 3))

    with pytest.raises(InputError, match="no activation that is a module.*give its functional activations"):
        swap(Functional(), image_size=(8, 8))


def test_a_network_that_takes_other_images_says_so():
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 5))
    with pytest.raises(
        InputError, match=r"on images of 3 x 224 x 224 fails \(RuntimeError: .*; give image_size"
    ):
        swap(net, competitors=8)
    assert len(swap(net, competitors=8, image_size=(28, 28), channels=1).swapped) == 1


def test_one_glob_may_stand_alone():
    model = timm.create_model("resnet10t")
    assert [site.name for site in swap(model, competitors=8, sites="layer1.*").swapped] == [
        "layer1.0.act1",
        "layer1.0.act2",
    ]
    with pytest.raises(InputError, match="at most 0.5, not '0.04'"):
        swap(model, active_fraction="0.04")


def test_where_every_activation_is_shared_the_refusal_names_none_of_them():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.act = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3)), nn.ReLU()

        def forward(self, x):
            for layer in self.layers:
                x = self.act(layer(x))
            return x.mean((2, 3))

    with pytest.raises(InputError, match="act is called 3 times in one pass; give each call a module"):
        swap(Shared(), image_size=(8, 8))


def test_a_shared_activation_becomes_a_baseline():
    model = timm.create_model("res2next50")
    with pytest.raises(InputError, match="layer1.0.relu is called 5 times"):
        swap(model, sites=["layer1.0.relu"], image_size=(32, 32))
    report = swap(model, "gelu", None, sites=["*"], image_size=(32, 32))
    assert {site.kind for site in report.swapped} == {"GELU"}
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())


def test_weights_of_a_dense_network_fit_a_sparse_one():
    dense, sparse = timm.create_model("resnet10t"), timm.create_model("lwta_resnet10t")
    layer = sparse.layer1[0].act1.competition
    sparse.train()(torch.randn(4, 3, 32, 32))
    assert layer.batches == 1
    sparse.load_state_dict(dense.state_dict())
    assert (layer.batches, layer.spread) == (0, 1)
    damaged = sparse.state_dict()
    del damaged["layer1.0.act1.competition.spread"]
    with pytest.raises(RuntimeError, match="Missing key.*layer1.0.act1.competition.spread"):
        sparse.load_state_dict(damaged)
