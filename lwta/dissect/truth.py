"""Labels against known concepts: does a unit's label name what the unit responds to?"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lwta.dissect.evaluate import percent, plus_minus, shares
from lwta.dissect.judged_layer import FEWEST
from lwta.dissect.labels import plain
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
        mean_auroc: of the units' best concepts, over all units: how selective they are; NaN where no concept
            is shown, and lacked, by ten images.
        true_error, shuffled_error, auroc_error: standard errors, over units.
    """

    selective: int
    not_selective: int
    true_share: float
    shuffled_share: float
    mean_auroc: float
    true_error: float = math.nan
    shuffled_error: float = math.nan
    auroc_error: float = math.nan

    def __str__(self) -> str:
        told = (
            f"{self.selective} selective units, {self.not_selective} not selective, mean best AUROC "
            + plus_minus(self.mean_auroc, self.auroc_error)
        )
        if not self.selective:
            return f"{told}; no label can be judged"
        return (
            f"{told}; {percent(self.true_share, self.true_error)} of the selective ones carry a true label, "
            f"{percent(self.shuffled_share, self.shuffled_error)} with the labels shuffled among them"
        )


class PairScore(NamedTuple):
    """Units that tell a pair of concepts better than any single one.

    Attributes:
        selective: such units.
        named_share: those whose label is a true pair, over all of them; NaN where no unit of the table has a
            pair for its label.
        half_share: those whose label is one concept of a true pair, likewise.
        shuffled_share: those of either kind, expected with the labels shuffled among them. All three are NaN
            where there is no such unit.
        named_error, half_error, shuffled_error: standard errors of the shares, over units.
    """

    selective: int
    named_share: float
    half_share: float
    shuffled_share: float
    named_error: float = math.nan
    half_error: float = math.nan
    shuffled_error: float = math.nan

    def __str__(self) -> str:
        told = f"{self.selective} units tell a pair of concepts better than any single one"
        if not self.selective:
            return told
        named = f"{percent(self.named_share, self.named_error)} of them are labelled with it, "
        half = f"{percent(self.half_share, self.half_error)} with one of the two"
        if math.isnan(self.named_share):
            named, half = "", half.replace(" with", " of them are labelled with")
        either = percent(self.shuffled_share, self.shuffled_error)
        return f"{told}; {named}{half}, {either} with either once the labels are shuffled"


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
    Concepts that fewer than ten images show, or lack, count for nothing.
    """
    return _true(_scores(values, presence))


def _scores(values: Tensor, presence: Tensor) -> Tensor:
    """AUROC (D, K), 0 of concepts that too few images show or lack."""
    shown = presence.sum(0)
    usable = (shown >= FEWEST) & (len(presence) - shown >= FEWEST)
    return auroc(values, presence).masked_fill(~usable, 0).nan_to_num(0)


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
    scores = torch.cat([_scores(read, presence) for read in _upright(labels, values)])
    truth, told = _true(scores), _places(labels, values, names)
    selective = truth.any(1)
    count = int(selective.sum())
    own, shuffled = shares(_hits(truth[selective], told[selective]))
    best = scores.amax(1).double() if scores.any() else scores.new_full((1,), math.nan)  # no concept counts
    error = float(best.std() / len(best) ** 0.5) if len(best) > 1 else math.nan
    shares_of = own[0], shuffled[0], float(best.mean()), own[1], shuffled[1]
    return TruthScore(count, len(truth) - count, *shares_of, error)


def score_pairs(
    labels: pd.DataFrame, values: Mapping[str, Tensor], names: list[str], presence: Tensor, pairs: Pairs
) -> PairScore:
    """Judge labels of units that tell a pair of concepts better than any single one.

    Of hundreds of pairs some fit by chance. So a unit's candidates, the best pairs within .02, are found on
    the images of even number; a pair is true where on the others its AUROC is at least .8 and exceeds that of
    every single concept by .02 and by two standard errors (Hanley & McNeil, Radiology 143, 1982).

    Args:
        labels, values, names, presence: as in :func:`score_labels`; labels may be names of pairs too.
        pairs: of the concepts.
    """
    truth = torch.cat([_true_pairs(part, presence, pairs.presence) for part in _upright(labels, values)])
    selective = truth.any(1)
    halves = torch.zeros(len(truth), len(names), dtype=torch.bool)
    for part in pairs.parts.T:
        halves |= (truth.float() @ torch.nn.functional.one_hot(part, len(names)).float()) > 0
    told = _places(labels, values, pairs.names)
    whole = _hits(truth[selective], told[selective])
    half = _hits(halves[selective], _places(labels, values, names)[selective])
    own, one, either = shares(whole)[0], shares(half)[0], shares(whole + half)[1]
    if (told < 0).all():  # no pair was offered
        own = (math.nan, math.nan)
    return PairScore(int(selective.sum()), own[0], one[0], either[0], own[1], one[1], either[1])


def _true_pairs(values: Tensor, singles: Tensor, pairs: Tensor) -> Tensor:
    """Pairs that a unit tells better than any single concept, bool (D, P)."""
    found = _scores(values[::2], pairs[::2])
    found = found >= found.amax(1, keepdim=True) - TIE - _ROUNDING
    single = _scores(values[1::2], singles[1::2]).amax(1, keepdim=True)
    scores, shown = _scores(values[1::2], pairs[1::2]).double(), pairs[1::2].sum(0).double()
    above, equal = scores / (2 - scores), 2 * scores**2 / (1 + scores)
    others = len(values[1::2]) - shown
    spread = scores * (1 - scores) + (shown - 1) * (above - scores**2) + (others - 1) * (equal - scores**2)
    error = (spread.clamp_min(0) / (shown * others).clamp_min(1)).sqrt()
    gap = scores - single
    return found & (scores >= LEAST_AUROC) & (gap > TIE + _ROUNDING) & (gap > 2 * error)


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
    place = {plain(name): k for k, name in enumerate(names)}
    rows = [labels.query("layer == @layer").sort_values("unit")["label"].fillna("") for layer in values]
    texts = [plain(text) for part in rows for text in part.tolist()]
    return torch.tensor([place.get(text, -1) for text in texts], dtype=torch.long)


def _hits(truth: Tensor, told: Tensor) -> Tensor:
    """Whether the label of unit j is true of unit i, (n, n)."""
    # A column of falsehood for those without a label, or with a word that is no known concept.
    return torch.nn.functional.pad(truth, (0, 1))[:, told].float()
