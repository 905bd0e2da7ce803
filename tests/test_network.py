"""Networks of timm, of torchvision and of a function, with weights from files and without."""

import hashlib
import pickle
import sys
import urllib.error

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import models.zoo
from lwta.errors import InputError
from models.network import load_network
from models.run import head_readout, patch_grid
from models.weights import load_weights, weights_hash

VIT = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}

MODULE = """
from torch import nn
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

class Holder:
    @staticmethod
    def small(width=8):
        return small(width)

def small(width=8):
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), *pool, nn.Linear(width, 4))

def with_transform():
    steps = [Resize((20, 24)), ToTensor(), Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))]
    return small(), Compose(steps)

def bare_transform():
    return small(), Compose([Resize((20, 24)), ToTensor()])

def grey():
    return small(), lambda image: ToTensor()(image.convert("L"))

def pixels():
    return small(), lambda image: image

def number():
    return 3

def broken():
    raise KeyError("no such\\nthing")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module in the current folder that makes networks."""
    (tmp_path / "own_networks.py").write_text(MODULE)
    (tmp_path / "unwell.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("own_networks", "unwell"):
        sys.modules.pop(name, None)


def small(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)
    )


def test_timm_networks_come_with_their_own_transform():
    net = load_network("timm:vit_tiny_patch16_224", "random", "cpu", args=VIT)
    assert not net.model.training
    assert net.name == "timm:vit_tiny_patch16_224"
    assert (net.mean, net.std) == ((0.5,) * 3, (0.5,) * 3)
    pixels = net.transform(Image.new("RGB", (50, 40), (255, 255, 255)))
    assert pixels.shape == (3, *net.image_size) == (3, 32, 32)
    assert pixels.min() == pixels.max() == 1
    assert net.model(pixels[None]).shape == (1, 5)
    assert net.class_names is None


def test_an_image_size_reaches_network_and_transform():
    net = load_network("timm:vit_tiny_patch16_224", "random", image_size=48)
    assert net.image_size == (48, 48)
    assert net.model(net.transform(Image.new("RGB", (9, 9)))[None]).shape == (1, 1000)
    assert load_network("timm:resnet18", "random", image_size=64).image_size == (64, 64)
    assert load_network("torchvision:resnet18", "random", image_size=64).image_size == (64, 64)
    small_vit = load_network("torchvision:vit_b_32", "random", args={"image_size": 32})
    assert small_vit.image_size == (32, 32)
    with pytest.raises(InputError, match="takes images of .224, 224. pixels only; leave image_size away"):
        load_network("timm:mixer_s16_224", "random", image_size=64)


def test_random_weights_are_the_same_every_time_and_leave_the_random_state_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = load_network("torchvision:squeezenet1_1", "random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert load_network("torchvision:squeezenet1_1", "random").weights == first.weights
    assert first.class_names is None
    assert first.mean == (0.485, 0.456, 0.406)


def test_the_hash_follows_names_types_shapes_and_bytes():
    torch.manual_seed(0)
    model = small()
    known = weights_hash(model)
    assert weights_hash(model) == known
    changed = [small() for _ in range(4)]
    for other in changed:
        other.load_state_dict(model.state_dict())
    assert {weights_hash(other) for other in changed} == {known}
    with torch.no_grad():
        changed[0][4].bias[3] += 1e-6
    changed[1].double()
    changed[2][4].bias = nn.Parameter(changed[2][4].bias[None].detach())
    changed[3] = nn.Sequential(changed[3], nn.Identity())
    assert len({known, *(weights_hash(other) for other in changed)}) == 5
    assert weights_hash(small().to(torch.bfloat16)) != known


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth", "bin", "ckpt"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "module.model."])
def test_a_file_of_weights_is_loaded(own, suffix, wrapper, prefix):
    torch.manual_seed(3)
    wanted = small()
    state = {prefix + name: value for name, value in wanted.state_dict().items()}
    if suffix == "safetensors":
        save_file(state, own / "w.safetensors")
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, own / f"w.{suffix}")
    net = load_network("own_networks:small", str(own / f"w.{suffix}"))
    assert net.weights == weights_hash(wanted)
    assert torch.equal(net.model[0].weight, wanted[0].weight)


class Runs:
    """Pickles into a call."""

    def __reduce__(self):
        return (pytest.fail, ("the pickled code was run",))


def test_pickled_code_is_never_run(own):
    (own / "w.pt").write_bytes(pickle.dumps({"state_dict": Runs()}))
    torch.save({"state_dict": Runs()}, own / "v.pt")
    for name in ("w.pt", "v.pt"):
        with pytest.raises(InputError, match="holds code, which is never run .*; save the state_dict"):
            load_network("own_networks:small", str(own / name))


def test_weights_that_do_not_fit_are_refused_by_name(own):
    state = small().state_dict()
    torch.save({"extra": torch.zeros(1), **dict(list(state.items())[1:])}, own / "names.pt")
    torch.save(small(9).state_dict(), own / "shapes.pt")
    torch.save({"epoch": 3}, own / "none.pt")
    torch.save(state, own / "w.npy")
    (own / "cut.safetensors").write_bytes(b"version https")
    messages = {
        "names.pt": r"do not fit: 1 missing \(0.weight\) and 1 that the network does not have \(extra\);",
        "shapes.pt": "do not fit: 0.weight is 9 x 3 x 3 x 3 there and 8 x 3 x 3 x 3 in the network;",
        "none.pt": "holds no state dict, alone or under state_dict or model",
        "w.npy": "is no file of weights; it ends in one of .safetensors",
        "cut.safetensors": "is damaged, or holds code",
        "missing.pt": "there is no file of weights",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message) as refusal:
            load_network("own_networks:small", str(own / name))
        assert "\n" not in str(refusal.value)


def test_batch_counts_that_older_files_lack_are_no_weights(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    torch.save(dict(state), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")


def test_a_function_makes_a_network_with_its_transform(own):
    net = load_network("own_networks:with_transform")
    assert net.image_size == (20, 24)
    assert net.mean == pytest.approx((0.5, 0.4, 0.3))
    assert net.std == pytest.approx((0.2, 0.2, 0.1))
    assert load_network("own_networks:small", args={"width": 5}).model[0].out_channels == 5
    assert load_network("own_networks:Holder.small").image_size == (224, 224)
    assert load_network("own_networks:small", image_size=40).image_size == (40, 40)
    bare = load_network("own_networks:bare_transform")
    assert (bare.mean, bare.std) == ((0.0,) * 3, (1.0,) * 3)
    assert str(own) not in sys.path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet50", "'resnet50' names no network; give timm:NAME, torchvision:NAME or package.module:func"),
        ("timm:", "names no network"),
        ("keras:resnet50/1", "names no network"),
        ("timm:resnet5", "timm knows no network 'resnet5'; the nearest are resnet50"),
        ("timm:lwta_resnet5", "timm knows no network 'lwta_resnet5'; the nearest are lwta_resnet50"),
        ("torchvision:resnet5", "torchvision knows no classifier 'resnet5'; the nearest are resnet50"),
        ("torchvision:fcn_resnet50", "knows no classifier"),
        ("own_networks:nothing", "cannot be imported .AttributeError: .*has no attribute 'nothing'"),
        ("nowhere.at_all:build", "cannot be imported .ModuleNotFoundError: No module named 'nowhere'"),
        ("unwell:build", "cannot be imported .*nowhere_to_be_found"),
        ("own_networks:broken", "fails with {} .KeyError: .*; correct it or its arguments$"),
        ("own_networks:number", "returns a int; it returns a torch.nn.Module, or a pair"),
        ("own_networks:grey", r"makes \(1, 200, 300\) of an image; it makes a tensor \(3, H, W\)"),
        ("own_networks:pixels", "makes Image of an image"),
    ],
)
def test_what_names_no_network_is_refused(own, spec, message):
    with pytest.raises(InputError, match=message) as refusal:
        load_network(spec)
    assert "\n" not in str(refusal.value)


def test_arguments_that_do_not_fit_are_refused(own):
    refused = [
        (
            ("timm:resnet18", "random", {"depth": 3}),
            "timm cannot build resnet18 with {'depth': 3} .TypeError",
        ),
        (("timm:resnet18.none", None, None), "Invalid pretrained tag.*its weights are resnet18"),
        (
            ("torchvision:resnet18", "random", {"depth": 3}),
            "torchvision cannot build resnet18 .*correct the arg",
        ),
        (("own_networks:small", None, {"depth": 3}), "fails with {'depth': 3} .TypeError"),
        (("timm:local-dir:none", None, None), "the folder holds config.json and model.safetensors"),
    ]
    for (spec, weights, args), message in refused:
        with pytest.raises(InputError, match=message):
            load_network(spec, weights, args=args)
    with pytest.raises(InputError, match="brings its own transform; leave image_size away"):
        load_network("own_networks:with_transform", image_size=32)
    with pytest.raises(InputError, match="image_size is at least 1"):
        load_network("own_networks:small", image_size=0)


def offline(*args, **kwargs):
    raise urllib.error.URLError("no network\nat all")


def test_a_hub_that_cannot_be_reached_says_what_to_fetch(monkeypatch):
    # The suite runs with the hub switched off, as on a machine without network.
    with pytest.raises(
        InputError, match="download those of timm/resnet18.a1_in1k and name the file: --weights"
    ):
        load_network("timm:resnet18")
    with pytest.raises(InputError, match="timm cannot build resnet18 with {'depth': 3}"):
        load_network("timm:resnet18", args={"depth": 3})
    with pytest.raises(InputError, match="config.json and model.safetensors into a folder .*timm:local-dir:"):
        load_network("timm:hf-hub:timm/resnet18.a1_in1k")
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", offline)
    with pytest.raises(
        InputError, match="no network.*download https:.*resnet18-f37072fd.pth and name the file"
    ):
        load_network("torchvision:resnet18")


def test_pretrained_torchvision_weights_tell_transform_and_classes(monkeypatch, tmp_path):
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda *args, **kwargs: state)
    net = load_network("torchvision:resnet18")
    assert net.image_size == (224, 224)
    assert net.class_names[:2] == ["tench", "goldfish"]
    assert load_network("torchvision:resnet18", image_size=112).transform.resize_size == [128]
    # The same file fetched by hand: its name begins as its hash does, so it is torchvision's.
    torch.save(state, tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:8]
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    monkeypatch.setattr(type(weights), "url", f"https://example.org/resnet18-{digest}.pth")
    fetched = (tmp_path / "w.pth").rename(tmp_path / f"resnet18-{digest}.pth")
    assert load_network("torchvision:resnet18", str(fetched)).class_names == net.class_names
    torch.save(torchvision.models.resnet18().state_dict(), fetched)  # only called so
    assert load_network("torchvision:resnet18", str(fetched)).class_names is None


def test_pretrained_timm_weights_tell_the_classes(monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(models.zoo.timm, "create_model", lambda name, pretrained, **args: real(name, **args))
    assert load_network("timm:resnet18").class_names[0] == "tench, Tinca tinca"
    assert load_network("timm:resnet18", args={"num_classes": 7}).class_names is None
    assert load_network("timm:resnet18", "random").class_names is None


def test_a_local_timm_folder_is_read(tmp_path):
    model = timm.create_model("resnet18", num_classes=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {"num_classes": 3, '
        '"input_size": [3, 64, 64], "label_names": ["a", "b", "c"]}}'
    )
    net = load_network(f"timm:local-dir:{tmp_path}")
    assert net.weights == weights_hash(model)
    assert net.image_size == (64, 64)
    assert net.class_names == ["a", "b", "c"]


def test_the_device_must_be_there(own):
    with pytest.raises(InputError, match="the device 'tpu9' is not there"):
        load_network("own_networks:small", device="tpu9")


HEADS = [
    ("vit_tiny_patch16_224", VIT, ("cls", 1)),
    ("vit_tiny_patch16_224", VIT | {"global_pool": "avg"}, ("mean", 1)),
    ("deit_tiny_distilled_patch16_224", VIT, ("cls", 2)),
    ("resnet18", {}, ("mean", 0)),
    ("resnet18", {"global_pool": "max"}, ("max", 0)),
]


@pytest.mark.parametrize(("name", "args", "expected"), HEADS)
def test_what_the_head_of_a_timm_network_reads(name, args, expected):
    assert head_readout(timm.create_model(name, **args)) == expected


def test_what_the_head_of_other_networks_reads():
    vit = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32)
    assert head_readout(vit) == ("cls", 1)
    assert head_readout(torchvision.models.resnet18()) == ("mean", 0)
    assert head_readout(small()) == ("mean", 0)


def test_the_grid_of_the_patches():
    vit = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32)
    assert patch_grid(vit, 16) == (4, 4)
    assert patch_grid(vit, 17) is None
    timm_vit = timm.create_model("vit_tiny_patch16_224", **VIT | {"dynamic_img_size": True})
    assert patch_grid(timm_vit, 4) == (2, 2)
    assert patch_grid(timm_vit, 12, (48, 64)) == (3, 4)
    assert patch_grid(timm.create_model("mixer_s16_224"), 196) == (14, 14)
    assert patch_grid(timm.create_model("resnet18"), 49) is None
