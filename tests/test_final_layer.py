"""Labels of class units against the names of the classes."""

import math
from itertools import permutations

import pandas as pd
import pytest
import torch

from lwta.dissect.final_layer import ClassScore, score_classes

CLASSES = ["cat", "dog", "sea horse"]


def rows(*labels):
    """Label tables of three units; each of ``labels`` is a unit's, the best first."""
    padded = [list(own) + [None] * (5 - len(own)) for own in labels]
    ends = ["", *(f"_{n}" for n in range(2, 6))]
    columns = {f"label{end}": [own[n] for own in padded] for n, end in enumerate(ends)}
    return pd.DataFrame({"layer": "head", "unit": range(len(labels))} | columns)


TABLE = rows(["Cat", "dog"], ["cat", "dog"], [None])


def test_accuracy_counts_every_unit_and_its_runners_up():
    found = score_classes(TABLE.sample(frac=1, random_state=1), CLASSES)
    assert (found.layer, found.units, found.top1, found.top5) == ("head", 3, 1 / 3, 2 / 3)
    assert math.isnan(found.cosine)
    assert found.top1_error == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 2))  # p (1 - p) / (n - 1)
    assert found.top5_error == pytest.approx(found.top1_error)


def test_shuffled_is_the_mean_over_all_permutations():
    found = score_classes(TABLE, CLASSES)
    told = [["cat", "dog"], ["cat", "dog"], [""]]
    orders = list(permutations(told))
    first = [sum(own[0] == name for own, name in zip(order, CLASSES, strict=True)) / 3 for order in orders]
    among = [sum(name in own for own, name in zip(order, CLASSES, strict=True)) / 3 for order in orders]
    assert found.top1_shuffled == pytest.approx(sum(first) / 6)
    assert found.top5_shuffled == pytest.approx(sum(among) / 6)


def test_cosines_are_of_matched_pairs_and_of_units_with_a_label():
    words, texts = ["Cat", "cat", "fish"], torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    own = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    found = score_classes(TABLE, CLASSES, (words, texts, own))
    matched = [1.0, 0.8]  # "Cat" with cat, "cat" with dog; the third unit has no label
    assert found.cosine == pytest.approx(0.9)
    assert found.cosine_error == pytest.approx(torch.tensor(matched).std().item() / 2**0.5)
    assert found.cosine_shuffled == pytest.approx((1.0 + 0.0 + 0.6 + 0.8) / 4)
    each = torch.tensor([(1.0 + 0.0) / 2, (0.6 + 0.8) / 2])  # of a unit with any label
    assert found.cosine_shuffled_error == pytest.approx(each.std().item() / 2**0.5)


def test_a_score_says_what_it_counts():
    score = ClassScore("head", 10, 0.5, 0.16, 0.1, 0.04, 0.75, 0.14, 0.25, 0.03, 0.9, 0.01, 0.4, 0.02)
    assert str(score) == (
        "head: 50.0 % ± 16.0 of the 10 class units are labelled by their class's name (10.0 % ± 4.0 with the "
        "labels shuffled), 75.0 % ± 14.0 among the five best labels (25.0 % ± 3.0); "
        "cosine of label and name 0.900 ± 0.010 (0.400 ± 0.020 shuffled)"
    )
    assert str(score._replace(cosine=math.nan)).endswith("(25.0 % ± 3.0)")
