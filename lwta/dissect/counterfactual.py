"""The decision after a change: which units fire otherwise, and where the classes go."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lwta.dissect.activations import Readout
from lwta.dissect.decision import Target, observed
from lwta.dissect.explanation import Counterfactual, LayerChange, Word
from lwta.dissect.intervene import Change, changed
from lwta.layers import Firing

_CLASSES = 5


@torch.no_grad()
def counterfactual(
    model: nn.Module,
    images: Tensor,
    calls: Mapping[str, Firing],
    readout: Readout,
    target: Target,
    class_names: Sequence[str],
    logits: Tensor,
    change: Change,
    sites: Mapping[str, int],
) -> Counterfactual:
    """Run an image once more with a change.

    Args:
        images: (1, 3, H, W).
        calls: what each layer did before; the same layers are compared.
        logits: (1, C) before.
        sites: axis of the units of the layers that are silenced.
    """
    with changed(model, change, sites):
        after, found = observed(model, images, {name: f.dim for name, f in calls.items()})
    before_p, after_p = logits.softmax(1)[0], found.softmax(1)[0]
    order = torch.maximum(before_p, after_p).argsort(descending=True, stable=True)[:_CLASSES].tolist()
    compared = (
        _compare(name, calls[name], after[name], readout, change.silenced.get(name, [])) for name in calls
    )
    return Counterfactual(
        told=change.told(),
        classes=[(str(class_names[k]), float(before_p[k]), float(after_p[k])) for k in order],
        score=float(target.score(found)),
        layers=[layer for layer in compared if layer.gained or layer.lost or layer.positions],
    )


def _compare(
    name: str, before: Firing, after: Firing, readout: Readout, silenced: Sequence[int]
) -> LayerChange:
    old, new = (readout.positions(firing.fired, firing.dim)[0] for firing in (before, after))  # (T, D)
    if (
        before.winner is None
    ):  # That a silenced unit is silent has been said; one that competes may have lost.
        new[:, silenced] |= old[:, silenced]
    gained, lost = new.any(0) & ~old.any(0), old.any(0) & ~new.any(0)
    # Of each block one wins before and one after, so that every winner that changed stands in one new place.
    others = None if before.winner is None else float((new & ~old).sum() / old.sum())
    words = [[Word(unit) for unit in units.nonzero()[:, 0].tolist()] for units in (gained, lost)]
    return LayerChange(name, words[0], words[1], others)
