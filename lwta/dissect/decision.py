"""The decision on an image: the score that is explained, and one pass that shows how it came about."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lwta.errors import InputError
from lwta.layers import Firing, observe


class Target(NamedTuple):
    """A class, by its logit against the mean over classes, or against another class's."""

    index: int
    against: int | None = None

    def score(self, logits: Tensor) -> Tensor:
        """(n, C) to (n,)."""
        other = logits.mean(1) if self.against is None else logits[:, self.against]
        return logits[:, self.index] - other


def observed(model: nn.Module, images: Tensor, sites: Mapping[str, int]) -> tuple[dict[str, Firing], Tensor]:
    """One pass: what each layer did, and the logits (n, C).

    Raises:
        InputError: where the model is no classifier, or a layer is called at several places.
    """
    calls: dict[str, list[Firing]] = {layer: [] for layer in sites}

    def seen(layer: str, firing: Firing) -> None:  # copied: an activation after it may work in place
        calls[layer].append(firing._replace(values=firing.values.clone()))

    with torch.no_grad(), observe(model, sites, seen):
        logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise InputError("explain needs a classifier: a network that returns logits (n, C)")
    for layer, found in calls.items():
        if len(found) != 1:
            raise InputError(
                f"the layer {layer} is called {len(found)} times in one pass; name the modules around it"
            )
    return {layer: found[0] for layer, found in calls.items()}, logits
