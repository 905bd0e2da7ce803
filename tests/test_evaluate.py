"""Labels against the truth: every number against a plain loop over images, units and permutations."""

import json
import math
import warnings
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lwta import LWTA
from lwta.dissect.activations import Readout
from lwta.dissect.evaluate import (
    TruthScore,
    auroc,
    read_evaluation,
    read_values,
    score_labels,
    true_concepts,
    write_evaluation,
)
from lwta.errors import InputError

NAMES = ["red", "blue", "round"]


def area(values, shows):
    """Of all pairs of an image that shows the concept and one that does not, those in order; ties half."""
    pairs = [(a, b) for a, x in zip(values, shows, strict=True) if x for b in values[np.array(shows) == 0]]
    return math.nan if not pairs else sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def areas(values, presence):
    columns = [presence[:, k].numpy() for k in range(presence.shape[1])]
    return [[area(values[:, d].numpy(), column) for column in columns] for d in range(values.shape[1])]


# --- the area under the curve --------------------------------------------------------------------


@pytest.mark.parametrize("levels", [3, 40, 10_000])
def test_the_area_is_that_of_a_loop_over_all_pairs(levels):
    generator = torch.Generator().manual_seed(levels)
    values = torch.randint(-levels, levels, (37, 5), generator=generator) / 3  # few levels: many ties
    presence = (torch.rand(37, 4, generator=generator) < torch.tensor([0.1, 0.5, 0.9, 0.3])).float()
    found = auroc(values, presence)
    assert found.shape == (5, 4)
    torch.testing.assert_close(found, torch.tensor(areas(values, presence), dtype=torch.float32))


def test_order_alone_counts():
    values = torch.tensor([[0.1, 0.1], [0.2, -5.0], [1e6, 0.0]])
    presence = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    assert auroc(values, presence).tolist() == [[1.0, 0.0], [0.5, 1.0]]
    assert torch.equal(auroc(values.exp(), presence), auroc(values, presence))


def test_units_that_never_change_tell_nothing_and_concepts_of_all_or_no_image_are_unknown():
    presence = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = auroc(torch.zeros(3, 2), presence)
    assert found[:, 0].tolist() == [0.5, 0.5]
    assert found[:, 1:].isnan().all()


def test_thousands_of_images_lose_no_precision():
    values = torch.arange(60_000.0)[:, None]
    presence = (torch.arange(60_000) % 2)[:, None].float()
    assert auroc(values, presence).item() == pytest.approx(0.5 + 1 / 60_000, abs=1e-7)


# --- which concepts are true ---------------------------------------------------------------------


def presence_of(*percent):
    """Concepts that ten of twenty images show, with these areas for a unit of values 0 ... 19."""
    columns = []
    for pairs in percent:
        places = list(range(10))
        while sum(places) - 45 < pairs:  # move the foremost that has room one up
            k = next(k for k in reversed(range(10)) if places[k] < 10 + k)
            places[k] += 1
        columns.append([float(i in places) for i in range(20)])
    found = torch.tensor(columns).T
    assert [round(100 * a) for a in areas(UNIT, found)[0]] == list(percent)
    return found


UNIT = torch.arange(20.0)[:, None]


@pytest.mark.parametrize("best", range(80, 101))
def test_concepts_within_two_points_of_the_best_are_true_however_it_rounds(best):
    found = true_concepts(UNIT, presence_of(best, best - 1, best - 2, best - 3))
    assert found.tolist() == [[True, best - 1 >= 80, best - 2 >= 80, False]]


def test_below_eight_tenths_nothing_is_true():
    assert not true_concepts(UNIT, presence_of(79, 79, 78)).any()


def test_every_unit_has_a_best_of_its_own_and_unknown_concepts_are_never_true():
    values = torch.cat([UNIT, -UNIT, 0 * UNIT], 1)
    presence = torch.cat([presence_of(100, 0), torch.ones(20, 1)], 1)
    assert true_concepts(values, presence).tolist() == [
        [True, False, False],
        [False, True, False],
        [False] * 3,
    ]


# --- the score -----------------------------------------------------------------------------------


def table(layer, texts, negative=()):
    """The columns of a label table that are judged."""
    return pd.DataFrame(
        {
            "layer": layer,
            "unit": range(len(texts)),
            "label": pd.Series(texts, dtype="object"),
            "negative": [unit in negative for unit in range(len(texts))],
        }
    )


def looped(labels, values, presence):
    """true_share and shuffled_share by brute force over all permutations of the labels."""
    truths, told, count = [], [], 0
    for layer, read in values.items():
        for _, row in labels[labels["layer"] == layer].sort_values("unit").iterrows():
            own = read[:, [row["unit"]]] * (-1 if row["negative"] else 1)
            scores = [0 if math.isnan(a) else a for a in areas(own, presence)[0]]
            truth = {NAMES[k] for k, a in enumerate(scores) if a >= 0.8 and a >= max(scores) - 0.02}
            count += 1
            if truth:
                truths.append(truth)
                told.append(row["label"])
    shares = [
        sum(text in truth for text, truth in zip(order, truths, strict=True)) / len(truths)
        for order in permutations(told)
    ]
    return len(truths), count - len(truths), shares[0], sum(shares) / len(shares)


@pytest.fixture
def judged():
    """Two layers of five units over 30 images; five of them are selective, one of those by negative wins."""
    generator = torch.Generator().manual_seed(3)
    presence = (torch.rand(30, 3, generator=generator) < 0.4).float()
    noise = torch.randn(30, 5, generator=generator)
    red, blue, round_ = presence.T
    values = {
        "a": torch.stack([3 * red, -3 * blue, noise[:, 0]], 1) + noise[:, :3] / 5,
        "b": torch.stack([3 * round_, 3 * red], 1) + noise[:, 3:] / 5,
    }
    labels = pd.concat([table("a", ["red", "blue", "blue"], negative={1}), table("b", ["red", "red"])])
    return labels, values, presence


def test_the_score_is_that_of_loops_over_units_and_permutations(judged):
    labels, values, presence = judged
    found = score_labels(labels, values, NAMES, presence)
    assert found == pytest.approx(looped(labels, values, presence))
    assert found == (4, 1, 3 / 4, 7 / 16)


def test_the_order_of_rows_does_not_count(judged):
    labels, values, presence = judged
    shuffled = labels.sample(frac=1, random_state=0)
    assert score_labels(shuffled, values, NAMES, presence) == score_labels(labels, values, NAMES, presence)


def test_a_unit_of_negative_wins_is_judged_by_how_low_it_goes(judged):
    labels, values, presence = judged
    positive = labels.assign(negative=False)
    found = score_labels(positive, values, NAMES, presence)
    assert (found.selective, found.not_selective) == (3, 2)  # upside down it tells nothing
    assert found.true_share == pytest.approx(looped(positive, values, presence)[2]) == 2 / 3


@pytest.mark.parametrize("word", [None, np.nan, "something else"])
def test_a_selective_unit_without_a_true_label_counts_as_false(judged, word):
    labels, values, presence = judged
    labels = labels.assign(label=[word, "blue", "blue", "round", word])
    found = score_labels(labels, values, NAMES, presence)
    assert found == pytest.approx(looped(labels, values, presence))
    assert (found.selective, found.true_share) == (4, 0.5)


def test_without_a_selective_unit_nothing_is_true():
    values = {"a": torch.zeros(6, 2)}
    presence = torch.tensor([[1.0, 0.0, 1.0]] * 3 + [[0.0, 1.0, 1.0]] * 3)
    found = score_labels(table("a", ["red", "blue"]), values, NAMES, presence)
    assert found[:2] == (0, 2)
    assert math.isnan(found.true_share)
    assert math.isnan(found.shuffled_share)


def test_labels_of_another_number_of_units_are_refused(judged):
    labels, values, presence = judged
    with pytest.raises(InputError, match="the labels tell 2 units of a, which has 3"):
        score_labels(labels.drop_duplicates(["layer", "label"]), values, NAMES, presence)


def test_judging_warns_of_nothing(judged):
    labels, values, presence = judged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_labels(labels, values, NAMES, presence)


def test_a_score_says_what_it_counts():
    assert str(TruthScore(12, 3, 0.5, 0.125)) == (
        "12 selective units, 3 not selective; 50.0 % of the selective ones carry a true label, "
        "12.5 % with the labels shuffled among them"
    )
    assert str(TruthScore(0, 3, 0.0, 0.0)) == ("0 selective units, 3 not selective; no label can be judged")


# --- reading a network ---------------------------------------------------------------------------


def test_values_are_read_in_the_order_of_the_batches_and_empty_ones_passed_over():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), LWTA(4, dim=1), nn.Conv2d(8, 4, 1), LWTA(2, dim=1))
    images = torch.randn(5, 3, 4, 4)
    batches = [
        (torch.tensor([3, 1]), images[[3, 1]]),
        (torch.empty(0, dtype=torch.long), torch.empty(0)),
        (torch.tensor([4]), images[[4]]),
    ]
    indices, values = read_values(model.train(), batches, {"1": 1, "3": 1}, Readout("mean"))
    assert indices.tolist() == [3, 1, 4]
    with torch.no_grad():
        first = model.eval()[:2](images[indices])
        second = model(images[indices])
    torch.testing.assert_close(values["1"], first.mean((2, 3)))
    torch.testing.assert_close(values["3"], second.mean((2, 3)))
    with pytest.raises(InputError, match="no image of the split decodes"):
        read_values(model, batches[1:2], {"1": 1}, Readout("mean"))


# --- evaluation.json -----------------------------------------------------------------------------


SCORE = TruthScore(12, 3, 0.5, 0.125)
LABELS = {"weights": "w", "probe": "validate"}


def test_a_score_is_read_as_written_and_only_beside_its_labels(tmp_path):
    assert read_evaluation(tmp_path, LABELS) is None
    path = write_evaluation(tmp_path, SCORE, "validation[5:9]", LABELS)
    assert path == tmp_path / "evaluation.json"
    assert read_evaluation(tmp_path, LABELS) == SCORE
    found = json.loads(path.read_text())
    assert found == SCORE._asdict() | {"split": "validation[5:9]", "labels": LABELS}
    for other in ({}, LABELS | {"weights": "v"}, LABELS | {"clip": "c"}):
        assert read_evaluation(tmp_path, other) is None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b'{"selective": 1}',
        *(json.dumps(SCORE._asdict() | {"labels": LABELS} | {name: value}).encode()
          for name, value in (("true_share", None), ("true_share", "half"), ("selective", [1]))),
        json.dumps(SCORE._asdict()).encode(),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path, content):
    (tmp_path / "evaluation.json").write_bytes(content)
    with pytest.raises(
        InputError, match="evaluation.json cannot be read; make it anew with dissect.py evaluate"
    ):
        read_evaluation(tmp_path, LABELS)
