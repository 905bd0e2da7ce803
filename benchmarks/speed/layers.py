"""Layers that are compared: the published one, from a clone of its repository, and the plain one."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from lwta.layers import NOISE, TAU

#: Where a clone has the layer.
PUBLISHED = "timm/models/layers/activations.py"


def published(clone: Path, competitors: int) -> nn.Module:
    """The layer of github.com/konpanousis/DISCOVER, whose competitors lie along the last axis."""
    spec = importlib.util.spec_from_file_location("published_activations", clone / PUBLISHED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LWTA(U=competitors)


class Plain(nn.Module):
    """The competition as its formulas read, by torch's operations along the last axis, straight through."""

    def __init__(self, competitors: int, noise: float = NOISE, tau: float = TAU) -> None:
        super().__init__()
        self.competitors, self.noise, self.tau = competitors, noise, tau

    def forward(self, x: Tensor) -> Tensor:
        h = x.unflatten(-1, (-1, self.competitors))
        scale = 1 / h.detach().float().square().mean().sqrt()
        gumbel = -torch.log(-torch.log(torch.rand_like(h).clamp_min(torch.finfo(h.dtype).tiny)))
        relaxed = ((scale * h + self.noise * gumbel) / self.tau).softmax(-1)
        hard = torch.zeros_like(h).scatter(-1, relaxed.argmax(-1, keepdim=True), 1.0)
        return ((hard + relaxed - relaxed.detach()) * h).flatten(-2)
