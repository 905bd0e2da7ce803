"""Portraits of units and classes against loops over images and units."""

import math
import statistics

import pytest
import torch

from lwta.dissect import portrait
from lwta.dissect.portrait import at_random, class_images, class_units, histogram, middling, nearest, pushes
from lwta.dissect.survey import LayerSurvey, Survey
from tests.by_hand import randn

N, CLASSES = 40, 5  # of which nobody ever shows or predicts the last
WIDTHS = {"first": 12, "second": 7}


def layer(units, seed, fires=0.4):
    """A layer of which unit 0 never fires, and that is silent where it does not fire."""
    won = randn(N, units, seed=seed).abs() < fires
    won[:, 0] = False
    values = randn(N, units, seed=seed + 1) * won
    contributions = randn(N, units, seed=seed + 2) * won
    return LayerSurvey(None, values, won, contributions, won.float().mean(0), None)


@pytest.fixture
def survey():
    generator = torch.Generator().manual_seed(7)
    targets = torch.randint(-1, CLASSES - 1, (N,), generator=generator)
    predicted = torch.randint(0, CLASSES - 1, (N,), generator=generator)
    layers = {name: layer(units, 10 * k) for k, (name, units) in enumerate(WIDTHS.items())}
    return Survey(torch.arange(N) * 3, targets, predicted, layers, CLASSES)


def mean(numbers):
    numbers = list(numbers)
    return statistics.fmean(numbers) if numbers else math.nan


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)


# --- histogram -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 5, 24])
def test_a_histogram_counts_the_values_where_the_unit_fired(bins):
    values, won = randn(500) - 1, randn(500, seed=1) > 0
    edges, counts = histogram(values, won, bins)
    fired = sorted(values[won].double().tolist())
    assert (edges.shape, counts.shape) == ((bins + 1,), (bins,))
    assert edges[0] == fired[0]
    assert edges[-1] == pytest.approx(fired[-1], rel=1e-12)
    widths = edges.diff()
    torch.testing.assert_close(widths, widths[:1].expand(bins))
    for k, (low, high) in enumerate(zip(edges.tolist(), edges[1:].tolist(), strict=False)):
        last = k == bins - 1
        assert counts[k] == sum(low <= v and (v < high or last) for v in fired)
    assert counts.sum() == won.sum()


def test_a_value_on_an_edge_is_counted_once_and_the_largest_in_the_last_bin():
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 4.0, 9.0])
    won = torch.tensor([True] * 6 + [False])
    edges, counts = histogram(values, won, 4)
    assert edges.tolist() == [0, 1, 2, 3, 4]
    assert counts.tolist() == [1, 1, 1, 3]


def test_a_unit_of_one_value_or_of_none_has_a_histogram_to_draw():
    edges, counts = histogram(torch.full((6,), -2.0), torch.tensor([True] * 4 + [False] * 2), 3)
    assert (edges[0].item(), edges[-1].item()) == (-2.5, -1.5)
    assert counts.tolist() == [0, 4, 0]
    edges, counts = histogram(randn(6), torch.zeros(6, dtype=torch.bool), 3)
    assert (edges.diff() > 0).all()
    assert counts.tolist() == [0, 0, 0]


# --- images of a unit ----------------------------------------------------------------------------


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("wins", [9, 10, 11])
def test_the_middle_lies_around_the_median_of_the_wins(wins, negative):
    values = randn(30)
    won = torch.zeros(30, dtype=torch.bool)
    won[torch.randperm(30, generator=torch.Generator().manual_seed(wins))[:wins]] = True
    rows = middling(values, won, 4, negative).tolist()
    hardest = sorted(won.nonzero()[:, 0].tolist(), key=lambda i: values[i] if negative else -values[i])
    place = hardest.index(rows[0])
    assert rows == hardest[place : place + 4]
    above, below = place, wins - place - 4
    assert 0 <= below - above <= 1


@pytest.mark.parametrize("wins", [0, 1, 3])
def test_a_unit_of_few_wins_shows_them_all(wins):
    won = torch.arange(20) % 5 == 2
    won[5 * wins :] = False
    assert sorted(middling(randn(20), won, 4).tolist()) == won.nonzero()[:, 0].tolist()
    assert sorted(at_random(won, 4, 0).tolist()) == won.nonzero()[:, 0].tolist()


def test_random_wins_are_wins_without_repetition_the_same_for_the_same_unit():
    won = randn(300) > 0.5
    drawn = [tuple(at_random(won, 4, seed).tolist()) for seed in range(200)]
    assert drawn == [tuple(at_random(won, 4, seed).tolist()) for seed in range(200)]
    assert all(len(set(rows)) == 4 for rows in drawn)
    assert all(won[i] for rows in drawn for i in rows)
    assert {i for rows in drawn for i in rows} == set(won.nonzero()[:, 0].tolist())  # none is left out


def test_drawing_leaves_the_global_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    at_random(torch.ones(9, dtype=torch.bool), 4, 1)
    assert torch.equal(torch.rand(1), expected)


# --- nearest -------------------------------------------------------------------------------------


def nearest_by_loops(survey, most):
    """The same over all pairs of units."""
    columns = {
        (name, unit): [float(v) if w else 0.0 for v, w in zip(x.values[:, unit], x.won[:, unit], strict=True)]
        for name, x in survey.layers.items()
        for unit in range(x.values.shape[1])
    }
    found = {}
    for one, a in columns.items():
        others = []
        for other, b in columns.items():
            if one != other and any(a) and any(b):
                dot = sum(x * y for x, y in zip(a, b, strict=True))
                others.append((dot / math.hypot(*a) / math.hypot(*b), other))
        best = sorted(((c, other) for c, other in others if c > 1e-9), reverse=True)[:most]
        found.setdefault(one[0], []).append([(*other, c) for c, other in best])
    return found


@pytest.mark.parametrize("most", [1, 5, 100])
@pytest.mark.parametrize("chunk", [2, 5, 512])
def test_the_nearest_units_are_those_of_the_largest_cosines_over_all_pairs(survey, most, chunk, monkeypatch):
    monkeypatch.setattr(portrait, "_CHUNK", chunk)
    found, expected = nearest(survey, most), nearest_by_loops(survey, most)
    assert list(found) == list(WIDTHS)
    for name, units in found.items():
        assert len(units) == WIDTHS[name]
        for one, other in zip(units, expected[name], strict=True):
            assert [pair[:2] for pair in one] == [pair[:2] for pair in other]
            assert [pair[2] for pair in one] == pytest.approx([pair[2] for pair in other], abs=1e-5)
    assert any(pair[0] != name for name, units in found.items() for unit in units for pair in unit)


def test_a_unit_that_never_fired_is_near_to_none_and_none_to_it(survey):
    found = nearest(survey, 100)
    for name, units in found.items():
        assert units[0] == []
        assert all(len(unit) > 0 for unit in units[1:])
        assert all((other, 0) not in [pair[:2] for pair in unit] for unit in units for other in WIDTHS)
        assert all((name, k) not in [pair[:2] for pair in unit] for k, unit in enumerate(units))


def test_what_a_unit_read_where_it_did_not_fire_counts_for_nothing(survey):
    noisy = {name: x._replace(values=torch.where(x.won, x.values, 5)) for name, x in survey.layers.items()}
    assert nearest(survey._replace(layers=noisy)) == nearest(survey)


def test_units_that_fire_alike_are_near_and_those_that_never_meet_are_not():
    values = torch.tensor([[2.0, 4.0, 0.0, -1.0], [1.0, 2.0, 0.0, -0.5], [0.0, 0.0, 3.0, 0.0]])
    only = LayerSurvey(None, values, values != 0, values, (values != 0).float().mean(0), None)
    unknown = torch.zeros(3, dtype=torch.long)
    found = nearest(Survey(torch.arange(3), unknown, unknown, {"only": only}, 1))["only"]
    assert [[pair[1] for pair in unit] for unit in found] == [[1], [0], [], []]
    assert found[0][0][2] == pytest.approx(1)


# --- classes -------------------------------------------------------------------------------------


def test_a_class_is_pushed_by_the_mean_contribution_on_images_rightly_predicted_as_it(survey):
    for name, x in survey.layers.items():
        found = pushes(survey, name)
        assert found.shape == (CLASSES, WIDTHS[name])
        for k in range(CLASSES):
            images = [i for i in range(N) if survey.predicted[i] == k and int(survey.targets[i]) in (-1, k)]
            close(found[k], [mean(float(x.contributions[i, d]) for i in images) for d in range(WIDTHS[name])])
        assert found[CLASSES - 1].isnan().all()
        assert not found[: CLASSES - 1].isnan().any()
        assert not found[: CLASSES - 1, 0].any()  # silent


@pytest.mark.parametrize("k", range(CLASSES))
def test_the_units_of_a_class_agree_with_loops(survey, k):
    kinds = [int(t) if t >= 0 else int(p) for t, p in zip(survey.targets, survey.predicted, strict=True)]
    assert class_images(survey).tolist() == kinds
    predicted = survey.predicted.tolist()
    own = [i for i in range(N) if kinds[i] == k]
    others = [i for i in range(N) if kinds[i] != k]
    right, wrong = ([i for i in own if (predicted[i] == k) is same] for same in (True, False))
    for name, x in survey.layers.items():
        found = class_units(survey, name, k)
        units = range(WIDTHS[name])
        for part, images in (("fires", own), ("elsewhere", others), ("error_fires", wrong)):
            close(getattr(found, part), [mean(float(x.won[i, d]) for i in images) for d in units])
        for part, images in (("drives", right), ("error_drives", wrong)):
            close(getattr(found, part), [mean(float(x.contributions[i, d]) for i in images) for d in units])
        assert found.errors == len(wrong)
        counts = {other: sum(predicted[i] == other for i in wrong) for other in set(range(CLASSES)) - {k}}
        expected = sorted(((other, n) for other, n in counts.items() if n), key=lambda p: (-p[1], p[0]))
        assert found.error_classes == expected


def test_a_class_without_images_or_errors_has_no_numbers(survey):
    nobody = class_units(survey, "first", CLASSES - 1)
    for part in ("fires", "drives", "error_fires", "error_drives"):
        assert getattr(nobody, part).isnan().all()
    assert (nobody.errors, nobody.error_classes) == (0, [])
    assert not nobody.elsewhere.isnan().any()
    unknown = class_units(survey._replace(targets=torch.full((N,), -1)), "first", 0)
    assert unknown.errors == 0
    assert unknown.error_fires.isnan().all()
    assert not unknown.drives.isnan().any()


def test_where_all_images_are_of_one_class_there_is_no_elsewhere(survey):
    one = survey._replace(targets=torch.zeros(N, dtype=torch.long))
    assert class_units(one, "first", 0).elsewhere.isnan().all()
