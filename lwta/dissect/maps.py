"""Where units fired: their values over the grid of patches or pixels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from lwta.dissect.activations import Readout
from lwta.layers import Firing, observe

#: Number of patches -> (rows, columns) of a token layer; None where no grid is known.
Grids = Callable[[int], tuple[int, int] | None]


def position_maps(firing: Firing, readout: Readout, grids: Grids) -> Tensor | None:
    """Values over the grid, (n, rows, columns, D), 0 where a unit did not fire.

    Args:
        firing: a call of a layer, of n images.
        readout: tells the prefix tokens, which lie on no grid.
        grids: of token layers; maps carry their own.

    Returns:
        None where there is no grid, or a single position.
    """
    shown = torch.where(firing.fired, firing.values, 0).movedim(firing.dim, -1)
    if shown.ndim == 4:
        return shown if shown.shape[1:3].numel() > 1 else None
    if shown.ndim != 3:
        return None
    patches = shown[:, readout.prefix :]
    grid = grids(patches.shape[1])
    return rearrange(patches, "n (h w) d -> n h w d", h=grid[0], w=grid[1]) if grid else None


@torch.no_grad()
def exemplar_maps(
    model: nn.Module,
    batches: Iterable[Sequence[Any]],
    sites: Mapping[str, int],
    readout: Readout,
    grids: Grids,
    wanted: Mapping[str, Mapping[int, Sequence[int]]],
) -> dict[tuple[str, int, int], np.ndarray]:
    """Where some units fired on some images, by one pass over those images.

    Args:
        model: any module; put into evaluation mode.
        batches: yields (image indices (n,), images (n, 3, H, W), ...), each image once, without those that do
            not decode.
        sites: layer name -> axis of its units.
        readout: tells the prefix tokens.
        grids: of token layers.
        wanted: layer -> image index -> units.

    Returns:
        (layer, unit, image index) -> float32 (rows, columns), values, 0 where the unit did not fire; without
        the units of layers that have no grid.
    """
    device = next(model.parameters()).device
    # Of each layer one array for all: what is kept of each batch would tear memory apart, see tally.Rows.
    kept: dict[str, np.ndarray] = {}
    order: dict[str, list[tuple[int, int]]] = {name: [] for name in sites}  # (unit, image index)
    batch: list[int] = []

    def seen(name: str, firing: Firing) -> None:
        asked = wanted.get(name, {})
        pairs = [(row, unit) for row, index in enumerate(batch) for unit in asked.get(index, ())]
        maps = position_maps(firing, readout, grids) if pairs else None
        if maps is not None:
            rows, units = torch.tensor(pairs, device=maps.device).T
            if name not in kept:
                count = sum(len(some) for some in asked.values())
                kept[name] = np.empty((count, *maps.shape[1:3]), dtype=np.float32)
            start = len(order[name])
            kept[name][start : start + len(pairs)] = maps[rows, :, :, units].cpu().numpy()
            order[name] += [(unit, batch[row]) for row, unit in pairs]

    model.eval()
    with observe(model, sites, seen):
        for indices, images, *_ in batches:
            if len(indices):
                batch = indices.tolist()
                model(images.to(device))
    return {
        (name, *pair): values
        for name, pairs in order.items()
        for pair, values in zip(pairs, kept.get(name, ()), strict=False)
    }
