"""Similarity of units and concepts over probe images: every measure of CLIP-Dissect, and Jensen-Shannon.

| measure | reads | source |
|---|---|---|
| :func:`soft_wpmi`, :func:`wpmi`, :func:`rank_reorder` | exemplars | CLIP-Dissect, arXiv 2204.10965 |
| :func:`cos`, :func:`cos_cubed` | all values | the same |
| :func:`jensen_shannon` | the positive values | named in DISCOVER, arXiv 2310.04929 |

All return scores (D, K), float32, of which the largest of a row is the unit's label. A unit without
exemplars or without anything to compare is NaN throughout: to be found before the largest is taken.
"""

import torch
from torch import Tensor

from lwta.dissect.columns import cos, cos_cubed, jensen_shannon
from lwta.dissect.record import Exemplars
from lwta.dissect.reorder import rank_reorder, rank_reorder_top
from lwta.dissect.wpmi import common, soft_wpmi, soft_wpmi_likelihood, wpmi, wpmi_likelihood
from lwta.errors import InputError

__all__ = [
    "common",
    "cos",
    "cos_cubed",
    "exemplars_of",
    "jensen_shannon",
    "rank_reorder",
    "rank_reorder_top",
    "soft_wpmi",
    "soft_wpmi_likelihood",
    "wpmi",
    "wpmi_likelihood",
]


def exemplars_of(values: Tensor, top: int, won: Tensor | None = None) -> Exemplars:
    """The exemplars of every unit from values that are all at hand.

    Args:
        values: what each unit did for each image, (N, D).
        top: exemplars kept per unit; N where there are fewer images.
        won: bool (N, D), which values count, and a unit whose wins are mostly negative is ranked by -value.
            None: all of them, ranked by value, as the public CLIP-Dissect code does.

    Returns:
        Exemplars; of equal values the image of the lower index comes first.

    Raises:
        InputError: ``top`` is below 1, or ``won`` is not of the shape of ``values``.
    """
    if top < 1:
        raise InputError(f"top is {top}; at least 1 exemplar of each unit must be kept")
    count, units = values.shape
    ranked = values.detach().cpu().float().T.contiguous()
    wins, negative = torch.full((units,), count), torch.zeros(units, dtype=torch.bool)
    if won is not None:
        if won.shape != values.shape:
            raise InputError(
                f"won is {tuple(won.shape)} and values {tuple(values.shape)}; they must be alike"
            )
        taken = won.cpu().T
        wins = taken.sum(1)
        negative = ((ranked < 0) & taken).sum(1) * 2 > wins
        ranked = torch.where(negative[:, None], -ranked, ranked).masked_fill(~taken, -torch.inf)
    best, images = _largest(ranked, min(top, count))
    beyond = torch.arange(best.shape[1]) >= wins[:, None]
    signed = torch.where(negative[:, None], -best, best)
    return Exemplars(
        images=images.masked_fill(beyond, -1).T.contiguous(),
        values=signed.masked_fill(beyond, 0).T.contiguous(),
        wins=wins,
        negative=negative,
        count=count,
    )


def _largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their places, the lower place first among equals."""
    best, places = rows.topk(min(k + 1, rows.shape[1]), dim=1)
    # topk leaves equals in any order, and which of them it takes at the end: only such rows are sorted.
    tied = (best[:, 1:] == best[:, :-1]).any(1)
    best, places = best[:, :k].clone(), places[:, :k].clone()
    if tied.any():
        ordered, order = rows[tied].sort(dim=1, descending=True, stable=True)
        best[tied], places[tied] = ordered[:, :k], order[:, :k]
    return best, places
