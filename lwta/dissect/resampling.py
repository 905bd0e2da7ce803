"""How stable labels are: whether a unit keeps its label when images or concepts are drawn anew."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lwta.dissect.labelers import LayerData
from lwta.dissect.labelers.clip import ClipLabeler
from lwta.dissect.labels import texts_of
from lwta.dissect.presence import Part

KEPT = ("kept_images", "kept_concepts")


def kept_labels(
    labeler: ClipLabeler, data: LayerData, labels: Sequence[str | None], times: int, seed: int = 0
) -> pd.DataFrame:
    """Share of resamples in which each unit keeps its label.

    - ``images``: as many probe images drawn with replacement. Of similarities that look at exemplars alone,
      an exemplar counts as often as its image was drawn, and images beyond the exemplars kept do not move up.
    - ``concepts``: as many concepts drawn with replacement, that is some 63 % of them; of the draws that hold
      the unit's label. Only where a concept's score depends on the others (soft_wpmi, wpmi): elsewhere the
      best of all is the best of any that hold it.

    Args:
        labeler: that chose the labels.
        data: of the layer, as it was told the labeler.
        labels: of all units, in order; None where there is none.
        times: resamples of each kind.
        seed: of the draws.

    Returns:
        Columns ``kept_images`` and ``kept_concepts``; NaN for units without a label, and for those whose
        label no draw holds. And beside them, as ``shuffled_kept_images``, the share of the draws in which
        the unit gets the label of another drawn from all of them.
    """
    generator = np.random.default_rng(seed)
    told, mine = np.array([label is not None for label in labels]), _texts(labels)
    kept, shuffled, held = np.zeros((3, 2, len(labels)))
    plain = _alone(labeler, labeler.names)
    for _ in range(times):
        counts = generator.multinomial(len(data.seen), np.full(len(data.seen), 1 / max(1, len(data.seen))))
        found = texts_of(plain.label(_redrawn(data, torch.from_numpy(counts))))
        held[0] += told
        kept[0] += (_texts(found) == mine) & told
        shuffled[0] += _alike(_texts(found), mine[told]) * told
        if labeler.prior is None:
            continue
        drawn = np.unique(generator.integers(len(labeler.names), size=len(labeler.names)))
        if len(drawn) < 2:
            continue
        names = [labeler.names[k] for k in drawn]
        chosen = data._replace(presence=Part(data.presence, concepts=torch.from_numpy(drawn)))
        found = texts_of(_alone(labeler, names).label(chosen))
        there = np.isin(mine, names) & told
        held[1] += there
        kept[1] += (_texts(found) == mine) & there
        shuffled[1] += _alike(_texts(found), mine[there]) * there
    columns = {}
    for start, counted in (("", kept), ("shuffled_", shuffled)):
        shares = np.divide(counted, held, out=np.full_like(held, np.nan), where=held > 0)
        columns |= {f"{start}{name}": share for name, share in zip(KEPT, shares, strict=True)}
    return pd.DataFrame(columns)


def _alike(found: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of the labels that equal what each unit was given."""
    words, counts = np.unique(labels, return_counts=True)
    share = dict(zip(words.tolist(), (counts / max(1, len(labels))).tolist(), strict=True))
    return np.array([share.get(text, 0.0) for text in found.tolist()])


def _texts(labels: Sequence[str | None]) -> np.ndarray:
    return np.array([label or "" for label in labels])


def _alone(labeler: ClipLabeler, names: list[str]) -> ClipLabeler:
    """The labeler over other words, without the priors kept of the whole."""
    similarity = labeler.name.removeprefix("clip ")
    return ClipLabeler(names, similarity, labeler.prior, device=labeler.device)


def _redrawn(data: LayerData, counts: Tensor) -> LayerData:
    """A layer as if each image it was seen on had been there ``counts`` times; wins stay as they were."""
    seen = data.seen.repeat_interleave(counts)
    if data.values is not None:
        return data._replace(seen=seen)
    e, held = data.evidence, data.exemplars.images
    times = torch.zeros(int(max(held.max(), data.seen.max())) + 1, dtype=torch.long)
    times[data.seen] = counts
    listed = torch.where(held >= 0, times[held.clamp_min(0)], 0).T.contiguous()  # (D, k)
    unit = torch.arange(len(listed)).repeat_interleave(listed.sum(1))
    begins = torch.cat([torch.zeros(1, dtype=torch.long), listed.sum(1).cumsum(0)])
    rank = torch.arange(len(unit)) - begins[unit]
    room = rank < len(held)

    def drawn(parts: Tensor, empty: int) -> Tensor:
        every = parts.T.flatten().repeat_interleave(listed.flatten())
        return torch.full_like(parts, empty).index_put_((rank[room], unit[room]), every[room])

    return data._replace(
        seen=seen, evidence=replace(e, images=drawn(e.images, -1), values=drawn(e.values, 0))
    )
