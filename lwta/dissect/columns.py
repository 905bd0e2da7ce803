"""Similarities of a unit's values over all probe images with a concept's presence, streamed.

Values and presence are read in blocks of images; what is kept besides a block does not grow with them.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lwta.dissect.kernels import CHUNK, add_divergence
from lwta.dissect.presence import Cosines, Presence, as_presence, rows_of
from lwta.errors import InputError
from lwta.threads import over_ranges

_BLOCK = 512  # images


def cos(
    values: Tensor | np.ndarray, presence: Presence | Tensor, *, negative: Tensor | None = None
) -> Tensor:
    """Cosine of a unit's values and a concept's presence over the images, (D, K) float32.

    With A the values: score = sum_i A_id P_ik / (|A_d| |P_k|). Where P are cosines of embeddings, P = I T',
    it is computed from A'I (D, E) and I'I (E, E), without P.

    Args:
        values: (N, D), may be memory-mapped and of half precision.
        presence: P (N, K).
        negative: bool (D,), units of which -values are read.

    Returns:
        Scores; NaN for a unit that is 0 throughout, 0 for such a concept.

    Raises:
        InputError: ``values`` and ``presence`` are of different numbers of images.

    Source: arXiv 2204.10965, its baseline similarity.
    """
    presence = as_presence(presence)
    factored = isinstance(presence, Cosines)
    width = presence.texts.shape[1] if isinstance(presence, Cosines) else presence.shape[1]
    products = torch.zeros(values.shape[1], width, dtype=torch.float64)
    gram = torch.zeros((width, width) if factored else width, dtype=torch.float64)
    squares = torch.zeros(values.shape[1], dtype=torch.float64)
    for images, a in _blocks(values, presence, negative):
        p = presence.directions(images) if isinstance(presence, Cosines) else presence.part(images)
        products += a.T @ p
        gram += p.T @ p if factored else _squares(p)
        squares += _squares(a)
    if isinstance(presence, Cosines):
        texts = presence.texts.double()
        products, gram = products @ texts.T, (texts @ gram * texts).sum(1)
    return _normalised(products, squares, gram.clamp_min(0), tiny=1e-150, dead=squares == 0)


def cos_cubed(
    values: Tensor | np.ndarray,
    presence: Presence | Tensor,
    *,
    min_norm: float = 1e-3,
    negative: Tensor | None = None,
) -> Tensor:
    """Cosine of a unit's and a concept's centred and cubed columns, (D, K) float32.

    With a_i = (A_i - mean A)^3 and p_i = (P_i - mean P)^3 over images::

        score = sum_i a_i p_i / (max(|a|, min_norm) max(|p|, min_norm))

    Arguments and errors are those of :func:`cos`. A unit that is constant is NaN.

    Args:
        min_norm: the least norm that is divided by.

    Source: arXiv 2204.10965, its public code (norms clipped at 1e-3).
    """
    presence = as_presence(presence)
    units, concepts = values.shape[1], presence.shape[1]
    sums = torch.zeros(units, dtype=torch.float64), torch.zeros(concepts, dtype=torch.float64)
    low, high = torch.full((units,), torch.inf), torch.full((units,), -torch.inf)
    for images, a in _blocks(values, presence, negative):
        for total, x in zip(sums, (a, presence.part(images)), strict=True):
            total += x.sum(0, dtype=torch.float64)
        low, high = torch.minimum(low, a.amin(0)), torch.maximum(high, a.amax(0))
    mean_a, mean_p = ((total / len(values)).float() for total in sums)
    products = torch.zeros(units, concepts, dtype=torch.float64)
    squares = torch.zeros(units, dtype=torch.float64), torch.zeros(concepts, dtype=torch.float64)
    for images, a in _blocks(values, presence, negative):
        cubes = (a - mean_a) ** 3, (presence.part(images) - mean_p) ** 3
        products += cubes[0].T @ cubes[1]
        for total, x in zip(squares, cubes, strict=True):
            total += _squares(x)
    return _normalised(products, *squares, tiny=min_norm, dead=low == high)


def jensen_shannon(
    values: Tensor | np.ndarray,
    presence: Presence | Tensor,
    *,
    scale: float = 100.0,
    negative: Tensor | None = None,
) -> Tensor:
    """Minus the Jensen-Shannon divergence of units and concepts as distributions over images, (D, K) float32.

    With Q_d the unit's positive values divided by their sum and R_k = softmax over images of scale * P_k::

        score = -(1/2) sum_i (Q_i log(2 Q_i / (Q_i + R_i)) + R_i log(2 R_i / (Q_i + R_i)))

    An image on which the unit is not positive adds (1/2) R_i log 2, so only the others cost time. Arguments
    and errors are those of :func:`cos`; a unit that is nowhere positive is NaN.

    Args:
        scale: sharpness of R. At 1 all concepts are alike.

    Source: named in arXiv 2310.04929, which gives no formula; the divergence is that of
    Lin, IEEE Trans. Inf. Theory 37 (1991).
    """
    presence = as_presence(presence)
    units, concepts = values.shape[1], presence.shape[1]
    weights = torch.zeros(units, dtype=torch.float64)
    log_norm = torch.full((concepts,), -torch.inf, dtype=torch.float64)
    for images, a in _blocks(values, presence, negative):
        weights += a.clamp_min(0).sum(0, dtype=torch.float64)
        log_norm = torch.logaddexp(log_norm, (scale * presence.part(images)).logsumexp(0).double())
    sums = torch.zeros(units, concepts, dtype=torch.float64)
    for images, a in _blocks(values, presence, negative):
        log_shares = (scale * presence.part(images) - log_norm).float()
        shares = log_shares.exp()
        unit, row = (a.T > 0).nonzero(as_tuple=True)
        won, counts = unit.unique_consecutive(return_counts=True)
        # From 1e-30: smaller shares are worth nothing, and their bits are no normal number's.
        q = (a[row, unit] / weights[unit]).float().clamp_min(1e-30)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        arguments = (log_shares, shares, won, starts, row, q, sums)
        over_ranges(add_divergence, concepts, *(x.numpy() for x in arguments), chunk=CHUNK)
    scores = -0.5 * (sums + math.log(2))
    return scores.masked_fill(~(weights > 0)[:, None], torch.nan).float()


def _blocks(
    values: Tensor | np.ndarray, presence: Presence, negative: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Images, and the values there (n, D) float32, negated where ``negative``."""
    if len(values) != presence.shape[0]:
        raise InputError(
            f"values are given for {len(values)} images and the presence of concepts for "
            f"{presence.shape[0]}; compute both on the same probe set"
        )
    for start in range(0, len(values), _BLOCK):
        images = slice(start, min(start + _BLOCK, len(values)))
        a = rows_of(values, images)
        yield images, a if negative is None else torch.where(negative, -a, a)


def _squares(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=0, dtype=torch.float64).square()


def _normalised(products: Tensor, a: Tensor, p: Tensor, *, tiny: float, dead: Tensor) -> Tensor:
    """products (D, K) over the roots of a (D,) and p (K,), each ``tiny`` at least; NaN where dead."""
    products /= a.sqrt().clamp_min(tiny)[:, None]
    products /= p.sqrt().clamp_min(tiny)
    return products.masked_fill_(dead[:, None], torch.nan).float()
