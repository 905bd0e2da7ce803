"""Judge labels where the truth is known: does a unit's label name what the unit responds to?"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from lwta.dissect.activations import Readout, readings
from lwta.errors import InputError

LEAST_AUROC = 0.8
TIE = 0.02


class TruthScore(NamedTuple):
    """How many labels are true.

    Attributes:
        selective: units that tell some concept apart.
        not_selective: units that tell none; they have no true label to find.
        true_share: selective units whose label is one of their true concepts, over all selective ones;
            one without a label counts as false.
        shuffled_share: the same, expected when these labels are shuffled across these units. Both are NaN
            where no unit is selective.
    """

    selective: int
    not_selective: int
    true_share: float
    shuffled_share: float

    def __str__(self) -> str:
        told = f"{self.selective} selective units, {self.not_selective} not selective"
        if not self.selective:
            return f"{told}; no label can be judged"
        return (
            f"{told}; {100 * self.true_share:.1f} % of the selective ones carry a true label, "
            f"{100 * self.shuffled_share:.1f} % with the labels shuffled among them"
        )


def read_values(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    sites: Mapping[str, int],
    readout: Readout,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One pass (:func:`readings`) that keeps what is read: image indices (N,), layer -> (N, D)."""
    seen: list[Tensor] = []
    kept: dict[str, list[Tensor]] = {name: [] for name in sites}
    for indices, read in readings(model, batches, sites, readout):
        seen.append(indices)
        for name, found in read.items():
            kept[name].append(found.values.cpu())
    if not seen:
        raise InputError("no image of the split decodes; nothing can be judged")
    return torch.cat(seen), {name: torch.cat(rows) for name, rows in kept.items()}


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
    scores = auroc(values, presence).nan_to_num(0)
    least = scores.amax(1, keepdim=True) - TIE - 1e-6  # what is .02 below the best, but for rounding, is in
    return (scores >= LEAST_AUROC) & (scores >= least)


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
    place = {name: k for k, name in enumerate(names)}
    true, told = [], []
    for layer, read in values.items():
        rows = labels.query("layer == @layer").sort_values("unit")
        if len(rows) != read.shape[1]:
            raise InputError(f"the labels tell {len(rows)} units of {layer}, which has {read.shape[1]}")
        sign = torch.tensor(rows["negative"].to_numpy(dtype="float32")) * -2 + 1
        true.append(true_concepts(read * sign, presence))
        told += [place.get(text, -1) for text in rows["label"].fillna("").tolist()]
    truth, label = torch.cat(true), torch.tensor(told)
    selective = truth.any(1)
    truth, label = truth[selective], label[selective]
    # A column of falsehood for those without a label, or with a word that is no known concept.
    hits = torch.nn.functional.pad(truth, (0, 1))[:, label].float()  # unit x the label of another
    count = int(selective.sum())
    own, shuffled = (float(hits.diagonal().mean()), float(hits.mean())) if count else (math.nan, math.nan)
    return TruthScore(count, len(selective) - count, own, shuffled)


def write_evaluation(folder: str | Path, score: TruthScore, split: str, labels: dict[str, Any]) -> Path:
    """Write ``evaluation.json`` into a run folder.

    Args:
        split: the images that the labels were judged on.
        labels: identity of the labels, so that the score is never shown beside others.
    """
    path = Path(folder) / "evaluation.json"
    path.write_text(
        json.dumps(score._asdict() | {"split": split, "labels": labels}, indent=1), encoding="utf-8"
    )
    return path


def read_evaluation(folder: str | Path, labels: dict[str, Any]) -> TruthScore | None:
    """The score of a run's labels, or None where these labels were not judged.

    Raises:
        InputError: where the file cannot be read.
    """
    path = Path(folder) / "evaluation.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        score = TruthScore(**{name: kind(found[name]) for name, kind in TruthScore.__annotations__.items()})
        return score if found["labels"] == labels else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read; make it anew with dissect.py evaluate --run {folder}"
        ) from error
