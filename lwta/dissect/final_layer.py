"""Labels of a layer whose units are classes, against the names of those classes."""

import math
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lwta.dissect.evaluate import percent, plus_minus, shares
from lwta.dissect.labels import NEXT, plain


class ClassScore(NamedTuple):
    """How labels of class units compare with the names of the classes.

    Attributes:
        layer: whose units are classes.
        units: C.
        top1, top5: units whose label, or whose label or a runner-up, is their class, over all.
        cosine: mean cosine of the embeddings of label and class name, matched unit by unit, of units with a
            label; NaN where nothing embeds words.
        top1_shuffled, top5_shuffled, cosine_shuffled: the same, expected with the labels dealt out anew.
        top1_error ... cosine_shuffled_error: standard errors of these, over units.
    """

    layer: str
    units: int
    top1: float
    top1_error: float
    top1_shuffled: float
    top1_shuffled_error: float
    top5: float
    top5_error: float
    top5_shuffled: float
    top5_shuffled_error: float
    cosine: float = math.nan
    cosine_error: float = math.nan
    cosine_shuffled: float = math.nan
    cosine_shuffled_error: float = math.nan

    def __str__(self) -> str:
        said = (
            f"{self.layer}: {percent(self.top1, self.top1_error)} of the {self.units} class units are "
            f"labelled by their class's name ({percent(self.top1_shuffled, self.top1_shuffled_error)} with "
            f"the labels shuffled), {percent(self.top5, self.top5_error)} among the five best labels "
            f"({percent(self.top5_shuffled, self.top5_shuffled_error)})"
        )
        if math.isnan(self.cosine):
            return said
        return (
            f"{said}; cosine of label and name {plus_minus(self.cosine, self.cosine_error)} "
            f"({plus_minus(self.cosine_shuffled, self.cosine_shuffled_error)} shuffled)"
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
    cosines = torch.zeros(0, 0, dtype=torch.float64)
    if embedded is not None:
        words, texts, own = embedded
        place = {word: k for k, word in enumerate(words)}
        there = [unit for unit, label in enumerate(rows["label"].tolist()) if label in place]
        picked = texts[[place[label] for label in rows["label"].iloc[there].tolist()]]
        cosines = (own[there] @ picked.T).double()
    found = [number for hits in (first, among, cosines) for pair in shares(hits) for number in pair]
    return ClassScore(str(rows["layer"].iloc[0]), len(rows), *found)
