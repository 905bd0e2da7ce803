"""The decision on an image: the score that is explained, and one pass that shows how it came about."""

from collections.abc import Mapping, Sequence
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
        """(n, C) to (n,), in single precision at least."""
        logits = at_least_single(logits)
        other = logits.mean(1) if self.against is None else logits[:, self.against]
        return logits[:, self.index] - other


def at_least_single(x: Tensor) -> Tensor:
    """float32 for half precision: differences of logits of about 10 drown in bfloat16's three digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def find_target(
    predicted: int, target: int | None, against: int | None, classes: int, names: Sequence[str], image: str
) -> Target:
    """The class to explain, the predicted one where ``target`` is None.

    Raises:
        InputError: where there is no such class, or not one name for each of ``classes``, or a class would be
            set against itself.
    """
    if len(names) != classes:
        raise InputError(f"there are {len(names)} class names, and the network tells {classes} classes apart")
    asked = Target(predicted if target is None else target, against)
    for k in asked if against is not None else asked[:1]:
        if k is None or not 0 <= k < classes:
            raise InputError(f"there is no class {k}; the network tells {classes} apart")
    if asked.against == asked.index:
        told = f"{image} is predicted to be {names[predicted]}, which" if target is None else names[target]
        raise InputError(f"{told} cannot be set against itself; name another class")
    return asked


def observed(model: nn.Module, images: Tensor, sites: Mapping[str, int]) -> tuple[dict[str, Firing], Tensor]:
    """One pass: what each layer did, and the logits (n, C), in single precision at least.

    Raises:
        InputError: where the model is no classifier of at least two classes, or a layer is called at several
            places.
    """
    calls: dict[str, list[Firing]] = {layer: [] for layer in sites}

    def seen(layer: str, firing: Firing) -> None:  # copied: what comes after it may work in place
        inputs = None if firing.inputs is None else firing.inputs.clone()
        calls[layer].append(firing._replace(values=firing.values.clone(), inputs=inputs))

    with torch.no_grad(), observe(model, sites, seen):
        logits = model(images.clone())
    check_logits(logits)
    for layer, found in calls.items():
        if len(found) != 1:
            raise InputError(
                f"the layer {layer} is called {len(found)} times in one pass; name the modules around it"
            )
    return {layer: found[0] for layer, found in calls.items()}, at_least_single(logits)


def check_logits(logits: object) -> None:
    """Refuse what is no (n, C), and C = 1: its difference from the mean over classes is 0, whatever fires."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError(
            "explain needs a classifier: a network that returns logits (n, C) of at least two classes"
        )
