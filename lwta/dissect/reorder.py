"""Whether a concept ranks a unit's exemplars as the unit does (CLIP-Dissect, Oikarinen & Weng, ICLR 2023)."""

from concurrent.futures import ThreadPoolExecutor
from math import comb

import numpy as np
import torch
from torch import Tensor

from lwta.dissect.entries import Entries, entries_of
from lwta.dissect.kernels import walk_ranks
from lwta.dissect.presence import Presence, as_presence
from lwta.dissect.record import Exemplars
from lwta.errors import InputError

_PART = 2**23  # presences held at a time
_TASK = 16  # concepts of a thread's task


def rank_reorder_top(images: int) -> int:
    """How many exemplars ``rank_reorder`` reads of a unit: 5 % of the images, and 1 at least."""
    return max(1, int(0.05 * images))


def rank_reorder(
    exemplars: Exemplars, presence: Presence | Tensor, *, power: int = 3, scale_power: float = 0.5
) -> Tensor:
    """How little a unit's values change when its exemplars are ranked by concept: (D, K) float32.

    With t_i the value of exemplar i, and t'_i the value of the same rank among the unit's as i has by
    presence of the concept::

        score = -mean_i |t_i - t'_i|^power / mean_ij |t_i - t_j|^power / (mean_i P_i)^scale_power

    The second mean, over all pairs, is what a random ranking costs: the expectation of what the public
    code draws as five permutations. It is the same for all concepts of a unit, so it moves no label.

    Args:
        exemplars: all of them are read: the top 5 % of the images as published, :func:`rank_reorder_top`.
            Images of equal presence are ranked by their index.
        presence: P (N, K).
        power: a whole number from 1.
        scale_power: how much a high mean presence counts.

    Returns:
        Scores; -inf where the mean presence is not positive, NaN for a unit whose values are all equal.

    Raises:
        InputError: ``power`` is no whole number from 1, or an exemplar is no image of ``presence``.

    Source: arXiv 2204.10965, appendix, and its public constants (p = 3, top 5 %, scale .5).
    """
    if power < 1 or power != int(power):
        raise InputError(f"power is {power}; rank_reorder needs a whole number from 1")
    presence = as_presence(presence)
    entries = entries_of(exemplars, presence, max(1, len(exemplars.images)))
    values, ascending = _scaled(exemplars, entries)
    errors, presences = _sums(entries, presence, values, ascending, int(power))
    lengths = entries.lengths.double()[:, None]
    random = _of_all_pairs(ascending, entries.lengths, int(power))[:, None]
    mean_presence = presences / lengths
    scores = -errors / lengths / random / mean_presence.clamp_min(0) ** scale_power
    scores = torch.where(mean_presence > 0, scores, -torch.inf)
    return scores.masked_fill(~(random > 0), torch.nan).float()


def _scaled(exemplars: Exemplars, entries: Entries) -> tuple[Tensor, Tensor]:
    """Value of each entry (M,), and each unit's in ascending order (D, k), float32, scaled to [0, 1].

    The score does not depend on the scale, and cubes of tiny or huge values would leave float32.
    """
    values = exemplars.values[: entries.longest].double()
    values = torch.where(exemplars.negative, -values, values)
    listed = exemplars.images[: entries.longest] >= 0
    low = values.masked_fill(~listed, torch.inf).amin(0)
    span = values.masked_fill(~listed, -torch.inf).amax(0) - low
    scaled = ((values - low) / torch.where(span > 0, span, 1.0)).float()
    ascending = scaled.masked_fill(~listed, torch.inf).sort(0).values.T.contiguous()
    return scaled[entries.rank, entries.unit], ascending


def _of_all_pairs(ascending: Tensor, lengths: Tensor, power: int) -> Tensor:
    """Mean of |t_i - t_j|^power over all pairs of a unit's values, themselves included, (D,).

    Of sorted values, (t_i - t_j)^power over j < i is by the binomial theorem a sum of powers of t_i times
    sums of powers of the values before it.
    """
    t = ascending.double().masked_fill(ascending.isinf(), 0)
    listed = torch.arange(t.shape[1]) < lengths[:, None]
    total = torch.zeros_like(t)
    for m in range(power + 1):
        before = (t**m * listed).cumsum(1) - t**m * listed
        total += comb(power, m) * (-1) ** m * t ** (power - m) * before
    # Rounding can leave a little of equal values, whose cost is exactly 0.
    last = t.gather(1, (lengths - 1).clamp_min(0)[:, None])[:, 0]
    return (2 * (total * listed).sum(1) / lengths.double() ** 2).masked_fill(~(last > t[:, 0]), 0)


def _sums(
    entries: Entries, presence: Presence, values: Tensor, ascending: Tensor, power: int
) -> tuple[Tensor, Tensor]:
    """Sums over each unit's list of |t - t'|^power and of P, (D, K) float64 each."""
    units, concepts, images = len(entries.lengths), presence.shape[1], len(entries.images)
    errors, presences = np.zeros((concepts, units)), np.zeros((concepts, units))
    by_image = entries.place.argsort(stable=True)
    starts = np.searchsorted(entries.place[by_image].numpy(), np.arange(images + 1))
    lists = (starts, entries.unit[by_image].int().numpy(), values[by_image].numpy(), ascending.numpy(), power)

    def walk(part: np.ndarray, first: int) -> None:
        at = slice(first, first + len(part))
        walk_ranks(_ascending_order(part), part, *lists, errors[at], presences[at])

    width = max(_TASK, _PART // max(1, images))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for first in range(0, concepts, width):
            part = presence.part(entries.images, slice(first, first + width)).T.contiguous().numpy()
            tasks = [pool.submit(walk, part[i : i + _TASK], first + i) for i in range(0, len(part), _TASK)]
            for task in tasks:
                task.result()
    return torch.from_numpy(errors).T, torch.from_numpy(presences).T


def _ascending_order(rows: np.ndarray) -> np.ndarray:
    """Order of each row's values, the lower place first among equals, (c, n) int64.

    One sort of whole numbers, of which the value is the upper half and the place the lower, is several times
    faster than a stable argsort. The bits of a float ascend with it if it is positive, and descend if not.
    """
    bits = (rows + np.float32(0)).view(np.int32)  # + 0 makes -0 a 0
    keys = (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).astype(np.int64) << 32
    keys |= np.arange(rows.shape[1])
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    return keys
