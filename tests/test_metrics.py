"""Metrics of labels against scikit-learn, scipy and torchmetrics on the same arrays."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control, fisher_exact, mannwhitneyu, pearsonr
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, roc_auc_score
from torchmetrics.functional import pearson_corrcoef
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from lwta.dissect.metrics import METRICS, REPORTED, measure, p_values
from lwta.dissect.responses import Responses, Shown
from lwta.errors import InputError

EXACT = {"rel": 0, "abs": 1e-6}


def strongest(values, top):
    """The images that a unit responds to, by a loop over groups of equals from the top."""
    room, taken = max(1, int(np.ceil(top * len(values)))), np.zeros(len(values), bool)
    for level in sorted(set(values.tolist()), reverse=True):
        group = values == level
        if taken.any() and (taken | group).sum() > room:
            break
        taken |= group
    return taken


def independent(values, graded, clear, top):
    """Every metric of one unit and one concept, by other people's code."""
    values, strong = values.astype(np.float64), strongest(values, top)
    with_it, without = values[clear], values[~clear]
    deviation = without.std(ddof=1) if len(without) > 1 else 0.0
    return {
        "correlation": pearsonr(values, graded).statistic,
        "cosine": values @ graded / np.sqrt((values @ values) * (graded @ graded)),
        "auroc": roc_auc_score(clear, values),
        "auprc": average_precision_score(clear, values),
        "responses_auprc": average_precision_score(strong, graded),
        "f1": f1_score(clear, strong),
        "iou": jaccard_score(clear, strong),
        "recall": (strong & clear).sum() / strong.sum(),
        "precision": (strong & clear).sum() / clear.sum(),
        "mad": (with_it.mean() - without.mean()) / deviation if np.ptp(without) else 0.0,
        "p": chance(values, with_it, without, clear),
    }


def chance(values, with_it, without, clear):
    """Mann and Whitney's p; where half the values are equal at least Fisher's, of who is above and below."""
    p = mannwhitneyu(with_it, without, alternative="greater", method="asymptotic").pvalue
    levels, counts = np.unique(values, return_counts=True)
    if 2 * counts.max() < len(values):
        return p
    sides = []
    for apart, tail in (
        (values > levels[counts.argmax()], "greater"),
        (values < levels[counts.argmax()], "less"),
    ):
        if apart.any():
            table = [[(x & clear).sum(), (x & ~clear).sum()] for x in (apart, ~apart)]
            sides.append(fisher_exact(table, alternative=tail).pvalue)
    return max(p, min(1, len(sides) * min(sides)))


def check(values, graded, clear, top=0.05):
    """Our metrics of all units against those of :func:`independent`, unit by unit."""
    a, c = Responses(values, top), Shown(graded.T, clear.T)
    found = measure(a, c, list(METRICS)) | {"p": p_values(a, c)}
    for unit in range(values.shape[1]):
        expected = independent(values[:, unit], graded[:, unit], clear[:, unit], top)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name][unit] == pytest.approx(value, **EXACT), (name, unit)


def kinds(kind, rng, images=300, units=24):
    """Values as networks give them."""
    x = rng.standard_normal((images, units)).astype(np.float32)
    if kind == "competing":  # mostly zeros; some winners are negative
        return np.where(rng.random(x.shape) < 0.06, x, 0).astype(np.float32)
    return {
        "dense": x,
        "large": 1e6 + x,
        "tiny": 1e-12 * x,
        "rectified": np.maximum(x, 0),
        "few levels": np.round(x),
        "two levels": (x > 1.5).astype(np.float32),
        "one image": np.eye(images, units, dtype=np.float32),
        "saturating": np.minimum(x, -0.5),
        "all but one image": 1 - np.eye(images, units, dtype=np.float32),
    }[kind]


@pytest.mark.parametrize("top", [0.005, 0.05, 0.5])
@pytest.mark.parametrize(
    "kind",
    [
        *("dense", "large", "tiny", "rectified", "competing", "few levels", "two levels", "one image"),
        *("saturating", "all but one image"),
    ],
)
def test_metrics_are_those_of_other_peoples_code(kind, top):
    rng = np.random.default_rng(0)
    values = kinds(kind, rng)
    graded = rng.random(values.shape).astype(np.float32)
    clear = graded > rng.uniform(0.05, 0.95, values.shape[1]).astype(np.float32)
    check(values, graded, clear, top)
    check(values, clear.astype(np.float32), clear, top)


def test_one_image_with_the_concept_or_all_but_one_suffices():
    rng = np.random.default_rng(1)
    values, clear = kinds("rectified", rng, 50, 10), np.zeros((50, 10), bool)
    clear[7] = True
    check(values, clear.astype(np.float32), clear)
    check(values, (~clear).astype(np.float32), ~clear)


def test_torchmetrics_says_the_same_of_ranks():
    """Of the values themselves it would squash those outside [0, 1] and see equals where there are none."""
    rng = np.random.default_rng(2)
    values, clear = kinds("competing", rng), rng.random((300, 24)) < 0.2
    a = Responses(values)
    found = measure(a, Shown(clear.T.astype(np.float32), clear.T))
    ranks, truth = torch.from_numpy(a.ranks / 301), torch.from_numpy(clear)
    for unit in range(24):
        said = (
            binary_auroc(ranks[unit], truth[:, unit].int()),
            binary_average_precision(ranks[unit], truth[:, unit].int()),
        )
        assert found["auroc"][unit] == pytest.approx(float(said[0]), **EXACT)
        assert found["auprc"][unit] == pytest.approx(float(said[1]), **EXACT)
    pearson = pearson_corrcoef(torch.from_numpy(values).double(), truth.double())
    assert found["correlation"] == pytest.approx(pearson.numpy(), **EXACT)


@pytest.mark.parametrize(
    ("values", "clear"),
    [
        (np.zeros(20), np.arange(20) < 5),
        (np.full(20, 0.1), np.arange(20) < 5),
        (np.full(20, -1e9), np.arange(20) < 5),
        (np.arange(20.0), np.zeros(20, bool)),
        (np.arange(20.0), np.ones(20, bool)),
    ],
)
def test_what_is_not_defined_is_missing_and_never_0_and_nothing_warns(values, clear):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, c = Responses(values[:, None]), Shown(clear[None].astype(np.float32), clear[None])
        found = measure(a, c, list(METRICS))
        assert all(np.isnan(value).all() for value in found.values()), found
        assert np.isnan(p_values(a, c)).all()


def test_a_graded_presence_that_never_changes_has_no_correlation_and_the_rest_stays():
    clear = np.arange(20)[None] < 5
    found = measure(Responses(np.arange(20.0)[:, None]), Shown(np.full((1, 20), 0.3, np.float32), clear))
    assert np.isnan(found.pop("correlation")).all()
    assert not any(np.isnan(value).any() for value in found.values())


def test_no_metric_depends_on_the_order_of_the_images_or_on_other_units():
    rng = np.random.default_rng(3)
    values, clear = kinds("few levels", rng), rng.random((300, 24)) < 0.2
    order = rng.permutation(300)
    whole = measure(Responses(values), Shown(clear.T.astype(np.float32), clear.T))
    moved = measure(Responses(values[order]), Shown(clear[order].T.astype(np.float32), clear[order].T))
    alone = measure(Responses(values[:, 5:6]), Shown(clear.T[5:6].astype(np.float32), clear.T[5:6]))
    for name in REPORTED:
        np.testing.assert_allclose(moved[name], whole[name], atol=1e-12)
        np.testing.assert_allclose(alone[name], whole[name][5:6], atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "competing", "few levels", "saturating"])
def test_some_units_on_some_images_are_as_if_there_were_no_others(kind):
    rng = np.random.default_rng(6)
    values, units, images = kinds(kind, rng), rng.random(24) < 0.5, rng.random(300) < 0.7
    clear = rng.random((units.sum(), images.sum())) < 0.2
    shown = Shown(clear.astype(np.float32), clear)
    part, alone = Responses(values, 0.1).part(units, images), Responses(values[np.ix_(images, units)], 0.1)
    found, expected = (measure(a, shown, list(METRICS)) | {"p": p_values(a, shown)} for a in (part, alone))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-12)
    np.testing.assert_array_equal(part.strong, alone.strong)


def test_zeros_of_a_unit_that_fired_rarely_are_no_response():
    values = np.zeros((100, 3))
    values[:3, 0], values[:40, 1], values[:, 2] = [3, 2, 1], 1, np.arange(100)
    strong = Responses(values, 0.05).strong
    assert strong.sum(1).tolist() == [3, 40, 5]
    assert strong[0, :3].all()
    assert strong[2, 95:].all()


def test_bad_input_is_one_sentence():
    for top in (0, 1, -0.1, 2):
        with pytest.raises(InputError, match="top is a share of the images, between 0 and 1"):
            Responses(np.zeros((5, 2)), top)
    for value in (np.nan, np.inf):
        with pytest.raises(InputError, match="values hold NaN or infinity"):
            Responses(np.array([[0.0, value]]))


def test_units_that_saturate_are_called_better_than_chance():
    shown = np.arange(1000) < 600
    values = np.stack([shown, np.minimum(6, np.where(shown, 7, np.arange(1000) / 200))], 1)
    p = p_values(Responses(values), Shown(*2 * (np.tile(shown, (2, 1)),)))
    assert (p < 1e-100).all()


@pytest.mark.parametrize(
    ("fires", "shown", "side"),
    [
        *((10, 10, 1), (20, 25, 1), (83, 25, 1), (83, 250, 1), (400, 200, 1), (2000, 25, 1)),
        *((20, 25, -1), (83, 250, -1)),  # the others saturate, and rarely fall
    ],
)
def test_sparse_units_are_not_called_better_than_chance_by_coincidence(fires, shown, side):
    """300 labels that mean nothing at a time, as false discovery control sees them."""
    rng, families = np.random.default_rng(5), []
    for _ in range(20):
        order = rng.random((300, 2000)).argsort(1)
        values = side * np.where(order < fires, 1 + rng.random((300, 2000)), 0).T
        clear = rng.random((300, 2000)).argsort(1) < shown
        p = p_values(Responses(values), Shown(clear, clear))
        families.append(bool((false_discovery_control(p) <= 0.05).any()))
    assert sum(families) <= 4  # one of 20 expected, at most
