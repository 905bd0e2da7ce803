"""Labels judged beside controls: every number against loops over units, and what cannot be judged."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score

from lwta.dissect.evaluate import discoveries, means
from lwta.dissect.judged_layer import CONTROLS, FEWEST, Judge, JudgedLayer
from lwta.dissect.label_scores import judge_generated, judge_layer
from lwta.dissect.metrics import REPORTED
from lwta.dissect.presence import Classes, Cosines, Matrix
from lwta.errors import InputError

NAMES = ["red", "blue", "round", "rare", "always", "big"]
N = 240


def table(labels, layer="a", negative=()):
    """The columns of a label table that are judged."""
    return pd.DataFrame(
        {
            "layer": layer,
            "unit": range(len(labels)),
            "label": pd.Series(labels, dtype="string"),
            "negative": [unit in negative for unit in range(len(labels))],
        }
    )


@pytest.fixture
def world():
    """Presence of the concepts, the fourth in nine images and the fifth in all but nine; and seven units."""
    rng = np.random.default_rng(0)
    presence = (rng.random((N, 6)) < 0.3).astype(np.float32)
    presence[:, 3], presence[:, 4] = np.arange(N) < 9, np.arange(N) >= 9
    red, blue, round_ = presence[:, 0], presence[:, 1], presence[:, 2]
    units = [red, blue, round_, -red, red * 0, np.full(N, 0.3), blue]
    values = np.stack(units, 1) + rng.standard_normal((N, 7)) / 2 * (np.arange(7) != 5)
    return presence, values.astype(np.float32)


LABELS = ["red", "Blue ", "red", "red", "round", "red", None]


def judged(world, labels=LABELS, negative=(3,), **options):
    presence, values = world
    judge = options.pop("judge", Judge(NAMES, Matrix(presence)))
    return judge_layer(table(labels, negative=negative), values, judge, **options)


def test_each_label_is_scored_as_other_peoples_code_does(world):
    presence, values = world
    found = judged(world)
    for unit, concept in ((0, 0), (1, 1), (2, 0), (3, 0), (4, 2)):
        row, a, c = found.loc[unit], values[:, unit] * (-1 if unit == 3 else 1), presence[:, concept]
        assert row["correlation"] == pytest.approx(np.corrcoef(a, c)[0, 1], abs=1e-6)
        assert row["auroc"] == pytest.approx(roc_auc_score(c, a), abs=1e-6)
        assert row["auprc"] == pytest.approx(average_precision_score(c, a), abs=1e-6)
        p = mannwhitneyu(a[c > 0], a[c == 0], alternative="greater", method="asymptotic").pvalue
        assert row["p_value"] == pytest.approx(p, rel=1e-6)
        assert row["shown"] == c.sum()
        usable = [np.corrcoef(a, presence[:, k])[0, 1] for k in (0, 1, 2, 5)]
        own = np.corrcoef(a, c)[0, 1]
        assert (row["place"], row["concepts"]) == (1 + sum(value > own + 1e-6 for value in usable), 4)


def test_what_cannot_be_judged_is_missing_with_its_reason(world):
    found = judged(world, ["red", "green", "rare", "always", None, "red", "blue"])
    reasons = [
        "",
        "the label is no concept of the judge",
        "9 images show it, fewer than 10",
        "9 images do not show it, fewer than 10",
        "no label",
        "the same value on every image",
        "",
    ]
    assert found["unscored"].fillna("").tolist() == reasons
    numbers = found.drop(columns=["layer", "unit", "label", "unscored"])
    assert numbers.isna().all(axis=1).tolist() == [bool(reason) for reason in reasons]
    assert not numbers.iloc[[0, 6]].isna().any(axis=None)


def test_without_a_label_to_judge_nothing_is_said_and_nothing_warns(world):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = discoveries(judged(world, [None] * 7))
        told = means(found)
    assert found["correlation"].isna().all()
    assert found["q_value"].isna().all()
    assert told["units"].tolist() == [0] * len(REPORTED)
    assert told["label"].isna().all()


def test_the_constant_control_is_the_best_single_label_for_all(world):
    presence, values = world
    found = judged(world).dropna(subset=["correlation"])
    signed = values[:, :5] * np.array([1, 1, 1, -1, 1])
    mean = {
        k: np.mean([np.corrcoef(signed[:, d], presence[:, k])[0, 1] for d in range(5)]) for k in (0, 1, 2, 5)
    }
    best = max(mean, key=mean.__getitem__)
    for d in range(5):
        assert found["constant_auroc"].iloc[d] == pytest.approx(
            roc_auc_score(presence[:, best], signed[:, d])
        )


def test_shuffled_and_random_labels_score_their_expectation(world):
    presence, values = world
    found = judged(world, draws=4000).dropna(subset=["correlation"])
    signed, own = values[:, :5] * np.array([1, 1, 1, -1, 1]), [0, 1, 0, 0, 2]
    area = np.array([[roc_auc_score(presence[:, k], signed[:, d]) for k in (0, 1, 2, 5)] for d in range(5)])
    orders = list(itertools.permutations(own))
    shuffled = np.mean([[area[d, k] for d, k in enumerate(order)] for order in orders], 0)
    np.testing.assert_allclose(found["shuffled_auroc"], shuffled, atol=0.01)
    np.testing.assert_allclose(found["random_auroc"], area.mean(1), atol=0.01)


def test_controls_are_seeded(world):
    first, again, other = (judged(world, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert not first["random_f1"].equals(other["random_f1"])
    pd.testing.assert_series_equal(first["f1"], other["f1"])


def test_images_left_out_do_not_count(world):
    presence, values = world
    keep = torch.arange(0, N, 2)
    some = judged(world, images=keep)
    alone = judged((presence[keep], values[keep]))
    pd.testing.assert_frame_equal(some, alone)


def test_what_nobody_looked_at_is_left_out_of_each_concept_alone(world):
    presence, values = world
    gaps = presence.copy()
    gaps[:100, 0] = np.nan
    found, whole = judged((gaps, values), draws=3), judged(world, draws=3)
    for unit in (0, 2, 3):
        a = values[100:, unit] * (-1 if unit == 3 else 1)
        row = found.loc[unit]
        assert row["auroc"] == pytest.approx(roc_auc_score(presence[100:, 0], a))
        assert row["correlation"] == pytest.approx(np.corrcoef(a, presence[100:, 0])[0, 1], abs=1e-6)
        assert row["shown"] == presence[100:, 0].sum()
    for name in REPORTED:  # the others know nothing of it
        np.testing.assert_allclose(found.loc[[1, 4], name], whole.loc[[1, 4], name])
    holes = np.where(rng_holes := np.random.default_rng(8).random(presence.shape) < 0.2, np.nan, presence)
    layer = JudgedLayer(values.astype(np.float32), Judge(NAMES, Matrix(holes)), torch.arange(N), 0.05)
    for unit, k in itertools.product(range(values.shape[1]), range(len(NAMES))):
        seen = ~rng_holes[:, k]
        a, c = values[seen, unit], presence[seen, k]
        expected = np.corrcoef(a, c)[0, 1] if np.ptp(a) and np.ptp(c) else np.nan
        assert layer.correlation[unit, k] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    gaps[:, 0] = np.nan
    assert judged((gaps, values))["unscored"].iloc[0] == f"0 images show it, fewer than {FEWEST}"


def test_a_clip_judges_by_its_cosines_and_by_the_images_nearest_to_a_word():
    rng = np.random.default_rng(1)
    images, texts = (
        rng.standard_normal((N, 8)).astype(np.float32),
        torch.from_numpy(rng.standard_normal((3, 8))).float(),
    )
    presence = Cosines(images, texts)
    cosine = presence.part(slice(None)).numpy()
    values = (cosine[:, :2] + rng.standard_normal((N, 2)) / 4).astype(np.float32)
    judge = Judge(["x", "y", "z"], presence, 0.1)
    found = judge_layer(table(["x", "z"]), values, judge)
    for unit, concept in ((0, 0), (1, 2)):
        nearest = np.zeros(N, bool)
        nearest[np.argsort(-cosine[:, concept])[: N // 10]] = True
        assert found["shown"].iloc[unit] == N // 10
        assert found["auroc"].iloc[unit] == pytest.approx(roc_auc_score(nearest, values[:, unit]))
        expected = np.corrcoef(values[:, unit], cosine[:, concept])[0, 1]
        assert found["correlation"].iloc[unit] == pytest.approx(expected, abs=1e-6)


def test_classes_of_images_are_annotations_too():
    classes = torch.arange(N) % 3
    values = torch.nn.functional.one_hot(classes, 3).numpy().astype(np.float32)
    found = judge_layer(table(["a", "b", "b"]), values, Judge(["a", "b", "c"], Classes(classes, 3)))
    assert found["correlation"].tolist() == pytest.approx([1, 1, -0.5])
    assert found["place"].tolist()[:2] == [1, 1]


def test_many_concepts_are_looked_at_in_parts(world, monkeypatch):
    whole = judged(world)
    monkeypatch.setattr("lwta.dissect.judged_layer._CONCEPTS", 2)
    pd.testing.assert_frame_equal(judged(world), whole)


def test_a_table_of_other_units_is_refused(world):
    with pytest.raises(InputError, match="the labels tell 2 units of a, which has 7"):
        judged(world, ["red", "blue"])


def test_discoveries_are_those_of_benjamini_and_hochberg():
    p = [0.001, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205, 0.212, 0.216, 0.222, np.nan]
    names = ["p_value", *(f"{control}_p_value" for control in CONTROLS)]
    both = discoveries(pd.DataFrame({name: p for name in names}))
    for control in CONTROLS:
        np.testing.assert_array_equal(both[f"{control}_q_value"], both["q_value"])
    found = both["q_value"]
    order = np.argsort(p[:-1])
    by_hand = np.empty(11)
    for rank, place in enumerate(order):
        by_hand[place] = min(p[other] * 11 / (r + 1) for r, other in enumerate(order) if r >= rank)
    np.testing.assert_allclose(found[:-1], by_hand)
    assert (found <= 0.05).sum() == 2
    assert np.isnan(found.iloc[-1])


def test_labels_that_mean_nothing_are_rarely_called_better_than_chance():
    rng = np.random.default_rng(2)
    presence = (rng.random((N, 40)) < 0.2).astype(np.float32)
    names = [f"c{k}" for k in range(40)]
    false = []
    for trial in range(20):
        values = rng.standard_normal((N, 60)).astype(np.float32)
        rows = table(rng.choice(names, 60).tolist())
        found = discoveries(judge_layer(rows, values, Judge(names, Matrix(presence)), draws=1, seed=trial))
        false.append((found["q_value"] <= 0.05).sum())
    assert sum(count > 0 for count in false) <= 4  # 5 % of 20 expected


def test_the_controls_are_tested_too_and_one_label_for_units_that_respond_alike_is_no_coincidence():
    rng = np.random.default_rng(4)
    presence = (rng.random((N, 6)) < 0.3).astype(np.float32)
    values = presence[:, [0]] + 0.5 * presence[:, [1]] + 0.3 * rng.standard_normal((N, 30))
    names = [f"c{k}" for k in range(6)]
    rows = table(["c0"] * 15 + [f"c{k}" for k in rng.integers(2, 6, 15)])
    found = discoveries(judge_layer(rows, values, Judge(names, Matrix(presence)), draws=1))
    assert (found["q_value"] <= 0.05).tolist()[:15] == [True] * 15
    assert (found["constant_q_value"] <= 0.05).all()
    of_c0 = [mannwhitneyu(a[presence[:, 0] > 0], a[presence[:, 0] == 0], alternative="greater").pvalue
             for a in values.T]  # fmt: skip
    np.testing.assert_allclose(found["constant_p_value"], of_c0, rtol=1e-6, atol=1e-300)
    assert 0.2 * 30 <= (found["shuffled_q_value"] <= 0.05).sum() <= 0.9 * 30


def test_means_stand_beside_controls_with_standard_errors(world):
    parts = [
        judged(world),
        judged(world, ["red", "blue", None, "red", "big", None, "blue"]).assign(layer="b"),
    ]
    both = pd.concat(parts)
    found = means(both).set_index(["layer", "metric"])
    assert found.index.get_level_values(0).unique().tolist() == ["a", "b", "all"]
    for layer, part in (("a", parts[0]), ("b", parts[1]), ("all", both)):
        for metric in REPORTED:
            row, scored = found.loc[(layer, metric)], part[part[metric].notna()]
            assert row["units"] == len(scored)
            for name in ("label", *CONTROLS):
                column = scored[metric if name == "label" else f"{name}_{metric}"].to_numpy()
                assert row[name] == pytest.approx(column.mean())
                assert row[f"{name}_error"] == pytest.approx(column.std(ddof=1) / len(column) ** 0.5)
            ahead = (scored[metric] - scored[f"shuffled_{metric}"]).to_numpy()
            assert row["ahead"] == pytest.approx(ahead.mean())
            assert row["ahead_error"] == pytest.approx(ahead.std(ddof=1) / len(ahead) ** 0.5)
    assert means(parts[0])["layer"].unique().tolist() == ["a"]


# --- generated images ----------------------------------------------------------------------------


def test_generated_images_are_held_against_those_judged_on_and_not_against_each_other():
    rng = np.random.default_rng(4)
    values, made = (
        rng.standard_normal((100, 4)).astype(np.float32),
        rng.standard_normal((36, 4)).astype(np.float32),
    )
    of = np.repeat([0, 1, 2], [12, 15, 9])
    made += of[:, None]
    rows = table(["red", "blue", "few", None], negative=(1,))
    found = judge_generated(rows, values, made, ["red", "blue", "few"], of[:, None] == np.arange(3))
    for unit, sign in ((0, 1), (1, -1)):
        own, others = sign * made[of == unit, unit], sign * values[:, unit]
        expected = roc_auc_score(np.arange(100 + len(own)) >= 100, np.concatenate([others, own]))
        assert found["generated_auroc"][unit] == pytest.approx(expected)
        mad = (own.mean() - others.mean()) / others.std(ddof=1)
        assert found["generated_mad"][unit] == pytest.approx(mad, rel=1e-5)
    assert found.pop("generated_unscored").fillna("").tolist() == [
        "",
        "",
        "9 images show it, fewer than 10",
        "no label",
    ]
    assert found.loc[2:].isna().all(axis=None)
    assert not found.loc[:1].isna().any(axis=None)
    names = [
        f"{start}generated_{m}" for start in ("", *(f"{c}_" for c in CONTROLS)) for m in ("auroc", "mad")
    ]
    assert sorted(found.columns) == sorted(names)


def test_a_unit_that_is_constant_but_for_generated_images_is_missing_and_not_zero():
    rng = np.random.default_rng(5)
    values, made = np.zeros((60, 2), np.float32), rng.random((12, 2)).astype(np.float32)
    values[:, 1] = rng.random(60)
    found = judge_generated(table(["red", "red"]), values, made, ["red"], np.ones((12, 1), bool))
    assert found["generated_unscored"].fillna("").tolist() == [
        "the same value on every image judged on",
        "",
    ]
    assert found.drop(columns="generated_unscored").isna().all(axis=1).tolist() == [True, False]
