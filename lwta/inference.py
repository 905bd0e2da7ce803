"""Make a trained network fast: wherever one layer alone reads a competition, compute it from the winners."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lwta.deferred import Deferring
from lwta.errors import InputError
from lwta.layers import competitions
from lwta.pairs import Pair, find_pairs
from lwta.winners import Shape, Timing, WinnersOnly


class Sparsified(NamedTuple):
    """What :func:`sparsify` did.

    Attributes:
        pairs: competitions and their readers that were replaced.
        left: competitions that remain as they were.
        folded: batch norms that were folded into the convolution before them.
        timings: of each shape met so far, in seconds; winners only serves where it is the faster.
    """

    pairs: list[Pair]
    left: list[str]
    folded: list[Pair]
    timings: dict[Shape, Timing]

    def __str__(self) -> str:
        found = len(self.pairs), len(self.pairs) + len(self.left)
        lines = ["Winners only, where faster, at {} of {} competitions".format(*found)]
        if self.left:
            lines[0] += f"; no linear layer or 1 x 1 convolution alone reads {', '.join(self.left)}"
        if self.folded:
            lines.append(f"Batch norms folded into convolutions: {len(self.folded)}")
        for shape, timing in self.timings.items():
            chosen = "winners only" if timing.winners < timing.dense else "dense"
            lines.append(
                f"{shape.layer} {shape.units} -> {shape.outputs}, U = {shape.competitors}, at most "
                f"{shape.positions} positions, {shape.dtype}, {shape.device}: {chosen} "
                f"(dense {timing.dense * 1e3:.2f} ms, winners only {timing.winners * 1e3:.2f} ms)"
            )
        return "\n".join(lines)


def sparsify(model: nn.Module, *example: Any, fold: bool = True) -> Sparsified:
    """Replace competitions and the layers that read them by what sums the winners' rows, in place.

    Replaced are pairs of a competition and the linear layer or 1 x 1 convolution that alone reads it. A
    pair computes the dense product or the sum of winners' rows, whichever was measured to be faster when its
    shape was first met; that pass is slow. So it is under ``torch.no_grad()`` only: where a gradient is asked
    for, a hook looks on or the network trains, it computes as before. Results are those of before up to the
    order of sums; where two units are so near that rounding decides, the other may win.

    Args:
        model: in evaluation mode. Names of modules and parameters stay, but for those of folded batch norms.
        example: what the network takes. It passes once to find the pairs, and once to measure its shapes.
        fold: first fold batch norms into the convolutions before them; the network can then not be trained
            further, and what those convolutions return is normalised.

    Raises:
        InputError: where the network is in training mode, was made sparse before, or nothing competes in it.

    >>> from lwta import LWTA
    >>> network = nn.Sequential(nn.Linear(8, 48), LWTA(24, dim=-1), nn.Linear(48, 3)).eval()
    >>> done = sparsify(network, torch.zeros(5, 8))
    >>> done.pairs
    [Pair(source='1', reader='2')]
    """
    if model.training:
        raise InputError("winners only is for evaluation; call model.eval() first")
    if any(isinstance(module, WinnersOnly) for module in model.modules()):
        raise InputError("this network computes winners only already; take the report of the first time")
    layers = competitions(model)
    if not layers:
        raise InputError("nothing competes in this network; swap its activations first")
    pairs, normed = find_pairs(model, example)
    folded = [pair for pair in normed if fold and _folds(model, pair)]
    timings: dict[Shape, Timing] = {}
    for pair in folded:
        _fold(model, pair)
    for pair in pairs:
        _replace(model, pair, timings)
    with torch.no_grad():
        model(*example)
    left = [name for name in layers if name not in {pair.source for pair in pairs}]
    return Sparsified(pairs, left, folded, timings)


def _folds(model: nn.Module, pair: Pair) -> bool:
    """Whether a batch norm can become part of the convolution before it: with statistics that stay."""
    conv, norm = model.get_submodule(pair.source), model.get_submodule(pair.reader)
    assert isinstance(norm, nn.BatchNorm2d)
    return norm.running_mean is not None and not conv.training and not norm.training


def _fold(model: nn.Module, pair: Pair) -> None:
    conv, norm = model.get_submodule(pair.source), model.get_submodule(pair.reader)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    model.set_submodule(pair.source, fuse_conv_bn_eval(conv, norm))
    model.set_submodule(pair.reader, nn.Identity())


def _replace(model: nn.Module, pair: Pair, timings: dict[Shape, Timing]) -> None:
    reader = model.get_submodule(pair.reader)
    assert isinstance(reader, (nn.Linear, nn.Conv2d))
    model.set_submodule(pair.source, Deferring(competitions(model)[pair.source]))
    model.set_submodule(pair.reader, WinnersOnly(reader, timings))
