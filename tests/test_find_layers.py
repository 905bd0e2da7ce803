"""Layers of any network, with the axis and the width of their units."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lwta.errors import InputError
from models.layers import find_layers

VIT = {"img_size": 32}

# library, name, arguments, image size, layer -> (axis, width)
NETWORKS = [
    ("timm", "vit_tiny_patch16_224", VIT, 32, {
        "patch_embed": (-1, 192), "patch_embed.proj": (1, 192), "blocks.3": (-1, 192), "blocks": (-1, 192),
        "blocks.0.attn": (-1, 192), "blocks.0.attn.qkv": (-1, 576), "blocks.0.mlp.act": (-1, 768),
        "head": (-1, 1000),
    }),
    ("timm", "resnet18", {}, 64, {
        "conv1": (1, 64), "act1": (1, 64), "maxpool": (1, 64), "layer3.0.downsample": (1, 256),
        "layer4": (1, 512), "layer4.1.act2": (1, 512), "global_pool": (-1, 512), "fc": (-1, 1000),
    }),
    ("timm", "convnext_atto", {}, 64, {
        "stages.0": (1, 40), "stages.1.downsample.0": (1, 40), "stages.2.blocks.3.mlp.act": (1, 640),
        "stages.3.blocks.1.norm": (1, 320), "head.global_pool": (1, 320), "head": (-1, 1000),
    }),
    ("timm", "convnext_tiny", {}, 64, {
        "stages.0": (1, 96), "stages.2.blocks.3.mlp.act": (-1, 1536), "stages.3.blocks.1.conv_dw": (1, 768),
        "stages.3.blocks.1.norm": (-1, 768), "stages.3.blocks.1": (1, 768),
    }),
    ("timm", "swin_tiny_patch4_window7_224", {}, 224, {
        "patch_embed": (-1, 96), "layers.1": (-1, 192), "layers.1.downsample": (-1, 192),
        "layers.2.blocks.5": (-1, 384), "layers.2.blocks.5.mlp.act": (-1, 1536), "norm": (-1, 768),
    }),
    ("timm", "efficientnet_b0", {}, 64, {
        "bn1.act": (1, 32), "blocks.2": (1, 40), "blocks.2.0.se": (1, 144), "blocks.2.0.se.gate": (1, 144),
        "conv_head": (1, 1280), "global_pool": (-1, 1280),
    }),
    ("timm", "mixer_s16_224", {}, 224, {
        "blocks.3": (-1, 512), "blocks.3.mlp_channels.act": (-1, 2048), "blocks.3.mlp_tokens.act": (-1, 256),
        "blocks.3.norm1": (-1, 512), "norm": (-1, 512),
    }),
    ("torchvision", "resnet50", {}, 64, {
        "relu": (1, 64), "maxpool": (1, 64), "layer1": (1, 256), "layer4.2": (1, 2048),
        "layer4.2.bn1": (1, 512), "avgpool": (1, 2048), "fc": (-1, 1000),
    }),
    ("torchvision", "vit_b_16", {"image_size": 32}, 32, {
        "conv_proj": (1, 768), "encoder": (-1, 768), "encoder.layers.encoder_layer_3": (-1, 768),
        "encoder.layers.encoder_layer_3.mlp.1": (-1, 3072),
        "encoder.layers.encoder_layer_3.dropout": (-1, 768),
    }),
    ("torchvision", "convnext_tiny", {}, 64, {
        "features.0": (1, 96), "features.0.1": (1, 96), "features.5": (1, 384),
        "features.5.2.block": (1, 384), "features.5.2.block.4": (-1, 1536),
        "features.5.2.block.2": (-1, 384), "classifier.1": (-1, 768),
    }),
    ("torchvision", "swin_t", {}, 64, {
        "features.0": (-1, 96), "features.1.0": (-1, 96), "features.2": (-1, 192), "features.5": (-1, 384),
        "features.5.1.mlp.1": (-1, 1536), "features.5.1.attn": (-1, 384), "permute": (1, 768),
        "avgpool": (1, 768),
    }),
    ("torchvision", "mobilenet_v3_small", {}, 64, {
        "features.4": (1, 40), "features.4.block.0.2": (1, 96), "features.4.block.2": (1, 96),
        "features.12": (1, 576), "classifier.1": (-1, 1024),
    }),
    ("torchvision", "densenet121", {}, 64, {
        "features.denseblock1.denselayer2": (1, 32), "features.denseblock1.denselayer2.norm1": (1, 96),
        "features.transition1": (1, 128), "features": (1, 1024),
    }),
]  # fmt: skip


def build(library: str, name: str, **args: object) -> nn.Module:
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    return make(name, **args)


@pytest.mark.parametrize(("library", "name", "args", "size", "expected"), NETWORKS)
def test_axis_and_width_are_the_true_ones(library, name, args, size, expected):
    model = build(library, name, **args)
    layers = find_layers(model, (size, size), list(expected))
    assert {name: (dim, layers.units(name)) for name, dim in layers.dims.items()} == expected
    assert layers.left == {}
    assert all(layers.shapes[name][0] == 1 for name in expected)
    order = [name for name, _ in model.named_modules() if name in expected]
    assert list(layers.dims) == order


class Branches(nn.Module):
    """A convolution whose output goes through one operation."""

    def __init__(self, operation):
        super().__init__()
        self.conv, self.out, self.operation = nn.Conv2d(3, 6, 1), nn.Identity(), operation

    def forward(self, x):
        return self.out(self.operation(self.conv(x)))


# On images of 6 x 6 all axes look alike: only what was done tells them.
OPERATIONS = {
    "permute": (lambda x: x.permute(0, 2, 3, 1), -1),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), -1),
    "unchanged by a reshape": (lambda x: x.reshape(x.shape[0], 6, 36), 1),
    "one position": (lambda x: x[:, :, 2, 3], -1),
    "half of the units": (lambda x: x.chunk(2, 1)[1], 1),
    "mean": (lambda x: x.mean((2, 3)), -1),
    "mean of a row": (lambda x: x.mean(3), 1),
    "rolled": (lambda x: x.roll(1, 2), 1),
    "padded": (lambda x: F.pad(x, (1, 1)), 1),
    "pooled": (lambda x: F.max_pool2d(x, 2), 1),
    "joined units": (lambda x: torch.cat([x, x], 1), 1),
    "joined positions": (lambda x: torch.cat([torch.zeros_like(x), x], 2), 1),
    "scaled": (lambda x: x * torch.ones(6, 1, 1), 1),
    "gated": (lambda x: F.silu(x) * x.mean((2, 3), keepdim=True).sigmoid(), 1),
    "frozen norm": (torchvision.ops.FrozenBatchNorm2d(6).eval(), 1),
    "a norm over units that lie first": (torchvision.models.convnext.LayerNorm2d(6), 1),
}
LOST = {
    "units become positions": lambda x: F.pixel_shuffle(F.pad(x, (0, 0, 0, 0, 0, 2)), 2),
    "two axes of units": lambda x: x.reshape(x.shape[0], 2, 3, 36),
    "units and positions in one axis": lambda x: x.flatten(1),
    "mean over the units": lambda x: x.mean(1),
    "units joined with others": lambda x: torch.cat([x, torch.zeros_like(x)], 1),
    "a product over positions": lambda x: x @ x,
    "a sum of two axes": lambda x: x + x.transpose(1, 2),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_units_are_followed_through(operation):
    act, axis = OPERATIONS[operation]
    assert find_layers(Branches(act), (6, 6), "out").dims == {"out": axis}


@pytest.mark.parametrize("operation", LOST)
def test_an_axis_is_not_made_up(operation):
    with pytest.raises(InputError, match="axis of the units of out cannot be told"):
        find_layers(Branches(LOST[operation]), (6, 6), "out")


def test_a_wildcard_leaves_out_what_cannot_be_read_and_says_why():
    layers = find_layers(build("torchvision", "resnet50"), (64, 64), "layer1.1.*")
    assert list(layers.dims) == [
        f"layer1.1.{name}" for name in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
    ]
    assert list(layers.left) == ["layer1.1.relu"]
    assert "3 places" in layers.left["layer1.1.relu"]


RESNET, SWIN = ("torchvision", "resnet50", 64), ("timm", "swin_tiny_patch4_window7_224", 224)
VIT_B, ATTENTION = ("torchvision", "vit_b_16", 224), "encoder.layers.encoder_layer_0.self_attention"
REFUSED = [
    (RESNET, "layer1.0.relu", "3 places in one pass.* around it, layer1.0$"),
    (RESNET, "layer5", "no layer matches 'layer5'; the nearest are layer"),
    (RESNET, "layer4.*.act", "no layer matches 'layer4..*.act'; the nearest are layer4"),
    (VIT_B, ATTENTION, "returns a tuple.* inside or after it$"),
    (VIT_B, f"{ATTENTION}.out_proj", "is never called"),
    (VIT_B, "*.self_attention", "matches no layer that can be dissected: .*tuple"),
    (("torchvision", "vit_b_16", 32), "encoder", "does not take images of 32 x 32 .Wrong image height"),
    (
        SWIN,
        "layers.0.blocks.0.attn.qkv",
        "first axis is not the images; .* around it, layers.0.blocks.0.attn$",
    ),
]


@pytest.mark.parametrize(("network", "glob", "message"), REFUSED)
def test_a_layer_that_cannot_be_dissected_is_refused(network, glob, message):
    library, name, size = network
    with pytest.raises(InputError, match=message) as refusal:
        find_layers(build(library, name), (size, size), glob)
    assert "\n" not in str(refusal.value)


def test_without_globs_the_activations_are_taken():
    layers = find_layers(build("timm", "resnet18"), (64, 64))
    assert len(layers.dims) == 17
    assert set(layers.dims.values()) == {1}
    shared = find_layers(build("torchvision", "resnet50"), (64, 64))
    assert list(shared.dims) == ["relu"]
    assert len(shared.left) == 16


def test_a_network_without_activation_modules_asks_for_layers():
    with pytest.raises(InputError, match="name layers with --layers, such as conv, out$"):
        find_layers(Branches(F.relu), (6, 6))


def test_the_trace_leaves_the_network_as_it_was():
    model = build("timm", "resnet18").train()
    find_layers(model, (64, 64), "layer4")
    assert model.training
    assert model.bn1.num_batches_tracked == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
