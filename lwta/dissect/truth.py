"""Labels against known concepts: does a unit's label name what the unit responds to?"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lwta.errors import InputError

LEAST_AUROC = 0.8
TIE = 0.02
_ROUNDING = 1e-6  # what is .02 below the best is in, however it rounds


class TruthScore(NamedTuple):
    """How many labels are true.

    Attributes:
        selective: units that tell some concept apart.
        not_selective: units that tell none; they have no true label to find.
        true_share: selective units whose label is one of their true concepts, over all selective ones;
            one without a label counts as false.
        shuffled_share: the same, expected when these labels are shuffled across these units. Both are NaN
            where no unit is selective.
        mean_auroc: of the units' best concepts, over all units: how selective they are.
    """

    selective: int
    not_selective: int
    true_share: float
    shuffled_share: float
    mean_auroc: float

    def __str__(self) -> str:
        told = f"{self.selective} selective units, {self.not_selective} not selective"
        if not self.selective:
            return f"{told}; no label can be judged"
        return (
            f"{told}; {100 * self.true_share:.1f} % of the selective ones carry a true label, "
            f"{100 * self.shuffled_share:.1f} % with the labels shuffled among them"
        )


class PairScore(NamedTuple):
    """Units that tell a pair of concepts better than any single one.

    Attributes:
        selective: such units.
        named_share: those whose label is a true pair, over all of them.
        half_share: those whose label is one concept of a true pair, likewise.
        shuffled_share: those of either kind, expected with the labels shuffled among them. All three are NaN
            where there is no such unit.
    """

    selective: int
    named_share: float
    half_share: float
    shuffled_share: float

    def __str__(self) -> str:
        told = f"{self.selective} units tell a pair of concepts better than any single one"
        if not self.selective:
            return told
        return (
            f"{told}; {100 * self.named_share:.1f} % of them are labelled with it, "
            f"{100 * self.half_share:.1f} % "
            f"with one of the two, {100 * self.shuffled_share:.1f} % with either once the labels are shuffled"
        )


def auroc(values: Tensor, presence: Tensor) -> Tensor:
    """Area under the ROC curve of every unit for every concept, (D, K).

    By ranks (Mann-Whitney), ties counted half; NaN for a concept that all images show, or none.

    Args:
        values: (N, D).
        presence: (N, K), 0 or 1.
    """
    ranks = torch.tensor(pd.DataFrame(values.numpy()).rank().to_numpy())  # a copy: pandas' own is read-only
    shows = presence.double()
    positives = shows.sum(0)
    above = ranks.T @ shows - positives * (positives + 1) / 2
    return (above / (positives * (len(values) - positives))).float()


def true_concepts(values: Tensor, presence: Tensor) -> Tensor:
    """Which concepts each unit stands for, bool (D, K).

    Those whose AUROC is at least .8 and within .02 of the unit's best; none for a unit that is not selective.
    """
    return _true(auroc(values, presence).nan_to_num(0))


def _true(scores: Tensor) -> Tensor:
    least = scores.amax(1, keepdim=True) - TIE - _ROUNDING
    return (scores >= LEAST_AUROC) & (scores >= least)


class Pairs(NamedTuple):
    """Concepts that occur together.

    Attributes:
        names: of each pair, as one text.
        parts: (P, 2), its two concepts.
        presence: (N, P), 0 or 1.
    """

    names: list[str]
    parts: Tensor
    presence: Tensor


def pairs_of(names: Mapping[tuple[int, int], str], presence: Tensor) -> Pairs:
    """Presence of pairs of concepts, both at once.

    Args:
        names: two concepts -> the pair in words.
        presence: (N, K), 0 or 1.
    """
    parts = torch.tensor(list(names))
    return Pairs(list(names.values()), parts, presence[:, parts[:, 0]] * presence[:, parts[:, 1]])


def score_labels(
    labels: pd.DataFrame, values: Mapping[str, Tensor], names: list[str], presence: Tensor
) -> TruthScore:
    """Judge a label table (:data:`lwta.dissect.labels.COLUMNS`) against known concepts.

    Args:
        labels: of the layers in ``values``.
        values: layer -> (N, D), what the readout reads, on images that no label was made from. Units whose
            labels describe negative wins are judged by -value.
        names: K concepts.
        presence: (N, K), 0 or 1.
    """
    scores = torch.cat([auroc(read, presence).nan_to_num(0) for read in _upright(labels, values)])
    truth, told = _true(scores), _places(labels, values, names)
    selective = truth.any(1)
    hits = _hits(truth[selective], told[selective])
    count = int(selective.sum())
    return TruthScore(count, len(truth) - count, *_shares(hits), float(scores.amax(1).mean()))


def score_pairs(
    labels: pd.DataFrame, values: Mapping[str, Tensor], names: list[str], presence: Tensor, pairs: Pairs
) -> PairScore:
    """Judge labels of units that tell a pair of concepts: best AUROC of a pair at least .8, and more than .02
    above that of any single concept. True pairs are those within .02 of the best.

    Args:
        labels, values, names, presence: as in :func:`score_labels`; labels may be names of pairs too.
        pairs: of the concepts.
    """
    read = _upright(labels, values)
    single = torch.cat([auroc(part, presence).nan_to_num(0) for part in read]).amax(1)
    scores = torch.cat([auroc(part, pairs.presence).nan_to_num(0) for part in read])
    truth = _true(scores) & (scores.amax(1) > single + TIE + _ROUNDING)[:, None]
    selective = truth.any(1)
    halves = torch.zeros(len(truth), len(names), dtype=torch.bool)
    for part in pairs.parts.T:
        halves |= (truth.float() @ torch.nn.functional.one_hot(part, len(names)).float()) > 0
    whole = _hits(truth[selective], _places(labels, values, pairs.names)[selective])
    half = _hits(halves[selective], _places(labels, values, names)[selective])
    return PairScore(int(selective.sum()), _shares(whole)[0], _shares(half)[0], _shares(whole + half)[1])


def _upright(labels: pd.DataFrame, values: Mapping[str, Tensor]) -> list[Tensor]:
    """The values of each layer, those of units labelled by their negative wins turned round."""
    found = []
    for layer, read in values.items():
        rows = labels.query("layer == @layer").sort_values("unit")
        if len(rows) != read.shape[1]:
            raise InputError(f"the labels tell {len(rows)} units of {layer}, which has {read.shape[1]}")
        found.append(read * (torch.tensor(rows["negative"].to_numpy(dtype="float32")) * -2 + 1))
    return found


def _places(labels: pd.DataFrame, values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Place of each unit's label among the names, -1 where it is none of them."""
    place = {name: k for k, name in enumerate(names)}
    rows = [labels.query("layer == @layer").sort_values("unit")["label"].fillna("") for layer in values]
    return torch.tensor([place.get(text, -1) for part in rows for text in part.tolist()], dtype=torch.long)


def _hits(truth: Tensor, told: Tensor) -> Tensor:
    """Whether the label of unit j is true of unit i, (n, n)."""
    # A column of falsehood for those without a label, or with a word that is no known concept.
    return torch.nn.functional.pad(truth, (0, 1))[:, told].float()


def _shares(hits: Tensor) -> tuple[float, float]:
    """Of units with their own labels, and with those of any; NaN without units."""
    return (float(hits.diagonal().mean()), float(hits.mean())) if len(hits) else (math.nan, math.nan)
