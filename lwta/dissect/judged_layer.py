"""A layer before a judge: which of its labels can be scored, and their metrics beside those of controls."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lwta.dissect.labels import plain
from lwta.dissect.metrics import REPORTED, measure, p_values
from lwta.dissect.presence import Presence
from lwta.dissect.responses import Responses, Shown

CONTROLS = ("constant", "shuffled", "random")
FEWEST = 10  # images with the concept, and without
UNKNOWN = "the label is no concept of the judge"

_CONCEPTS = 512  # looked at together
_NOTHING = 1e-12  # of a variance of 1, the last bits of sums


class Judge(NamedTuple):
    """What tells which images show a concept.

    Attributes:
        names: K concepts.
        presence: (N, K): 0 to 1, shown from .5 on, NaN where unknown; or cosines, with ``share``.
        share: images with the highest presence of a concept that are taken to show it, as a share of all;
            None where the presence says it.
    """

    names: list[str]
    presence: Presence
    share: float | None = None


class _Looked(NamedTuple):
    """Presence of some concepts in the images judged on: ``graded``, ``clear`` and ``known`` (k, n)."""

    graded: np.ndarray
    clear: np.ndarray
    known: np.ndarray


class JudgedLayer:
    """Units of a layer and the concepts that can be judged on the images.

    Args:
        values: (n, D), of the images judged on.
        judge: what tells which images show a concept.
        seen: int64 (n,), those images among the judge's.
        top: share of the images that a unit responds to, for f1 and iou.
    """

    def __init__(self, values: np.ndarray, judge: Judge, seen: Tensor, top: float) -> None:
        self.values, self.judge, self.seen, self.top = values, judge, seen, top
        self.constant = np.ptp(values, axis=0) == 0 if len(values) else np.ones(values.shape[1], bool)
        parts = [
            self._pass(range(k, min(k + _CONCEPTS, len(judge.names))))
            for k in range(0, len(judge.names), _CONCEPTS)
        ]
        self.shown, self.lacking, self.whole = (np.concatenate([part[i] for part in parts]) for i in range(3))
        self.correlation = np.concatenate([part[3] for part in parts], 1)
        self.usable = (self.shown >= FEWEST) & (self.lacking >= FEWEST)

    def _pass(self, concepts: range) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each concept the images that show it and that do not, whether it is known of all, and its
        correlation with every unit, (D, k)."""
        looked = self._look(np.array(concepts))
        count = looked.clear.sum(1), (looked.known & ~looked.clear).sum(1)
        whole: np.ndarray = np.all(looked.known, axis=1)
        found = np.full((self.values.shape[1], len(concepts)), np.nan, np.float32)
        found[:, whole] = _correlations(self.values, looked.graded[whole])
        if not whole.all():
            found[:, ~whole] = _correlations_with_gaps(self.values, looked.graded[~whole])
        return *count, whole, found

    def _look(self, concepts: np.ndarray) -> _Looked:
        index = torch.from_numpy(concepts)
        graded = self.judge.presence.part(self.seen, index).numpy().T
        known = ~np.isnan(graded)
        if self.judge.share is None:
            return _Looked(graded, graded >= 0.5, known)
        place = max(0, graded.shape[1] - max(1, round(self.judge.share * graded.shape[1])))
        return _Looked(graded, graded >= np.partition(graded, place, axis=1)[:, [place]], known)

    def places(self, labels: Sequence[str | None]) -> np.ndarray:
        """Place of each label among the concepts, -1 where it is none of them."""
        place = {plain(name): k for k, name in enumerate(self.judge.names)}
        return np.array([-1 if label is None else place.get(plain(label), -1) for label in labels])

    def reasons(self, labels: Sequence[str | None], told: np.ndarray) -> list[str | None]:
        """Why a unit's label is not scored, None where it is."""

        def reason(unit: int, label: str | None, k: int) -> str | None:
            if label is None:
                return "no label"
            if k < 0:
                return UNKNOWN
            if self.constant[unit]:
                return "the same value on every image"
            if self.shown[k] < FEWEST:
                return f"{self.shown[k]} images show it, fewer than {FEWEST}"
            if self.lacking[k] < FEWEST:
                return f"{self.lacking[k]} images do not show it, fewer than {FEWEST}"
            return None

        pairs = zip(labels, told.tolist(), strict=True)
        return [reason(unit, label, k) for unit, (label, k) in enumerate(pairs)]

    def scores(
        self, units: np.ndarray, own: np.ndarray, draws: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Columns of the table for units with a label that can be scored."""
        a, pool = Responses(self.values[:, units], self.top), np.flatnonzero(self.usable)
        correlation = np.where(np.isnan(self.correlation), -1, self.correlation)[units]
        best = pool[correlation[:, pool].mean(0).argmax()]
        chosen = {
            "constant": [np.full(len(units), best)],
            "shuffled": [rng.permutation(own) for _ in range(draws)],
            "random": [rng.choice(pool, len(units)) for _ in range(draws)],
        }
        counts = [1, *(len(labels) for labels in chosen.values())]
        first = np.cumsum([0, *counts])[:-1]
        every = self._measured(a, np.stack([own, *chain(*chosen.values())]), first)
        found: dict[str, np.ndarray] = {}
        for start, row, count in zip(["", *(f"{c}_" for c in chosen)], first, counts, strict=True):
            found |= {f"{start}{m}": _mean(every[m][row : row + count]) for m in REPORTED}
            found[f"{start}p_value"] = every["p_value"][row]
        mine = correlation[np.arange(len(units)), own]
        found["place"] = 1 + (correlation[:, pool] > mine[:, None]).sum(1)
        found["concepts"], found["shown"] = np.full(len(units), len(pool)), self.shown[own]
        return found

    def _measured(self, a: Responses, labelings: np.ndarray, tested: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of units, each for its concept, on the images where that is known.

        Args:
            a: of D units.
            labelings: (L, D), concepts.
            tested: those of the L that p_value is found of.

        Returns:
            Name -> (L, D).
        """
        found = {name: np.full(labelings.shape, np.nan) for name in (*REPORTED, "p_value")}
        everywhere = np.ones(len(self.seen), bool)
        for row, concepts in enumerate(labelings):
            mine = self.whole[concepts]
            if not mine.any():
                continue
            different, turn = np.unique(concepts[mine], return_inverse=True)
            looked = self._look(different)
            part = a if mine.all() else a.part(mine, everywhere)
            for name, value in _scores(part, looked.graded[turn], looked.clear[turn], row in tested).items():
                found[name][row, mine] = value
        # What a concept with gaps is known of is its own, so its units of all labelings are taken together.
        gappy = np.unique(labelings[~self.whole[labelings]])
        for start in range(0, len(gappy), _CONCEPTS):
            concepts = gappy[start : start + _CONCEPTS]
            for concept, graded, clear, known in zip(concepts, *self._look(concepts), strict=True):
                rows, units = np.nonzero(labelings == concept)
                different, turn = np.unique(units, return_inverse=True)
                part, test = a.part(different, known), bool(np.isin(rows, tested).any())
                for name, value in _scores(part, graded[known], clear[known], test).items():
                    found[name][rows, units] = value[turn]
        return found


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the draws that could be scored, (draws, D) to (D,); NaN where none could."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(len(total), np.nan), where=known.any(0))


def _scores(a: Responses, graded: np.ndarray, clear: np.ndarray, test: bool) -> dict[str, np.ndarray]:
    c = Shown(*(np.broadcast_to(of, a.values.shape) for of in (graded, clear)))
    return measure(a, c) | ({"p_value": p_values(a, c)} if test else {})


def _correlations(values: np.ndarray, graded: np.ndarray) -> np.ndarray:
    """Pearson's correlation of values (n, D) and presence (k, n), (D, k) float32; NaN of what is constant."""
    parts = []
    for rows in (values.T, graded):
        rows = rows.astype(np.float32)
        centred = rows - rows.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        varies = np.ptp(rows, axis=1, keepdims=True) > 0
        parts.append(
            np.divide(centred, length, out=np.full_like(centred, np.nan), where=varies & (length > 0))
        )
    return parts[0] @ parts[1].T


def _correlations_with_gaps(values: np.ndarray, graded: np.ndarray) -> np.ndarray:
    """:func:`_correlations` where a concept is not known (NaN) of all images, over those it is known of."""
    known = ~np.isnan(graded)
    weights, count = known.astype(np.float64), known.sum(1)
    told = np.where(known, graded, 0).astype(np.float64)
    concepts = np.where(known, told - (told.sum(1) / np.maximum(count, 1))[:, None], 0)
    units = values.T.astype(np.float64)
    units -= units.mean(1, keepdims=True)
    deviation = units.std(1, keepdims=True)
    units = np.divide(units, deviation, out=np.zeros_like(units), where=deviation > 0)
    mean = units @ weights.T / np.maximum(count, 1)
    squares = np.square(units) @ weights.T - count * mean**2
    lengths = np.square(concepts).sum(1)
    found = np.full(squares.shape, np.nan)
    varies = (squares > _NOTHING * count) & (lengths > _NOTHING * count)
    # The concepts sum to 0 over the images where they are known, so units need no centring there.
    np.divide(units @ concepts.T, np.sqrt(np.maximum(squares, 0) * lengths), out=found, where=varies)
    return found.astype(np.float32)
