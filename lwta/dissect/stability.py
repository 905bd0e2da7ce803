"""How sure a decision is of itself: the winners drawn again and again instead of taken by the argmax."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lwta.dissect.activations import Readout
from lwta.dissect.decision import Target, at_least_single
from lwta.dissect.explanation import Drawn, LayerExplanation, Stability
from lwta.layers import Firing, observe, sampled

_RARE = 0.05  # of draws and positions; rarer winners are not named
_NAMED = 10


@torch.no_grad()
def stability(
    model: nn.Module,
    images: Tensor,
    calls: Mapping[str, Firing],
    readout: Readout,
    layers: Sequence[LayerExplanation],
    target: Target,
    class_names: Sequence[str],
    samples: int,
    batch_size: int,
) -> Stability:
    """Draw the winners of all competing layers ``samples`` times, each layer at its own noise.

    Fills in ``stability`` of the fired units and ``drawn`` of the layers.

    Args:
        images: (1, 3, H, W).
        calls: what each layer did by the argmax.
        layers: explanations of the competing layers among them get their shares.
    """
    by_argmax = {name: readout.positions(f.fired, f.dim)[0] for name, f in calls.items()}  # (T, D)
    again = {name: torch.zeros(fired.shape, dtype=torch.float64) for name, fired in by_argmax.items()}
    probabilities, scores = [], []
    classes: Counter[int] = Counter()

    def seen(name: str, firing: Firing) -> None:  # counted at once: a batch of all layers' values is large
        again[name] += readout.positions(firing.fired, firing.dim).double().sum(0).cpu()

    axes = {name: firing.dim for name, firing in calls.items()}
    for seed, start in enumerate(range(0, samples, batch_size)):
        many = images.repeat(min(batch_size, samples - start), 1, 1, 1)  # noise differs from row to row
        with sampled(model, seed), observe(model, axes, seen):
            logits = at_least_single(model(many))
        probabilities += logits.softmax(1)[:, target.index].tolist()
        scores += target.score(logits).tolist()
        classes.update(logits.argmax(1).tolist())
    for layer in layers:
        if layer.competitors is not None:
            _share(layer, by_argmax[layer.layer].cpu(), again[layer.layer] / samples)
    spread = torch.tensor(scores, dtype=torch.float64)
    return Stability(
        samples=samples,
        classes=[(str(class_names[k]), count / samples) for k, count in classes.most_common()],
        probability=sum(probabilities) / samples,
        score=float(spread.mean()),
        deviation=float(spread.std(correction=0)),
    )


def _share(layer: LayerExplanation, fired: Tensor, again: Tensor) -> None:
    """Of each unit the share of draws it wins: (T, D) by the argmax, and when drawn."""
    held = (again * fired).sum(0) / fired.sum(0)
    for unit in layer.fired:
        unit.stability = float(held[unit.unit])
    others = again.mean(0).masked_fill(fired.any(0), 0)
    layer.drawn = [
        Drawn(unit=unit, share=float(others[unit]))
        for unit in others.argsort(descending=True, stable=True)[:_NAMED].tolist()
        if others[unit] >= _RARE
    ]
