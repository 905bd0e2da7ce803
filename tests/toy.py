"""Networks in a file of the current folder and a probe set, for the commands that take any model."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import dissect
from lwta.dissect.encoder import load_encoder
from lwta.dissect.labels import Labels, read_labels
from models.network import load_network
from models.shapes import Shapes
from models.shapes_clip import FOLDER as SHAPES_CLIP

SIZE, COUNT = 32, 120
WORDS = ["red", "blue", "circle", "striped", "star", "small"]

MODULE = """
import timm
import torch
from torch import nn

from models.swap import swap


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.pair = nn.Conv2d(3, 16, 4, 4), nn.GELU(), Pair()
        self.body = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 10))

    def forward(self, x):
        x, _ = self.pair(self.act(self.conv(x)))
        return self.body(x.mean((2, 3)))


def net():
    return Net()


def vit(**args):
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **tiny | args)
    swap(model, competitors=24, image_size=(32, 32))
    return model
"""


def write_module(folder: Path, name: str, text: str = MODULE) -> None:
    """Put the networks into a file that can be imported anew."""
    (folder / f"{name}.py").write_text(text)
    sys.modules.pop(name, None)


def network_args(function: str = "net") -> list[str]:
    """Arguments that name a network of ``toys.py``."""
    return [f"--model=toys:{function}", "--weights=random", f"--image_size={SIZE}", "--device=cpu"]


def label_args(function: str = "net", words: str = "words.txt") -> list[str]:
    """Those and what its units are labelled by."""
    probe = f"--probe=shapes:validation[:{COUNT}]"
    return [*network_args(function), probe, "--clip=shapes", f"--concepts={words}"]


def labelled(*args: object) -> pd.DataFrame:
    """Run ``label`` into the folder ``out``; its table."""
    dissect.main(["label", "--out=out", *map(str, args)])
    return of_folder("out").table


def of_folder(folder: str) -> Labels:
    """The labels of a folder that has some."""
    known = read_labels(folder)
    assert known is not None
    return known


def network(function: str = "net"):
    """The network of :func:`network_args`."""
    return load_network(f"toys:{function}", "random", "cpu", SIZE)


def probe() -> Shapes:
    """The images of :func:`label_args`."""
    return Shapes(f"validation[:{COUNT}]", SIZE)


@torch.no_grad()
def outputs(model, layer: str, pixels: torch.Tensor) -> torch.Tensor:
    """What a layer returns, by a hook of its own."""
    found = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda module, inputs, out: found.append(out.clone())
    )
    model(pixels)
    handle.remove()
    return found[0]


def pixels(net, images=None) -> torch.Tensor:
    """The probe images, or others, as a network takes them."""
    images = [image for image, _ in probe()] if images is None else images
    return torch.stack([net.transform(image) for image in images])


def cosines(images, words: list[str] = WORDS) -> np.ndarray:
    """Of images and words, by the CLIP that ships."""
    encoder = load_encoder(str(SHAPES_CLIP))
    seen = encoder.images(torch.stack([encoder.transform(image) for image in images]))
    return (seen @ encoder.texts(words, ["{}"]).T).numpy()


def strongest(values: torch.Tensor, won: torch.Tensor, k: int = 100) -> list[list[int]]:
    """Images on which each unit won, the strongest first; values and won are (N, D)."""
    lists = []
    for unit in range(values.shape[1]):
        wins = won[:, unit].nonzero()[:, 0].tolist()
        lists.append(sorted(wins, key=lambda i, unit=unit: -float(values[i, unit]))[:k])
    return lists


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A current folder with ``toys.py`` and ``words.txt``."""
    write_module(tmp_path, "toys")
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("toys", None)


@pytest.fixture
def passes(monkeypatch):
    """The consumers of every pass over a probe set, by their kind."""
    from commands import question

    made, run_pass = [], question.run_pass

    def counted(consumers, *args, **options):
        made.append([type(consumer).__name__ for consumer in consumers])
        return run_pass(consumers, *args, **options)

    monkeypatch.setattr(question, "run_pass", counted)
    return made
