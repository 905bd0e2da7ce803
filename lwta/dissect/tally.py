"""What a layer did, added up batch by batch: rows of every image, wins at every position, and the seconds."""

import torch
from torch import Tensor, nn

from lwta.dissect.activations import Reading, Readout
from lwta.functional import to_blocks
from lwta.layers import LWTA, Firing

_BLOCK = 512  # images for which room is made at once


class Rows:
    """Rows (n, D) gathered batch by batch.

    They are copied into blocks made for many of them. A tensor kept of each batch would lie between those
    that the pass allocates and frees around it, and tear free memory into pieces too small for the next.
    """

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []
        self.free = 0  # rows of the last block

    def add(self, rows: Tensor) -> None:
        """Add rows (n, D), of one width and dtype."""
        while len(rows):
            if not self.free:
                self.blocks.append(torch.empty(_BLOCK, *rows.shape[1:], dtype=rows.dtype))
                self.free = _BLOCK
            part = rows[: self.free]
            start = _BLOCK - self.free
            self.blocks[-1][start : start + len(part)] = part
            self.free -= len(part)
            rows = rows[len(part) :]

    def joined(self) -> Tensor:
        """All rows in the order in which they came."""
        last = self.blocks[-1][: _BLOCK - self.free]
        return torch.cat([*self.blocks[:-1], last])


class Tally:
    """What is known so far of one layer.

    Attributes:
        competition: of its units; None where nothing competes.
        values, won, contributions: rows of every image.
        fired: int64 (D,), positions read at which each unit fired.
        places: positions read, of all images.
        rivals: int64 (D, U), :func:`count_rivals`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.competition = module.competition if isinstance(module, LWTA) else None
        self.values, self.won, self.contributions = Rows(), Rows(), Rows()
        self.fired = self.rivals = torch.zeros((), dtype=torch.long)
        self.places = 0

    @torch.no_grad()
    def count(self, firing: Firing, readout: Readout) -> None:
        """Add what happened at the positions read."""
        fired = readout.positions(firing.fired, firing.dim)  # (n, T, D)
        self.fired = self.fired + fired.sum((0, 1)).cpu()
        self.places += fired.shape[0] * fired.shape[1]
        if self.competition is not None:
            u, beta = self.competition.competitors, self.competition.logit_scale
            self.rivals = self.rivals + count_rivals(firing, readout, u, beta).cpu()

    def add(self, read: Reading, product: Tensor, dim: int) -> None:
        """Add what was read of images, and gradient x activation of all units at all positions.

        Args:
            dim: axis of the units, where none is the layer's own.
        """
        axis = dim if self.competition is None else self.competition.dim
        self.values.add(read.values)
        self.won.add(read.won)
        self.contributions.add(
            (product.movedim(axis, 1).flatten(2).sum(2) if product.ndim > 2 else product).float()
        )


def count_rivals(firing: Firing, readout: Readout, competitors: int, beta: float) -> Tensor:
    """How often each unit of a block came second to each, int64 (D, U), over the positions read.

    Args:
        firing: a call of a competing layer.
        competitors: U.
        beta: logit scale of the competition.
    """
    assert firing.inputs is not None
    assert firing.winner is not None
    logits = beta * to_blocks(readout.positions(firing.inputs, firing.dim), competitors, 2)  # (n, T, B, U)
    winner = readout.positions(firing.winner, firing.dim)  # (n, T, B)
    second = logits.scatter_(3, winner[..., None], -torch.inf).argmax(3)
    blocks = logits.shape[2]
    units = winner + competitors * torch.arange(blocks, device=winner.device)
    pairs = (units * competitors + second).flatten()
    return pairs.bincount(minlength=blocks * competitors**2).view(-1, competitors)
