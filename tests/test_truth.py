"""Labels against the truth: every number against a plain loop over images, units and permutations."""

import math
import warnings
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch

from lwta.dissect.truth import (
    PairScore,
    TruthScore,
    auroc,
    pairs_of,
    score_labels,
    score_pairs,
    true_concepts,
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
    truths, told, count, best = [], [], 0, []
    for layer, read in values.items():
        for _, row in labels[labels["layer"] == layer].sort_values("unit").iterrows():
            own = read[:, [row["unit"]]] * (-1 if row["negative"] else 1)
            scores = [0 if math.isnan(a) else a for a in areas(own, presence)[0]]
            truth = {NAMES[k] for k, a in enumerate(scores) if a >= 0.8 and a >= max(scores) - 0.02}
            count += 1
            best.append(max(scores))
            if truth:
                truths.append(truth)
                told.append(row["label"])
    shares = [
        sum(text in truth for text, truth in zip(order, truths, strict=True)) / len(truths)
        for order in permutations(told)
    ]
    return len(truths), count - len(truths), shares[0], sum(shares) / len(shares), sum(best) / count


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
    assert found[:5] == pytest.approx(looped(labels, values, presence))
    assert found[:4] == (4, 1, 3 / 4, 7 / 16)
    # Of four units three are right; shuffled, "red" is right for two of four, "blue" and "round" for their
    # one.
    assert found.true_error == pytest.approx(np.std([1, 1, 0, 1], ddof=1) / 2)
    assert 0.8 < found.mean_auroc < 1


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
    assert found[:5] == pytest.approx(looped(labels, values, presence))
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
    assert str(TruthScore(12, 3, 0.5, 0.125, 0.9)) == (
        "12 selective units, 3 not selective, mean best AUROC 0.900; 50.0 % of the selective ones carry a "
        "true label, 12.5 % with the labels shuffled among them"
    )
    assert "mean best AUROC 0.900 ± 0.012; 50.0 % ± 4.0 of" in str(
        TruthScore(12, 3, 0.5, 0.125, 0.9, 0.04, 0.01, 0.012)
    )
    assert str(TruthScore(0, 3, 0.0, 0.0, 0.6)) == (
        "0 selective units, 3 not selective, mean best AUROC 0.600; no label can be judged"
    )


# --- pairs of concepts ---------------------------------------------------------------------------

PAIRS = {(0, 2): "red round", (1, 2): "blue round"}


@pytest.fixture
def paired():
    """Six units over 200 images: red, red and round twice, blue and round, red or blue, noise."""
    generator = torch.Generator().manual_seed(0)
    presence = (torch.rand(200, 3, generator=generator) < 0.5).float()
    red, blue, round_ = presence.T
    units = [red, red * round_, red * round_, blue * round_, red + blue, 0 * red]
    values = torch.stack(units, 1) + torch.randn(200, 6, generator=generator) / 10
    return {"a": values}, presence


def test_units_of_a_pair_are_told_from_those_of_a_single_concept(paired):
    values, presence = paired
    pairs = pairs_of(PAIRS, presence)
    assert pairs.names == ["red round", "blue round"]
    assert torch.equal(
        pairs.presence, torch.stack([presence[:, 0] * presence[:, 2], presence[:, 1] * presence[:, 2]], 1)
    )
    labels = table("a", ["red", "red round", "round", "red", "red", None])
    # Of the units 1, 2 and 3 the first has the pair for its label, the second a half, the third neither;
    # dealt out anew, "red round" and "red" are true of the first two, "round" of all three.
    found = score_pairs(labels, values, NAMES, presence, pairs)
    assert found[:4] == pytest.approx((3, 1 / 3, 1 / 3, 7 / 9))
    assert found.named_error == found.half_error == pytest.approx(np.std([1, 0, 0], ddof=1) / 3**0.5)
    halves = score_pairs(labels.assign(label="round"), values, NAMES, presence, pairs)
    assert math.isnan(halves.named_share)  # no pair was offered
    assert halves.half_share == 1
    single = score_labels(labels, values, NAMES, presence)
    assert single.selective == sum(best >= 0.8 for best in auroc(values["a"], presence).amax(1).tolist())


def hanley(area, shown, others):
    """Standard error of an AUROC."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (shown - 1) * (q1 - area**2) + (others - 1) * (q2 - area**2)
    return math.sqrt(max(0, spread) / (shown * others))


@pytest.mark.parametrize("noise", [0.1, 1.0, 2.0])
def test_the_rule_of_pairs_is_that_of_loops(paired, noise):
    values, presence = paired
    read = values["a"] + noise * torch.randn(200, 6, generator=torch.Generator().manual_seed(5))
    pairs = pairs_of(PAIRS, presence)
    expected = 0
    for unit in range(6):
        first = areas(read[::2, [unit]], pairs.presence[::2])[0]
        second = areas(read[1::2, [unit]], pairs.presence[1::2])[0]
        single = max(areas(read[1::2, [unit]], presence[1::2])[0])
        true = []
        for k, area in enumerate(second):
            shown = int(pairs.presence[1::2, k].sum())
            gap = area - single
            good = area >= 0.8 and gap > 0.02 and gap > 2 * hanley(area, shown, 100 - shown)
            true.append(first[k] >= max(first) - 0.02 and good)
        expected += any(true)
    assert score_pairs(table("a", [None] * 6), {"a": read}, NAMES, presence, pairs).selective == expected
    assert expected == {0.1: 3}.get(noise, expected)


def test_noise_and_units_of_one_concept_are_not_taken_for_pairs():
    rng = np.random.default_rng(0)
    groups, names = [rng.integers(n, size=400) for n in (10, 8, 5, 3)], [str(k) for k in range(26)]
    presence = torch.from_numpy(
        np.concatenate([np.eye(n)[g] for n, g in zip((10, 8, 5, 3), groups, strict=True)], 1)
    )
    places = [(a, b) for a in range(26) for b in range(a + 1, 26)]
    pairs = pairs_of({pair: str(pair) for pair in places}, presence.float())
    single = presence[:, rng.integers(26, size=150)].numpy()
    values = np.concatenate([rng.standard_normal((400, 150)), single + rng.standard_normal((400, 150))], 1)
    found = score_pairs(
        table("a", [None] * 300), {"a": torch.from_numpy(values).float()}, names, presence.float(), pairs
    )
    assert found.selective <= 6  # of 300
    noise = {"a": torch.from_numpy(values[:80, :150]).float()}
    few = score_labels(table("a", [None] * 150), noise, names, presence[:80].float())
    assert few.selective <= 3  # what fewer than ten images show says nothing


def test_without_a_unit_of_a_pair_nothing_is_said_of_labels():
    presence = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = score_pairs(
        table("a", ["red"]), {"a": presence[:, :1]}, NAMES, presence, pairs_of(PAIRS, presence)
    )
    assert found.selective == 0
    assert all(math.isnan(share) for share in found[1:])
    assert str(found) == "0 units tell a pair of concepts better than any single one"
    told = "4 units tell a pair of concepts better than any single one; "
    either = "with one of the two, 12.5 % ± 1.5 with either once the labels are shuffled"
    score = PairScore(4, 0.25, 0.5, 0.125, shuffled_error=0.015)
    assert str(score) == f"{told}25.0 % of them are labelled with it, 50.0 % {either}"
    assert str(score._replace(named_share=math.nan)) == f"{told}50.0 % of them are labelled {either}"
