"""A small network that competes, and which of its two ways it goes."""

import torch
from torch import nn

from lwta import LWTA
from lwta.winners import Timing, WinnersOnly


def randn(*shape, seed=0):
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def always(model, winners):
    """Take one of the two paths for every shape met so far."""
    (timings,) = {id(m.timings): m.timings for m in model.modules() if isinstance(m, WinnersOnly)}.values()
    for shape in timings:
        timings[shape] = Timing(1.0, 0.0) if winners else Timing(0.0, 1.0)
    return model


def mlp(competitors=4, units=24):
    """Competition between two linear layers, dropout before the second."""
    layers = nn.Linear(6, units), LWTA(competitors, -1, noise=0.8), nn.Dropout(0.5), nn.Linear(units, 3)
    torch.manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return nn.Sequential(*layers).eval()


def output(model, x):
    """Without gradient."""
    with torch.no_grad():
        return model(x)
