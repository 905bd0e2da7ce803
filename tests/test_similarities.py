"""rank_reorder, cos, cos_cubed and jensen_shannon against plain loops; exemplars of values at hand."""

import numpy as np
import pytest
import torch

from lwta.dissect import columns, kernels, reorder
from lwta.dissect.presence import Classes, Cosines, Matrix
from lwta.dissect.similarity import (
    cos,
    cos_cubed,
    exemplars_of,
    jensen_shannon,
    rank_reorder,
    rank_reorder_top,
)
from lwta.errors import InputError
from tests import reference_similarity as naive

MEASURES = {"cos": cos, "cos_cubed": cos_cubed, "jensen_shannon": jensen_shannon}


def world(images=60, units=5, concepts=7, embedding=4, seed=0):
    """Values and cosines that share something."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(images, embedding, generator=g) + 1
    values = features @ torch.randn(embedding, units, generator=g)
    values += torch.randn(images, units, generator=g)
    return values, Cosines(features, torch.randn(concepts, embedding, generator=g) + 0.5)


def matrix(presence):
    return presence.part(slice(None))


def close(found, expected, atol=2e-6):
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=atol)


# --- values over all images ----------------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_loops(name, seed):
    values, presence = world(seed=seed)
    close(MEASURES[name](values, presence), getattr(naive, name)(values.double(), matrix(presence).double()))


@pytest.mark.parametrize("name", MEASURES)
def test_a_tensor_and_every_presence_of_it_score_alike(name):
    values, presence = world()
    dense = MEASURES[name](values, matrix(presence))
    close(MEASURES[name](values, presence), dense.numpy())
    close(MEASURES[name](values, Matrix(matrix(presence).numpy())), dense.numpy())


@pytest.mark.parametrize("name", MEASURES)
def test_classes_score_as_their_table_and_an_absent_class_is_finite(name):
    values, _ = world()
    presence = Classes(
        torch.arange(60) % 3 - 1, 4
    )  # class 2 and 3 of nothing, a third of the images of no class
    expected = getattr(naive, name)(values.double(), matrix(presence).double())
    found = MEASURES[name](values, presence)
    close(found, expected)
    assert found.isfinite().all()


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("block", [1, 7, 60, 1000])
def test_scores_do_not_depend_on_the_block(name, block, monkeypatch):
    values, presence = world()
    expected = MEASURES[name](values, presence)
    monkeypatch.setattr(columns, "_BLOCK", block)
    close(MEASURES[name](values, presence), expected.numpy())


@pytest.mark.parametrize(
    "concepts", [kernels.CHUNK - 1, kernels.CHUNK, kernels.CHUNK + 1, 2 * kernels.CHUNK + 3]
)
def test_divergence_at_the_edge_of_a_range_of_concepts(concepts):
    values, presence = world(images=12, units=2, concepts=concepts)
    close(jensen_shannon(values, presence), naive.jensen_shannon(values.double(), matrix(presence).double()))


@pytest.mark.parametrize("name", MEASURES)
def test_a_dead_unit_is_nan_and_leaves_the_others_alone(name):
    values, presence = world()
    expected = MEASURES[name](values, presence)
    values = torch.cat([torch.zeros(60, 1), values], 1)
    found = MEASURES[name](values, presence)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1:], expected, rtol=1e-5, atol=1e-6)


def test_a_constant_unit_is_nan_only_where_columns_are_centred():
    values, presence = world()
    values[:, 1] = 0.3
    assert cos_cubed(values, presence)[1].isnan().all()
    assert cos_cubed(values, presence)[[0, 2, 3, 4]].isfinite().all()
    close(cos(values, presence), naive.cos(values.double(), matrix(presence).double()))
    close(jensen_shannon(values, presence), naive.jensen_shannon(values.double(), matrix(presence).double()))


def test_norms_are_clipped_from_below():
    values, presence = world()
    values *= 1e-3  # cubed: norms of 1e-8
    for least in (1e-3, 1e-12):
        expected = naive.cos_cubed(values.double(), matrix(presence).double(), least)
        found = cos_cubed(values, presence, min_norm=least)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-10 if least == 1e-3 else 2e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0, 300.0])
def test_scale_is_that_of_the_formula(scale):
    values, presence = world()
    expected = naive.jensen_shannon(values.double(), matrix(presence).double(), scale)
    close(jensen_shannon(values, presence, scale=scale), expected)


def test_equal_distributions_diverge_by_nothing_and_disjoint_ones_by_log_2():
    presence = torch.tensor([[0.1, 9.0], [0.3, 0.0], [0.2, 0.0]])
    values = torch.stack([(20 * presence[:, 0]).exp(), torch.tensor([0.0, 1.0, 1.0])], 1)
    found = jensen_shannon(values, presence, scale=20.0)
    assert found[0, 0].item() == pytest.approx(0, abs=1e-6)
    assert found[1, 1].item() == pytest.approx(-np.log(2), abs=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_a_negative_unit_is_read_as_its_opposite(name):
    values, presence = world()
    negative = torch.tensor([False, True, False, False, True])
    expected = MEASURES[name](torch.where(negative, -values, values), presence)
    torch.testing.assert_close(MEASURES[name](values, presence, negative=negative), expected)


@pytest.mark.parametrize("name", MEASURES)
def test_mapped_files_of_half_precision_are_read(name, tmp_path):
    values, presence = world()
    np.save(tmp_path / "values.npy", values.numpy().astype(np.float16))
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    torch.testing.assert_close(
        MEASURES[name](mapped, presence), MEASURES[name](values.half().float(), presence)
    )


@pytest.mark.parametrize("name", MEASURES)
def test_values_of_other_images_are_refused(name):
    values, presence = world()
    with pytest.raises(InputError, match="given for 59 images and the presence of concepts for 60"):
        MEASURES[name](values[1:], presence)


# --- rank_reorder --------------------------------------------------------------------------------


def lists_of(exemplars):
    kept = exemplars.images >= 0
    lists = [exemplars.images[kept[:, d], d].tolist() for d in range(kept.shape[1])]
    return lists, [exemplars.values[kept[:, d], d].double().tolist() for d in range(kept.shape[1])]


@pytest.mark.parametrize(("power", "scale_power"), [(3, 0.5), (1, 0.5), (2, 0.0), (4, 1.0)])
@pytest.mark.parametrize("top", [2, 9, 60])
def test_rank_reorder_is_that_of_the_loops(power, scale_power, top):
    values, presence = world()
    exemplars = exemplars_of(values, top)
    expected = naive.rank_reorder(*lists_of(exemplars), matrix(presence), power, scale_power)
    found = rank_reorder(exemplars, presence, power=power, scale_power=scale_power)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(
        rank_reorder(exemplars, matrix(presence), power=power, scale_power=scale_power), found
    )


def test_short_lists_and_negative_units_are_ranked_among_themselves():
    values, presence = world()
    often = torch.tensor([0.1, 0.2, 0.5, 0.9, 0.0])
    won = torch.rand(60, 5, generator=torch.Generator().manual_seed(1)) < often
    values[:, 1] = -values[:, 1].abs()
    exemplars = exemplars_of(values, 12, won)
    assert exemplars.negative[1]
    found = rank_reorder(exemplars, presence)
    lists, listed_values = lists_of(exemplars)
    for unit in exemplars.negative.nonzero()[:, 0].tolist():
        listed_values[unit] = [-value for value in listed_values[unit]]
    expected = naive.rank_reorder(lists, listed_values, matrix(presence))
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=1e-6)
    assert found[4].isnan().all()


def test_images_of_equal_presence_are_ranked_by_index():
    values, _ = world()
    exemplars = exemplars_of(values, 20)
    presence = Classes(torch.arange(60) % 3, 3)
    expected = naive.rank_reorder(*lists_of(exemplars), matrix(presence))
    np.testing.assert_allclose(rank_reorder(exemplars, presence).numpy(), expected, rtol=2e-5, atol=1e-6)
    signed = matrix(presence) - 0.0 * (torch.arange(60)[:, None] % 2 == 0) * -1  # some zeros are -0
    torch.testing.assert_close(rank_reorder(exemplars, signed), rank_reorder(exemplars, presence))


def test_a_concept_that_is_not_there_is_last_and_a_constant_unit_is_nan():
    values, presence = world()
    values[:, 2] = 1.5
    table = matrix(presence).clone()
    table[:, 3], table[:, 4] = -0.1, 0.0
    found = rank_reorder(exemplars_of(values, 10), table)
    assert found[2].isnan().all()
    assert (found[[0, 1, 3, 4]][:, [3, 4]] == -torch.inf).all()
    assert found[0, [0, 1]].isfinite().all()


def test_a_concept_that_ranks_as_the_unit_does_costs_nothing():
    values, _ = world(units=1)
    presence = torch.stack([values[:, 0], -values[:, 0]], 1)
    presence = presence - presence.amin() + 1
    found = rank_reorder(exemplars_of(values, 15), presence)
    assert found[0, 0] == 0
    assert found[0, 1] < -1  # worse than chance


@pytest.mark.parametrize("factor", [1e-20, 1e20])
def test_the_scale_of_the_values_does_not_matter(factor):
    values, presence = world()
    expected = rank_reorder(exemplars_of(values, 10), presence)
    torch.testing.assert_close(rank_reorder(exemplars_of(values * factor, 10), presence), expected)


@pytest.mark.parametrize("part", [1, 100, 600])
def test_rank_reorder_does_not_depend_on_the_part(part, monkeypatch):
    values, presence = world(concepts=50)
    expected = rank_reorder(exemplars_of(values, 10), presence)
    monkeypatch.setattr(reorder, "_PART", part)
    monkeypatch.setattr(reorder, "_TASK", 3)
    torch.testing.assert_close(rank_reorder(exemplars_of(values, 10), presence), expected)


@pytest.mark.parametrize(("images", "top"), [(1, 1), (19, 1), (39, 1), (40, 2), (5000, 250)])
def test_five_per_cent_and_one_at_least(images, top):
    assert rank_reorder_top(images) == top


@pytest.mark.parametrize("power", [0, -1, 2.5])
def test_a_power_that_is_no_whole_number_is_refused(power):
    values, presence = world()
    with pytest.raises(InputError, match="rank_reorder needs a whole number from 1"):
        rank_reorder(exemplars_of(values, 5), presence, power=power)


# --- exemplars of values at hand -----------------------------------------------------------------


def test_exemplars_are_the_strongest_and_of_equals_the_first():
    g = torch.Generator().manual_seed(0)
    values = torch.randint(0, 6, (50, 8), generator=g).float()  # ties everywhere
    values[:, 0] = torch.randn(50, generator=g)
    exemplars = exemplars_of(values, 7)
    for d in range(8):
        expected = sorted(range(50), key=lambda i, d=d: (-values[i, d].item(), i))[:7]
        assert exemplars.images[:, d].tolist() == expected
        assert exemplars.values[:, d].tolist() == values[expected, d].tolist()
    assert exemplars.count == 50
    assert exemplars.wins.tolist() == [50] * 8
    assert not exemplars.negative.any()


def test_exemplars_are_images_where_the_unit_won():
    values = torch.tensor([[1.0, -1.0, 0.0], [3.0, -3.0, 0.0], [2.0, 9.0, 0.0], [-5.0, -2.0, 0.0]])
    won = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]).bool()
    exemplars = exemplars_of(values, 3, won)
    assert exemplars.images.T.tolist() == [[2, 0, 3], [1, 3, 0], [-1, -1, -1]]
    assert exemplars.values.T.tolist() == [[2, 1, -5], [-3, -2, -1], [0, 0, 0]]
    assert exemplars.wins.tolist() == [3, 3, 0]
    assert exemplars.negative.tolist() == [False, True, False]


def test_more_exemplars_than_images_are_cut():
    values, _ = world(images=6)
    assert exemplars_of(values, 100).images.shape == (6, 5)


def test_exemplars_of_nothing_are_refused():
    values, _ = world()
    with pytest.raises(InputError, match="top is 0"):
        exemplars_of(values, 0)
    with pytest.raises(InputError, match="they must be alike"):
        exemplars_of(values, 3, torch.ones(60, 1).bool())
