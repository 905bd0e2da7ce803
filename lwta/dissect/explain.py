"""Explain one input: which units fired, against whom, where, and what each changed in the decision."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pandas as pd
import torch
from captum.attr import LayerGradientXActivation
from einops import rearrange
from torch import Tensor, nn

from lwta.dissect.activations import Readout
from lwta.dissect.explanation import Explanation, FiredUnit, LayerExplanation
from lwta.errors import InputError
from lwta.functional import to_blocks
from lwta.layers import LWTA, Firing, watch


@contextmanager
def silenced(model: nn.Module, layer: str, units: Sequence[int], dim: int) -> Iterator[None]:
    """Zero one unit of ``layer`` per image of a batch: unit ``units[i]`` in image i, at all positions."""

    def hook(module: nn.Module, inputs: tuple, out: Tensor) -> Tensor:
        keep = torch.ones(len(units), out.shape[dim], dtype=torch.bool, device=out.device)
        keep[torch.arange(len(units)), torch.tensor(units)] = False
        shape = [1] * out.ndim
        shape[0], shape[dim] = keep.shape
        return torch.where(keep.view(shape), out, 0)

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def explain(
    model: nn.Module,
    image: Tensor,
    sites: Mapping[str, int],
    readout: Readout,
    *,
    class_names: Sequence[str],
    labels: pd.DataFrame | None = None,
    grids: Callable[[int], tuple[int, int] | None] = lambda positions: None,
    name: str = "image",
    target: int | None = None,
    top: int = 50,
    batch_size: int = 64,
) -> Explanation:
    """Explain the decision of ``model`` on one image, with argmax competition.

    Args:
        model: classifier of images (n, 3, H, W) into logits (n, C), in evaluation mode.
        image: (3, H, W), as the model takes it.
        sites: layer name -> axis of its units.
        readout: what is read of each layer.
        class_names: C names.
        labels: label table (:data:`lwta.dissect.labels.COLUMNS`), or None.
        grids: number of patches -> (rows, columns) for token layers; maps carry their own.
        name: of the image, for the reader.
        target: class to explain; None takes the predicted one.
        top: units of each layer that are listed and silenced; the contributions of the rest remain
            counted in the fractions.
        batch_size: images per pass while silencing.

    Raises:
        InputError: where the target is not a class.
    """
    images = image[None]
    with torch.no_grad(), watch(model, sites) as calls:
        logits = model(images)
    probabilities, order = logits.softmax(-1)[0].sort(descending=True)
    target = int(order[0]) if target is None else target
    if not 0 <= target < len(class_names):
        raise InputError(f"there is no class {target}; the network tells {len(class_names)} apart")

    def score(x: Tensor) -> Tensor:
        out = model(x)
        return out[:, target] - out.mean(1)

    words = _Words(labels)
    base = float(logits[0, target] - logits[0].mean())
    layers = []
    for layer, (firing,) in calls.items():
        attribution = LayerGradientXActivation(score, model.get_submodule(layer))
        gradient = cast(Tensor, attribution.attribute(images)).detach()
        explained = _layer(model.get_submodule(layer), layer, firing, readout, gradient, words, grids)
        del explained.fired[top:]
        for start in range(0, len(explained.fired), batch_size):
            batch = explained.fired[start : start + batch_size]
            with torch.no_grad(), silenced(model, layer, [f.unit for f in batch], firing.dim):
                scores = score(images.expand(len(batch), -1, -1, -1))
            for unit, changed in zip(batch, scores.tolist(), strict=True):
                unit.change = changed - base
        layers.append(explained)
    classes = [
        (str(class_names[k]), float(p)) for k, p in zip(order[:5].tolist(), probabilities, strict=False)
    ]
    return Explanation(name, classes, class_names[target], base, readout.kind, layers)


class _Words:
    """Looks up labels by layer and unit."""

    def __init__(self, labels: pd.DataFrame | None) -> None:
        rows = [] if labels is None else labels.to_dict("records")
        self.rows = {(row["layer"], row["unit"]): row for row in rows}

    def of(self, layer: str, unit: int) -> dict[str, Any]:
        row = self.rows.get((layer, unit), {"reason": "not labelled"})
        return {key: None if pd.isna(value) else value for key, value in row.items()}


def _layer(
    module: nn.Module,
    layer: str,
    firing: Firing,
    readout: Readout,
    gradient: Tensor,
    words: _Words,
    grids: Any,
) -> LayerExplanation:
    values, won = (x[0] for x in readout.read(firing))
    fired = readout.positions(firing.fired, firing.dim)[0]  # (T, D)
    competitors = module.competition.competitors if isinstance(module, LWTA) else None
    rivals = _rivals(module, firing, readout) if isinstance(module, LWTA) else None
    maps = _maps(firing, readout, grids)
    contribution = gradient.movedim(firing.dim, -1).flatten(0, -2).sum(0)
    units = won.nonzero()[:, 0]
    units = units[contribution[units].abs().argsort(descending=True)]
    rows = []
    for unit in units.tolist():
        label = words.of(layer, unit)
        value = float(values[unit])
        margin, rival = rivals[unit] if rivals else (None, None)
        rows.append(
            FiredUnit(
                unit,
                label.get("text"),
                label.get("runner_up"),
                label.get("reason"),
                value,
                margin,
                rival,
                words.of(layer, rival).get("text") if rival is not None else None,
                float(fired[:, unit].float().mean()),
                float(contribution[unit]),
                None,
                bool(label.get("text")) and (value < 0) != bool(label.get("negative")),
                maps[:, :, unit].tolist() if maps is not None else None,
            )
        )
    return LayerExplanation(
        layer, len(won), competitors, float(fired.float().mean()), float(won.float().mean()), rows
    )


def _rivals(module: LWTA, firing: Firing, readout: Readout) -> dict[int, tuple[float, int]]:
    """Unit -> (margin over the runner-up of its block, that runner-up), where it fired hardest."""
    competition = module.competition
    assert firing.inputs is not None
    logits = competition.beta * readout.positions(firing.inputs, firing.dim)[0]  # (T, D)
    fired = readout.positions(firing.fired, firing.dim)[0]
    strength = readout.positions(firing.values, firing.dim)[0].abs().masked_fill(~fired, -1)
    where = strength.argmax(0)
    blocks = to_blocks(logits, competition.competitors, 1)  # (T, B, U)
    out = {}
    for unit in fired.any(0).nonzero()[:, 0].tolist():
        block, place = divmod(unit, competition.competitors)
        row = blocks[where[unit], block].clone()
        own = float(row[place])
        row[place] = -torch.inf
        out[unit] = (own - float(row.max()), block * competition.competitors + int(row.argmax()))
    return out


def _maps(firing: Firing, readout: Readout, grids: Any) -> Tensor | None:
    """Values (rows, columns, D) over the grid, 0 where a unit did not fire."""
    shown = torch.where(firing.fired, firing.values, 0).movedim(firing.dim, -1)[0]
    if shown.ndim == 3:
        return shown
    if shown.ndim != 2:
        return None
    patches = shown[readout.prefix :]
    grid = grids(len(patches))
    return rearrange(patches, "(h w) d -> h w d", h=grid[0], w=grid[1]) if grid else None
