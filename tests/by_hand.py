"""Small networks of random weights, and what happens in them by hooks, loops and passes of our own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lwta.dissect.activations import Readout
from lwta.dissect.explain import explain
from models.backbone import create_backbone

CLASSES = ["ant", "bee", "cat", "dog"]
FIRST, LAST = "blocks.0.mlp.act", "blocks.1.mlp.act"
ROWS, COLUMNS = 4, 6  # of the grid of patches
VIT = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
CLS, MEAN, MAX = Readout("cls", 1), Readout("mean", 1), Readout("max", 1)
BETA = 2.0


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(model: nn.Module, std: float) -> nn.Module:
    """Random weights in all but norms, in float64, so that 1e-9 holds on any machine."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "bn" not in name:
            nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval().double()


def scale_up(model: nn.Module) -> nn.Module:
    """Random weights, in float64, that let one unit of a wide layer move the logits."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=2 / module.weight[0].numel() ** 0.5, generator=generator)
    return model.eval().double()


def vit_network(competitors: int | None = 24, std: float = 0.3, **swapped: object) -> nn.Module:
    """Two blocks of 96 units over 24 patches and a class token, in float64, with much noise."""
    swapped = {"noise": 1.0, "normalize": False} | swapped
    model, _ = create_backbone(
        "vit_tiny_patch16_224", 4, backbone_args=VIT, competitors=competitors, **swapped
    )
    return fill(model, std)


def resnet_network(competitors: int | None = 8, **swapped: object) -> nn.Module:
    """ResNet-10 in float64, competing everywhere."""
    args = {"zero_init_last": False}  # no branch starts at zero
    swapped = {"placement": "all", "noise": 1.0, "normalize": False} | swapped
    model, _ = create_backbone("resnet10t", 4, competitors=competitors, backbone_args=args, **swapped)
    return scale_up(model)


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """24 competitors in 4 blocks of each layer; beta 2; the second block wins with negative values only."""
    model = vit_network(beta=BETA)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc1.bias[24:48] -= 12
    return model


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """8 competitors, sites of NCHW."""
    return resnet_network()


@pytest.fixture
def image() -> Tensor:
    """What :func:`vit_network` takes."""
    return randn(3, 16, 24).double()


@pytest.fixture
def photo() -> Tensor:
    """What :func:`resnet_network` takes."""
    return randn(3, 32, 48).double()


def vit_explained(model, image, sites=(FIRST, LAST), readout=CLS, **options):
    """Explain an image, with the grid of the patches known."""
    grids = {"grids": lambda n: (ROWS, COLUMNS) if n == ROWS * COLUMNS else None}
    return explain(model, image, dict.fromkeys(sites, -1), readout, class_names=CLASSES, **(grids | options))


def map_explained(model, photo, *layers, **options):
    """Explain an image by its feature maps."""
    sites = dict.fromkeys(layers, 1)
    return explain(model, photo, sites, Readout("mean"), class_names=CLASSES, **options)


# --- passes --------------------------------------------------------------------------------------


def score(logits: Tensor, target: int, against: int | None = None) -> Tensor:
    """Of (n, C): a logit above the mean of all, or above another."""
    total = 0
    for k in range(logits.shape[1]):
        total = total + logits[:, k]
    return logits[:, target] - (total / logits.shape[1] if against is None else logits[:, against])


@contextmanager
def captured(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Input and output of a module; what goes on is a copy, so that nothing overwrites them."""
    seen = {}

    def hook(module, inputs, out):
        seen["input"], seen["output"] = inputs[0].detach().clone(), out
        return out.clone()

    handle = module.register_forward_hook(hook)
    yield seen
    handle.remove()


@contextmanager
def rewritten(module: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """A module that returns ``change(input, output)`` instead."""
    handle = module.register_forward_hook(lambda _, inputs, out: change(inputs[0], out))
    yield
    handle.remove()


def by_hand(model, layer, image, target=None, against=None):
    """What goes into and out of a layer, the gradient of the score there, score and target."""
    with captured(model.get_submodule(layer)) as seen:
        logits = model(image[None])
    target = int(logits[0].argmax()) if target is None else target
    value = score(logits, target, against)[0]
    (gradient,) = torch.autograd.grad(value, seen["output"])
    return seen["input"][0], seen["output"].detach()[0], gradient[0], value.item(), target


@torch.no_grad()
def logits_with(model, layer, image, change) -> Tensor:
    """Logits (C,) of a pass in which a layer returns ``change(input, output)``."""
    with rewritten(model.get_submodule(layer), change):
        return model(image[None])[0]


# --- the competition by loops --------------------------------------------------------------------


def winners(h: Tensor, competitors: int) -> np.ndarray:
    """bool (T, D): h is (T, D)."""
    return compete(h, competitors)[1]


def compete(
    h: Tensor, competitors: int, barred: tuple[int, ...] = (), forced: Mapping[int, int] | None = None
) -> tuple[Tensor, np.ndarray]:
    """Values (T, D) and who fired, position by position and block by block.

    Args:
        h: (T, D).
        barred: units that do not take part.
        forced: block -> unit that wins whatever happens.
    """
    fired = np.zeros(h.shape, dtype=bool)
    for t, position in enumerate(h.tolist()):
        for block in range(len(position) // competitors):
            units = [block * competitors + u for u in range(competitors)]
            taking_part = [unit for unit in units if unit not in barred]
            winner = max(taking_part, key=lambda unit, position=position: position[unit])
            fired[t, (forced or {}).get(block, winner)] = True
    return torch.where(torch.from_numpy(fired), h, 0), fired


def competing(competitors: int, barred: tuple[int, ...] = (), forced: Mapping[int, int] | None = None):
    """:func:`compete` as what a layer of tokens (n, T, D) or maps (n, D, H, W) returns instead."""

    def change(h: Tensor, out: Tensor) -> Tensor:
        found = torch.empty_like(out)
        for i in range(len(h)):
            if h.ndim == 4:
                flat, _ = compete(h[i].flatten(1).T, competitors, barred, forced)
                found[i] = flat.T.reshape(h[i].shape)
            else:
                found[i] = compete(h[i], competitors, barred, forced)[0]
        return found

    return change


def zeroing(*units: int, axis: int):
    """Some units at every position, as what a layer returns instead."""

    def change(h: Tensor, out: Tensor) -> Tensor:
        out = out.clone()
        for unit in units:
            out.select(axis, unit).zero_()
        return out

    return change


def hooks(model: nn.Module) -> list[tuple[str, str, int]]:
    """How many hooks there are on each module."""
    return [
        (name, kind, len(getattr(module, kind)))
        for name, module in model.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ]
