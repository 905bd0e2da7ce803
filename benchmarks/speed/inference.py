"""Competition in inference: winners only against the dense network that a GELU makes."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from benchmarks.speed.timing import summary, take_turns
from lwta import LWTA
from lwta.inference import sparsify
from lwta.winners import Timing, WinnersOnly
from models.backbone import create_backbone

Row = dict[str, Any]


def mlp(tokens: int, width: int, competitors: int, device: str, dtype: torch.dtype, rounds: int) -> Row:
    """An MLP of a transformer, width to four times that and back, on (tokens, width)."""
    torch.manual_seed(0)
    first, second = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    x = torch.randn(tokens, width, device=device, dtype=dtype)
    dense = nn.Sequential(first, nn.GELU(), second).to(device, dtype).eval()
    competing = nn.Sequential(first, LWTA(competitors, dim=-1), second).to(device, dtype).eval()
    sparse = copy.deepcopy(competing)
    said = sparsify(sparse, x)
    calls = {"dense GELU": dense, "LWTA, dense": competing, "winners only": sparse, "first layer": dense[0]}
    row = _compared({name: _passes(module, x) for name, module in calls.items()}, rounds)
    return {
        "case": "mlp",
        "tokens": tokens,
        "width": width,
        "competitors": competitors,
        **row,
        "rule": str(said),
    }


def network(backbone: str, competitors: int, batch: int, device: str, dtype: torch.dtype, rounds: int) -> Row:
    """A whole network on (batch, 3, 224, 224); batch norms are folded in all."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, 224, 224, device=device, dtype=dtype)
    dense, _ = create_backbone(backbone, 1000, competitors=None)
    sparse, _ = create_backbone(backbone, 1000, competitors=competitors)
    dense, sparse = dense.to(device, dtype).eval(), sparse.to(device, dtype).eval()
    if any(isinstance(module, nn.BatchNorm2d) for module in dense.modules()):
        dense = fuse(dense)
    said = sparsify(sparse, images)
    competing = copy.deepcopy(sparse)  # norms folded, and then the dense path of every pair
    for module in competing.modules():
        if isinstance(module, WinnersOnly):
            module.timings = dict.fromkeys(module.timings, Timing(dense=0.0, winners=1.0))
    calls = {"dense": dense, "LWTA, dense": competing, "winners only": sparse}
    row = _compared({name: _passes(module, images) for name, module in calls.items()}, rounds)
    named = {"case": "network", "network": backbone, "competitors": competitors, "batch": batch}
    return {**named, **row, "rule": str(said)}


def _compared(calls: dict[str, Callable[[], object]], rounds: int) -> Row:
    with torch.inference_mode():
        return {"times": summary(take_turns(calls, rounds)), "rounds": rounds}


def _passes(module: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: module(x)
