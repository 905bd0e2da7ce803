"""Label units by similarity with concepts, in CLIP-Dissect's manner."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lwta.dissect import similarity as similarities
from lwta.dissect.labelers import LayerData, unit_rows
from lwta.dissect.labels import NEXT
from lwta.dissect.presence import Part
from lwta.dissect.record import Exemplars
from lwta.dissect.store import digest, load, save
from lwta.errors import InputError

FEWEST_WINS = 10
_EQUAL = 0.01  # scores this near to the highest possible one say the same


class Similarity(NamedTuple):
    """A way to score units (D) against concepts (K).

    Attributes:
        top: images of a probe set -> exemplars it looks at; None where it looks at every image.
        prior: published lambda of its prior over units; None where it has none.
        score: (D, K): the likelihood where there is a prior, else the score.
    """

    top: Callable[[int], int] | None
    prior: float | None
    score: Callable[..., Tensor]


SIMILARITIES = {
    "soft_wpmi": Similarity(lambda n: 100, 1.0, similarities.soft_wpmi_likelihood),
    "wpmi": Similarity(lambda n: 28, 0.6, similarities.wpmi_likelihood),
    "rank_reorder": Similarity(similarities.rank_reorder_top, None, similarities.rank_reorder),
    "cos": Similarity(None, None, similarities.cos),
    "cos_cubed": Similarity(None, None, similarities.cos_cubed),
    "jensen_shannon": Similarity(None, None, similarities.jensen_shannon),
}


def find_similarity(name: str, prior: float | None) -> tuple[Similarity, float | None]:
    """A similarity by its name, and the weight of its prior, the published one where not given.

    Raises:
        InputError: no such similarity; a prior that is none, or of a similarity without one.
    """
    if name not in SIMILARITIES:
        raise InputError(f"there is no similarity {name!r}; it is one of {', '.join(SIMILARITIES)}")
    found = SIMILARITIES[name]
    if prior is None:
        return found, found.prior
    if found.prior is None:
        raise InputError(f"{name} has no prior over units; leave --prior away")
    if not 0 <= prior <= 1:
        raise InputError(f"prior lies in [0, 1], and {prior:g} does not")
    return found, prior


class ClipLabeler:
    """Labels a unit by the concept of the highest similarity.

    Where the prior leaves several equal, by the likeliest of them. A unit that won on fewer than ten probe
    images gets no label, with the reason; so does one that is dead, or gives the same value everywhere.

    Args:
        names: K concepts.
        similarity: a key of :data:`SIMILARITIES`.
        prior: lambda, how much a concept counts less where other units show it too; None as published. Where
            many units of a small layer share a concept, 1 leaves it to the best of them and pushes the
            others to words that fit worse; less does not.
        identity: of the concepts, to find priors again.
        cache: folder for the priors of layers, which a subset of units is scored against.
        device: where to compute.
    """

    def __init__(
        self,
        names: Sequence[str],
        similarity: str = "soft_wpmi",
        prior: float | None = None,
        *,
        identity: dict[str, Any] | None = None,
        cache: Path | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.similarity, self.prior = find_similarity(similarity, prior)
        self.names, self.name, self.device = list(names), f"clip {similarity}", device
        self.identity = (identity or {}) | {"similarity": similarity}
        self.cache = cache

    def label(self, data: LayerData, units: Sequence[int] | None = None) -> pd.DataFrame:
        """Rows of the label table (:data:`lwta.dissect.labels.COLUMNS`)."""
        asked = list(range(len(data.exemplars.wins)) if units is None else units)
        table = unit_rows(data, asked)
        heard = self.heard(data)
        alone = self.prior is not None and int(heard.sum()) == 1  # its prior is itself: every score is 0
        told = [place for place, unit in enumerate(asked) if heard[unit] and not alone]
        reasons = [None if heard[unit] else _reason(data, unit) for unit in asked]
        table["reason"] = pd.array(reasons, dtype="string")
        if alone:
            table.loc[heard[asked].numpy(), "reason"] = (
                "the only unit of its layer with enough wins, so nothing to compare it with"
            )
        if told:
            scores, likelihood = self.scores(data, [asked[place] for place in told])
            scores = scores.masked_fill(scores.isnan(), -torch.inf)
            # With the published prior no score exceeds log D, and all that reach it say the same.
            ceiling = math.log(int(heard.sum())) if self.prior == 1 else math.inf
            places, found = best(scores, scores if likelihood is None else likelihood, NEXT + 1, ceiling)
            for n, (place, score) in enumerate(zip(places.T.tolist(), found.T.tolist(), strict=True), 1):
                end = "" if n == 1 else f"_{n}"
                fits = [value > -torch.inf for value in score]
                table.loc[told, f"label{end}"] = [
                    self.names[k] if f else None for k, f in zip(place, fits, strict=True)
                ]
                table.loc[told, f"score{end}"] = [
                    v if f else math.nan for v, f in zip(score, fits, strict=True)
                ]
            none = [place for place in told if pd.isna(table.at[place, "label"])]
            table.loc[none, "reason"] = "no concept fits its exemplars"
        table.loc[table["label"].notna(), "labeler"] = self.name
        return table

    def heard(self, data: LayerData) -> Tensor:
        """bool (D,): the units that can have a label."""
        return (data.exemplars.wins >= FEWEST_WINS) & ~data.constant

    def scores(self, data: LayerData, units: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Score of units that are heard (n, K), and their likelihood where there is a prior."""
        score = self.similarity.score
        if self.similarity.top is None:
            assert data.values is not None
            columns, presence = torch.tensor(units), data.presence
            values = _Values(data.values, data.seen, columns)
            if not torch.equal(data.seen, torch.arange(len(data.values))):
                presence = Part(presence, data.seen)
            return score(values, presence, negative=data.exemplars.negative[columns]), None
        if self.prior is None:
            # More are kept than a similarity may look at: of a small probe set most of the images.
            top = self.similarity.top(data.exemplars.count)
            return score(_subset(data.evidence, units, top), data.presence), None
        heard = self.heard(data).nonzero()[:, 0].tolist()
        path = self._prior_file(data)
        known = None if path is None else load(path)
        if known is not None and len(units) < len(heard):
            likelihood = self._likelihood(data, units)
            return (likelihood - self.prior * known["common"]).float(), likelihood
        likelihood = self._likelihood(data, heard)
        common = similarities.common(likelihood)
        if path is not None:
            save(path, {"common": common})
        rows = slice(None) if list(units) == heard else [heard.index(unit) for unit in units]
        return (likelihood[rows] - self.prior * common).float(), likelihood[rows]

    def _likelihood(self, data: LayerData, units: Sequence[int]) -> Tensor:
        return self.similarity.score(_subset(data.evidence, units), data.presence, device=self.device)

    def _prior_file(self, data: LayerData) -> Path | None:
        if self.cache is None:
            return None
        return self.cache / "priors" / f"{digest({'layer': data.key, **self.identity})}.pt"


class _Values:
    """Some images and columns of values (N, D), read a block of images at a time."""

    def __init__(self, values: np.ndarray, images: Tensor, columns: Tensor) -> None:
        self.values, self.images, self.columns = values, images.numpy(), columns.numpy()
        self.shape = (len(images), len(columns))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.values[self.images[rows]][:, self.columns]


def _subset(exemplars: Exemplars, units: Sequence[int], top: int | None = None) -> Exemplars:
    """Some units, and of each the ``top`` strongest exemplars."""
    index = torch.tensor(units)
    return replace(
        exemplars,
        images=exemplars.images[:top, index],
        values=exemplars.values[:top, index],
        wins=exemplars.wins[index],
        negative=exemplars.negative[index],
        positions=None if exemplars.positions is None else exemplars.positions[:top, index],
    )


def _reason(data: LayerData, unit: int) -> str:
    wins = int(data.exemplars.wins[unit])
    if not wins:
        return "never won" if data.competitors else "zero on every image"
    if data.constant[unit]:
        return "the same value on every image"
    return f"won on {wins} images, fewer than {FEWEST_WINS}"


def best(scores: Tensor, likelihood: Tensor, count: int, ceiling: float = math.inf) -> tuple[Tensor, Tensor]:
    """The best concepts of each unit, the best first: places and scores, (D, count) or as many as there are.

    Args:
        ceiling: of the scores. A unit reaches it for every concept of which it is by far the best account in
            its layer: there only rounding would choose, so the likelihood does.
    """
    places, values = [], []
    for _ in range(min(count, scores.shape[1])):
        most = scores.amax(1, keepdim=True)
        equal = scores >= torch.where(most > ceiling - _EQUAL, most - _EQUAL, most)
        place = likelihood.masked_fill(~equal, -torch.inf).argmax(1, keepdim=True)
        places.append(place)
        values.append(scores.gather(1, place))
        scores = scores.scatter(1, place, -torch.inf)
    return torch.cat(places, 1), torch.cat(values, 1)
