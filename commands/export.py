"""``export``: a network as a file for other programs."""

from typing import Literal

import torch

from commands.options import NetworkOptions
from commands.subject import open_subject
from lwta.errors import InputError
from lwta.layers import competitions
from models.export import export_network

_COMPARED = 4


def export(network: NetworkOptions, kind: Literal["onnx", "pt2"] = "onnx") -> None:
    """Write a network for other programs, each block's winner the argmax, and say how near its logits come.

    Writes network.onnx or network.pt2 into the run folder, or for a --model into --out. It takes images as
    the network's transform makes them; in the file are their size, mean and deviation, and the class names.

    Args:
        kind: onnx, for onnxruntime and its like; or pt2, for torch.export.load.
    """
    if network.winners_only:
        raise InputError("winners_only computes as no exported file does; leave it away")
    subject = open_subject(network, device="cpu")
    size = subject.image_size
    images = torch.randn(_COMPARED, 3, *size, generator=torch.Generator().manual_seed(0))
    competing = competitions(subject.model)
    notes = {
        "network": subject.name,
        "identity": subject.identity,
        "image_size": size,
        "mean": subject.mean,
        "std": subject.std,
        "class_names": subject.class_names,
        "competitors": {name: competition.competitors for name, competition in competing.items()},
    }
    path = subject.folder / f"network.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    apart = export_network(subject.model, images, path, notes)
    if competing:
        print(f"{len(competing)} competing layers, each block's winner the argmax")
    near = f"its logits are within {apart:.1e} of the network's"
    print(f"on {len(images)} images of noise {near}; wrote {path}")
