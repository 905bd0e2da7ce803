"""Where units fired: their values over the grid of patches or pixels."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from lwta.dissect.activations import Readout
from lwta.layers import Firing

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
