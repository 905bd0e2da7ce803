"""Competition in training: the layer forward and backward, its cost by size, and a network's step."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.layers import Plain, published
from benchmarks.speed.timing import summary, take_turns
from lwta import LWTA
from lwta.layers import competitions
from models.backbone import create_backbone
from models.loss import training_loss

Row = dict[str, Any]


def layer(
    shape: tuple[int, ...], competitors: int, device: str, dtype: torch.dtype, clone: Path | None, rounds: int
) -> Row:
    """The layer forward and backward on (..., D), against GELU, the published layer and the plain one."""
    kinds: dict[str, nn.Module] = {"GELU": nn.GELU(), "LWTA": LWTA(competitors, dim=-1)}
    if clone is not None:
        kinds["published"] = published(clone, competitors)
    kinds["plain"] = Plain(competitors)
    kinds["plain, compiled"] = torch.compile(Plain(competitors))  # type: ignore[assignment]
    x, upstream = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    calls = {name: _both_ways(kind.to(device).train(), x, upstream) for name, kind in kinds.items()}
    times = summary(take_turns(calls, rounds))
    row = {
        "case": "layer",
        "shape": list(shape),
        "competitors": competitors,
        "times": times,
        "rounds": rounds,
    }
    if device == "cuda":
        row["held"] = {name: _held(kinds[name], x) for name in ("GELU", "LWTA")}
    return row


def _both_ways(kind: nn.Module, x: Tensor, upstream: Tensor) -> Callable[[], object]:
    leaf = x.clone().requires_grad_()

    def call() -> None:
        leaf.grad = None
        kind(leaf).backward(upstream)

    return call


def _held(kind: nn.Module, x: Tensor) -> int:
    """Bytes that are held between forward and backward, the output among them."""
    leaf = x.clone().requires_grad_()
    gc.collect()
    before = torch.cuda.memory_allocated()
    out = kind(leaf)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated() - before
    del out
    return held


def sizes(competitors: int, counts: list[int], units: int, device: str, rounds: int) -> Row:
    """The layer forward and backward at several numbers of elements."""
    kind = LWTA(competitors, dim=-1).to(device).train()
    calls = {}
    for count in counts:
        x, upstream = (torch.randn(count // units, units, device=device) for _ in range(2))
        calls[str(x.numel())] = _both_ways(kind, x, upstream)
    times = summary(take_turns(calls, rounds))
    each = {count: 1e6 * time["median"] / int(count) for count, time in times.items()}
    return {
        "case": "sizes",
        "competitors": competitors,
        "times": times,
        "rounds": rounds,
        "nanoseconds an element": each,
        "apart": max(each.values()) / min(each.values()) - 1,
    }


def step(backbone: str, competitors: int, batch: int, device: str, dtype: torch.dtype, rounds: int) -> Row:
    """A training step (forward, loss, backward, AdamW) of a network, sparse and dense.

    The recipe's loss balances use; without that term stands beside it.
    """
    images = torch.randn(batch, 3, 224, 224, device=device)
    target = torch.randint(1000, (batch,), device=device)
    calls = {}
    for name, u, balance in (
        ("dense", None, 0.0),
        ("LWTA", competitors, 1.0),
        ("no balance", competitors, 0.0),
    ):
        torch.manual_seed(0)
        network, _ = create_backbone(backbone, 1000, competitors=u)
        calls[name] = _step(network.to(device).train(), images, target, balance, dtype)
    times = summary(take_turns(calls, rounds))
    return {
        "case": "step",
        "network": backbone,
        "competitors": competitors,
        "batch": batch,
        "times": times,
        "rounds": rounds,
    }


def _step(
    network: nn.Module, images: Tensor, target: Tensor, balance: float, dtype: torch.dtype
) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    dims = {name: competition.dim for name, competition in competitions(network).items()}

    def call() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            loss, _ = training_loss(network, images, target, dims, 0.1, {"usage_entropy": -balance})
        loss.backward()
        optimizer.step()

    return call
