"""Labels of a layer whose units are classes, against the names of those classes."""

import math
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lwta.dissect.labels import NEXT, plain


class ClassScore(NamedTuple):
    """How labels of class units compare with the names of the classes.

    Attributes:
        layer: whose units are classes.
        units: C.
        top1, top5: units whose label, or whose label or a runner-up, is their class, over all.
        top1_shuffled, top5_shuffled: the same, expected with the labels dealt out anew.
        cosine, cosine_error: mean cosine of the embeddings of label and class name, matched unit by unit,
            and its standard error; NaN where nothing embeds words. Of units with a label.
        cosine_shuffled: the same, expected with the labels dealt out anew.
    """

    layer: str
    units: int
    top1: float
    top5: float
    top1_shuffled: float
    top5_shuffled: float
    cosine: float
    cosine_error: float
    cosine_shuffled: float

    def __str__(self) -> str:
        said = (
            f"{self.layer}: {100 * self.top1:.1f} % of the {self.units} class units are labelled by their "
            f"class's name ({100 * self.top1_shuffled:.1f} % with the labels shuffled), "
            f"{100 * self.top5:.1f} % among the five best labels ({100 * self.top5_shuffled:.1f} %)"
        )
        if math.isnan(self.cosine):
            return said
        return (
            f"{said}; cosine of label and name {self.cosine:.3f} ± {self.cosine_error:.3f} "
            f"({self.cosine_shuffled:.3f} shuffled)"
        )


def score_classes(
    rows: pd.DataFrame, classes: list[str], embedded: tuple[list[str], Tensor, Tensor] | None = None
) -> ClassScore:
    """Judge the labels of a layer with a unit for each class.

    Args:
        rows: of the label table, all units of the layer.
        classes: names, in the order of the units; names and labels are compared without regard to case.
        embedded: words, their embeddings (K, E) of length 1, and those of the classes (C, E).

    Source: arXiv 2204.10965, section 4.2 (accuracy and similarity of final-layer labels), matched pairs only.
    """
    rows = rows.sort_values("unit")
    columns = ["label", *(f"label_{n}" for n in range(2, NEXT + 2))]
    told = [[plain(text) for text in row] for row in rows[columns].fillna("").astype(str).to_numpy().tolist()]
    names = [plain(name) for name in classes]
    first = torch.tensor([[bool(name) and name == labels[0] for labels in told] for name in names]).double()
    among = torch.tensor([[bool(name) and name in labels for labels in told] for name in names]).double()
    cosines = torch.full((1, 1), torch.nan, dtype=torch.float64)
    if embedded is not None:
        words, texts, own = embedded
        place = {word: k for k, word in enumerate(words)}
        there = [unit for unit, label in enumerate(rows["label"].tolist()) if label in place]
        picked = texts[[place[label] for label in rows["label"].iloc[there].tolist()]]
        if there:
            cosines = (own[there] @ picked.T).double()
    matched = cosines.diagonal()
    return ClassScore(
        layer=str(rows["layer"].iloc[0]),
        units=len(rows),
        top1=float(first.diagonal().mean()),
        top5=float(among.diagonal().mean()),
        top1_shuffled=float(first.mean()),
        top5_shuffled=float(among.mean()),
        cosine=float(matched.mean()),
        cosine_error=float(matched.std() / len(matched) ** 0.5) if len(matched) > 1 else math.nan,
        cosine_shuffled=float(cosines.mean()),
    )
