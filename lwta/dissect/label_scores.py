"""Labels of a layer scored by all metrics, and so three labelings that mean nothing.

| control | what it is |
|---|---|
| constant | one concept for all units of the layer: the one of the highest mean correlation here |
| shuffled | the layer's labels, dealt out anew among its units |
| random | a concept drawn for each unit |

What cannot be judged is missing, with the reason, and never 0: a label the annotations do not know, or that
fewer than ten of the images show (or lack); a unit that has the same value on all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lwta.dissect.labels import plain, texts_of
from lwta.dissect.metrics import GENERATED, REPORTED, TOP, Responses, Shown, measure, p_values
from lwta.dissect.presence import Matrix, Presence
from lwta.errors import InputError

CONTROLS = ("constant", "shuffled", "random")
FEWEST = 10  # images with the concept, and without
DRAWS = 10  # of labels dealt out anew, and of random concepts

_CONCEPTS = 512  # looked at together


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


def judge_layer(
    rows: pd.DataFrame,
    values: np.ndarray,
    judge: Judge,
    images: Tensor | None = None,
    *,
    top: float = TOP,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge the labels of a layer.

    Args:
        rows: of the label table (:data:`lwta.dissect.labels.COLUMNS`), all units of the layer. One whose
            label describes its negative wins is judged by -value.
        values: (N, D), what the readout reads of each image.
        judge: what tells which of the N images show a concept.
        images: int64, those of the N that are judged on, all where not given.
        top: share of the images that a unit responds to, for f1 and iou.
        draws: of shuffled and of random labels, whose mean is taken.
        seed: of those.

    Returns:
        A row for each unit: layer, unit, label; the metrics of its label; those of each control, as
        ``constant_correlation``; p_value, how likely a label that means nothing has as high an AUROC; place,
        that of the label among the concepts by correlation; shown, images that show it; and unscored, why
        there is nothing of all this.

    Raises:
        InputError: the label table is of another number of units.
    """
    rows = rows.sort_values("unit")
    if len(rows) != values.shape[1]:
        raise InputError(
            f"the labels tell {len(rows)} units of {rows['layer'].iloc[0]}, which has {values.shape[1]}"
        )
    seen = torch.arange(len(values)) if images is None else images
    sign = np.where(rows["negative"].to_numpy(dtype=bool), -1, 1)
    layer = _Layer(values[seen.numpy()] * sign, judge, seen, top)
    labels = texts_of(rows)
    told = layer.places(labels)
    reasons = layer.reasons(labels, told)
    scored = np.array([unit for unit, reason in enumerate(reasons) if reason is None], dtype=np.int64)
    columns = {name: np.full(len(rows), np.nan) for name in _columns()}
    if len(scored):
        for name, column in layer.scores(scored, told[scored], draws, np.random.default_rng(seed)).items():
            columns[name][scored] = column
    # Of those whose label is known of some images only.
    for unit in scored[np.isnan(columns[REPORTED[0]][scored])].tolist():
        reasons[unit] = "the same value on the images that tell of it"
        for column in columns.values():
            column[unit] = np.nan
    table = rows[["layer", "unit", "label"]].reset_index(drop=True)
    return table.assign(unscored=pd.array(reasons, dtype="string"), **columns)


def judge_generated(
    rows: pd.DataFrame,
    values: np.ndarray,
    made: np.ndarray,
    names: list[str],
    shown: np.ndarray,
    *,
    draws: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """AUROC and MAD of images made of a concept against those judged on, of which none counts as showing it.

    Args:
        rows: of the label table, all units of the layer.
        values: (N, D), of the images judged on.
        made: (G, D), of the generated images.
        names: K concepts that images were made of.
        shown: bool (G, K), which each was made of.
        draws, seed: as in :func:`judge_layer`.

    Returns:
        A row for each unit, in order: generated_auroc and generated_mad, and those of each control.
    """
    # What was made of other concepts is left out, as what nobody looked at.
    presence = np.concatenate([np.zeros((len(values), len(names))), np.where(shown, 1, np.nan)])
    judge = Judge(names, Matrix(presence.astype(np.float32)))
    found = judge_layer(rows, np.concatenate([values, made]), judge, draws=draws, seed=seed)
    plain = [name.removeprefix("generated_") for name in GENERATED]
    own = dict(zip(plain, GENERATED, strict=True))
    controls = {f"{c}_{name}": f"{c}_{new}" for c in CONTROLS for name, new in own.items()}
    return pd.DataFrame({new: found[name] for name, new in (own | controls).items()})


def _columns() -> list[str]:
    controls = [f"{control}_{metric}" for control in CONTROLS for metric in REPORTED]
    return [*REPORTED, "p_value", "place", "concepts", "shown", *controls]


class _Layer:
    """Units of a layer and the concepts that can be judged on the images."""

    def __init__(self, values: np.ndarray, judge: Judge, seen: Tensor, top: float) -> None:
        self.values, self.judge, self.seen, self.top = values, judge, seen, top
        self.constant = np.ptp(values, axis=0) == 0 if len(values) else np.ones(values.shape[1], bool)
        parts = [
            self._pass(range(k, min(k + _CONCEPTS, len(judge.names))))
            for k in range(0, len(judge.names), _CONCEPTS)
        ]
        self.shown, self.lacking = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        self.correlation = np.concatenate([part[2] for part in parts], 1)
        self.usable = (self.shown >= FEWEST) & (self.lacking >= FEWEST)

    def _pass(self, concepts: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images that show each concept and that do not, and its correlation with every unit, (D, k)."""
        looked = self._look(np.array(concepts))
        count = looked.clear.sum(1), (looked.known & ~looked.clear).sum(1)
        whole = looked.known.all(1)
        found = np.full((self.values.shape[1], len(concepts)), np.nan, np.float32)
        found[:, whole] = _correlations(self.values, looked.graded[whole])
        for k in np.flatnonzero(~whole & looked.known.any(1)):
            known = looked.known[k]
            found[:, [k]] = _correlations(self.values[known], looked.graded[[k]][:, known])
        return *count, found

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
                return "the label is no concept of the judge"
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
        found = self._measured(a, units, own, test=True)
        for control, labels in chosen.items():
            each = [self._measured(a, units, concepts) for concepts in labels]
            found |= {f"{control}_{m}": _mean([one[m] for one in each]) for m in REPORTED}
        mine = correlation[np.arange(len(units)), own]
        found["place"] = 1 + (correlation[:, pool] > mine[:, None]).sum(1)
        found["concepts"], found["shown"] = np.full(len(units), len(pool)), self.shown[own]
        return found

    def _measured(
        self, a: Responses, units: np.ndarray, concepts: np.ndarray, test: bool = False
    ) -> dict[str, np.ndarray]:
        """Metrics of units, each for its concept, on the images where that is known."""
        different, turn = np.unique(concepts, return_inverse=True)
        looked = self._look(different)
        found = _with_test(a, Shown(looked.graded[turn], looked.clear[turn]), test)
        for k in np.flatnonzero(~looked.known.all(1)):
            mine, known = turn == k, looked.known[k]
            part = Responses(self.values[known][:, units[mine]], self.top)
            shape = (int(mine.sum()), 1)
            shown = Shown(np.tile(looked.graded[k, known], shape), np.tile(looked.clear[k, known], shape))
            for name, value in _with_test(part, shown, test).items():
                found[name][mine] = value
        return found


def _mean(draws: list[np.ndarray]) -> np.ndarray:
    """Over the draws that could be scored; NaN where none could."""
    values = np.stack(draws)
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(len(total), np.nan), where=known.any(0))


def _with_test(a: Responses, c: Shown, test: bool) -> dict[str, np.ndarray]:
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
