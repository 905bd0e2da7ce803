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
from lwta.layers import LWTA, Firing, observe


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
        top: units of each layer that are listed and silenced; the rest counts in the layer's fractions and
            contribution only.
        batch_size: images per pass while silencing.

    Raises:
        InputError: where the target is not a class.
    """
    images = image[None].to(next(model.parameters()).device)
    calls: dict[str, list[Firing]] = {layer: [] for layer in sites}

    def seen(layer: str, firing: Firing) -> None:  # copied: an activation after it may work in place
        calls[layer].append(firing._replace(values=firing.values.clone()))

    with torch.no_grad(), observe(model, sites, seen):
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
        module = model.get_submodule(layer)
        gradient = cast(Tensor, LayerGradientXActivation(score, module).attribute(images)).detach()
        explained = _layer(layer, module, firing, readout, gradient, words, grids, top)
        for start in range(0, len(explained.fired), batch_size):
            batch = explained.fired[start : start + batch_size]
            with torch.no_grad(), silenced(model, layer, [f.unit for f in batch], firing.dim):
                scores = score(images.expand(len(batch), -1, -1, -1))
            for unit, changed in zip(batch, scores.tolist(), strict=True):
                unit.change = changed - base
        layers.append(explained)
    best = zip(order[:5].tolist(), probabilities.tolist(), strict=False)
    classes = [(str(class_names[k]), p) for k, p in best]
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
    layer: str,
    module: nn.Module,
    firing: Firing,
    readout: Readout,
    gradient: Tensor,
    words: _Words,
    grids: Any,
    top: int,
) -> LayerExplanation:
    read = readout.read(firing)
    values, won = read.values[0], read.won[0]
    fired = readout.positions(firing.fired, firing.dim)[0].float()  # (T, D)
    maps = _maps(firing, readout, grids)
    contribution = gradient.movedim(firing.dim, -1).flatten(0, -2).sum(0)
    units = won.nonzero()[:, 0]
    units = units[contribution[units].abs().argsort(descending=True)][:top]
    rows = []
    for unit in units.tolist():
        label, value = words.of(layer, unit), float(values[unit])
        margin, rival = _rival(module, firing, readout, unit) if isinstance(module, LWTA) else (None, None)
        rows.append(
            FiredUnit(
                unit=unit,
                label=label.get("label"),
                runner_up=label.get("label_2"),
                reason=label.get("reason"),
                value=value,
                margin=margin,
                rival=rival,
                rival_label=None if rival is None else words.of(layer, rival).get("label"),
                win_rate=float(fired[:, unit].mean()),
                contribution=float(contribution[unit]),
                change=None,
                sign_differs=bool(label.get("label")) and (value < 0) != bool(label.get("negative")),
                map=None if maps is None else maps[:, :, unit].tolist(),
            )
        )
    competitors = module.competition.competitors if isinstance(module, LWTA) else None
    return LayerExplanation(
        layer=layer,
        units=len(won),
        competitors=competitors,
        fired_per_position=float(fired.mean()),
        fired_ever=float(won.float().mean()),
        contribution=float(contribution.sum()),
        fired=rows,
    )


def _rival(module: LWTA, firing: Firing, readout: Readout, unit: int) -> tuple[float, int]:
    """Margin over the runner-up of the unit's block, and that runner-up.

    At the position read; where positions are pooled, at the one whose value the readout shows
    (``max``, ``patches``) or where the unit fired hardest (``mean``).
    """
    assert firing.inputs is not None
    fired = readout.positions(firing.fired, firing.dim)[0, :, unit]
    values = readout.positions(firing.values, firing.dim)[0, :, unit]
    strength = values if readout.peak else values.abs()
    where = strength.masked_fill(~fired, -torch.inf).argmax()
    h = readout.positions(firing.inputs, firing.dim)[0, where]  # (D,)
    block, place = divmod(unit, module.competition.competitors)
    logits = (module.competition.beta * to_blocks(h, module.competition.competitors, 0))[block].clone()
    own = float(logits[place])
    logits[place] = -torch.inf
    rival = int(logits.argmax())
    return own - float(logits[rival]), block * len(logits) + rival


def _maps(firing: Firing, readout: Readout, grids: Any) -> Tensor | None:
    """Values (rows, columns, D) over the grid, 0 where a unit did not fire; None for a single position."""
    shown = torch.where(firing.fired, firing.values, 0).movedim(firing.dim, -1)[0]
    if shown.ndim == 3:
        return shown if shown.shape[:2].numel() > 1 else None
    if shown.ndim != 2:
        return None
    patches = shown[readout.prefix :]
    grid = grids(len(patches))
    return rearrange(patches, "(h w) d -> h w d", h=grid[0], w=grid[1]) if grid else None
