"""soft_wpmi and wpmi against their published formulas, one unit, concept and image at a time."""

import numpy as np
import pytest
import torch

from lwta.dissect import entries as entries_module
from lwta.dissect import wpmi as wpmi_module
from lwta.dissect.kernels import CHUNK
from lwta.dissect.presence import Classes, Cosines, Matrix
from lwta.dissect.record import Exemplars
from lwta.dissect.similarity import (
    common,
    exemplars_of,
    soft_wpmi,
    soft_wpmi_likelihood,
    wpmi,
    wpmi_likelihood,
)
from lwta.errors import InputError
from tests import reference_similarity as naive

BOTH = {"soft_wpmi": (soft_wpmi, soft_wpmi_likelihood, 100), "wpmi": (wpmi, wpmi_likelihood, 28)}
PRIORS = {"soft_wpmi": 1.0, "wpmi": 0.6}


def as_exemplars(lists, k, count, negative=()):
    """Exemplars of given image lists; values fall with the rank."""
    images, values = torch.full((k, len(lists)), -1), torch.zeros(k, len(lists))
    for unit, listed in enumerate(lists):
        images[: len(listed), unit] = torch.tensor(listed, dtype=torch.long)
        values[: len(listed), unit] = torch.arange(len(listed), 0, -1).float()
    flags = torch.tensor([unit in negative for unit in range(len(lists))])
    wins = torch.tensor([len(listed) for listed in lists])
    return Exemplars(images=images, values=values, wins=wins, negative=flags, count=count)


def world(images=240, concepts=12, seed=0, kind="cosine"):
    """A concept matrix of cosines, as CLIP's are, or of classes as 0/1."""
    rng = np.random.default_rng(seed)
    if kind == "classes":
        found = rng.integers(concepts, size=images)[:, None] == np.arange(concepts)
    else:
        found = rng.normal(0.2, 0.05, (images, concepts))
    return torch.from_numpy(found.astype(np.float32))


def full_lists(units, images=240, k=100, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.permutation(images)[:k].tolist() for _ in range(units)]


def expected_scores(name, lists, presence, k_max, **constants):
    prior = constants.pop("prior", PRIORS[name])
    likelihood = getattr(naive, f"{name}_likelihood")(lists, presence, k_max=k_max, **constants)
    return naive.less_prior(likelihood, prior)


def close(found, expected, atol=1e-4):
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("kind", ["cosine", "classes"])
@pytest.mark.parametrize(("images", "concepts", "seed"), [(200, 8, 0), (240, 40, 1), (400, 90, 2)])
def test_full_lists_agree_with_the_published_formula(name, kind, images, concepts, seed):
    score, _, top = BOTH[name]
    presence, lists = world(images, concepts, seed, kind), full_lists(12, images, seed=seed)
    expected = expected_scores(name, [listed[:top] for listed in lists], presence, top)
    found = score(as_exemplars(lists, 100, images), presence)  # wpmi reads the first 28 of 100
    close(found, expected)
    assert (found.numpy().argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("name", BOTH)
def test_scale_and_prior_are_those_of_the_formula(name):
    presence, lists = world(), full_lists(6, k=28)
    for scale, prior in ((2.0, 0.6), (10.0, 0.0), (100.0, 1.0)):
        found = BOTH[name][0](as_exemplars(lists, 28, 240), presence, scale=scale, prior=prior)
        close(found, expected_scores(name, lists, presence, 28, scale=scale, prior=prior))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("k", [28, 20])
def test_short_lists_are_stretched_to_the_full_length(name, k):
    presence = world()
    lists = [listed[:length] for listed, length in zip(full_lists(7), (k, 19, 15, 11, 10, 2, 1), strict=True)]
    found = BOTH[name][0](as_exemplars(lists, k, 240), presence)
    expected = expected_scores(name, lists, presence, k)
    close(found, expected)
    assert (found.numpy().argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("top", [1, 4, 5, 6, 11, 100, 101, 230])
def test_any_number_of_exemplars(name, top):
    presence, lists = world(), full_lists(5, k=230)
    found = BOTH[name][0](as_exemplars(lists, 230, 240), presence, top=top)
    close(found, expected_scores(name, [listed[:top] for listed in lists], presence, top))


@pytest.mark.parametrize("name", BOTH)
def test_more_exemplars_than_images_are_cut_to_them(name):
    presence, lists = world(images=30), [*full_lists(3, images=30), [3, 1, 2]]
    found = BOTH[name][0](as_exemplars(lists, 100, 30), presence, top=100)
    close(found, expected_scores(name, lists, presence, 30))


def test_a_short_list_does_not_blot_out_the_other_units():
    # Unstretched, its sum of few logarithms would pass for a likelihood above that of any full list.
    shown = torch.arange(200) % 4
    presence = 0.2 + 0.1 * (shown[:, None] == torch.arange(4)).float()
    lists = [(shown == concept).nonzero()[:50, 0].tolist() for concept in (2, 0, 3, 1)]
    found = soft_wpmi(as_exemplars([*lists, lists[0][:12]], 50, 200), presence)
    assert found.argmax(1).tolist() == [2, 0, 3, 1, 2]
    assert (found.amax(1) > 0).all()  # each likelier than the prior on its own concept


@pytest.mark.parametrize("name", BOTH)
def test_a_dead_unit_is_nan_and_has_no_influence_on_the_others(name):
    presence, lists = world(), full_lists(5)
    score = BOTH[name][0]
    without = score(as_exemplars(lists, 100, 240), presence)
    found = score(as_exemplars([[], *lists[:2], [], *lists[2:]], 100, 240), presence)
    assert found[[0, 3]].isnan().all()
    torch.testing.assert_close(found[[1, 2, 4, 5, 6]], without, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BOTH)
def test_a_layer_of_dead_units_is_all_nan(name):
    found = BOTH[name][0](as_exemplars([[], []], 100, 240), world())
    assert found.shape == (2, 12)
    assert found.isnan().all()


def test_a_single_unit_is_its_own_prior():
    found = soft_wpmi(as_exemplars(full_lists(1), 100, 240), world())
    np.testing.assert_allclose(found, 0, atol=1e-4)
    close(wpmi(as_exemplars(full_lists(1, k=28), 28, 240), world()),
          expected_scores("wpmi", full_lists(1, k=28), world(), 28))  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_a_few_units_against_the_prior_of_all_are_rows_of_the_whole(name):
    score, likelihood, _ = BOTH[name]
    presence, exemplars = world(), as_exemplars([*full_lists(6), []], 100, 240)
    whole = score(exemplars, presence, prior=0.75)
    some = as_exemplars([full_lists(6)[unit] for unit in (4, 1)], 100, 240)
    prior = common(likelihood(exemplars, presence))
    assert prior.shape == (12,)
    few = likelihood(some, presence) - 0.75 * prior
    torch.testing.assert_close(few.float(), whole[[4, 1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("block", "slab"), [(1, 1), (7, 3), (64, 128), (240, 240)])
def test_scores_do_not_depend_on_the_blocks_of_images(name, block, slab, monkeypatch):
    presence, exemplars = world(), as_exemplars([*full_lists(6), [3, 1, 2], []], 100, 240)
    expected = BOTH[name][0](exemplars, presence)
    monkeypatch.setattr(entries_module, "_BLOCK", block)
    monkeypatch.setattr(entries_module, "_SLAB", slab)
    found = BOTH[name][0](exemplars, presence)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("concepts", [1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_the_edge_of_a_range_of_concepts(concepts):
    presence, lists = world(30, concepts), full_lists(3, images=30, k=12)
    for name, (score, _, _) in BOTH.items():
        close(score(as_exemplars(lists, 12, 30), presence), expected_scores(name, lists, presence, 12))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("threads", [1, 2])
def test_scores_do_not_depend_on_the_threads(name, threads):
    presence, exemplars = world(concepts=3 * CHUNK + 5), as_exemplars(full_lists(3), 100, 240)
    before = torch.get_num_threads()
    expected = BOTH[name][0](exemplars, presence)
    try:
        torch.set_num_threads(threads)
        found = BOTH[name][0](exemplars, presence)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", BOTH)
def test_plain_torch_operations_give_what_the_kernel_gives(name, monkeypatch):
    presence, lists = world(concepts=50), [*full_lists(6), [3, 1, 2], []]
    expected = BOTH[name][1](as_exemplars(lists, 100, 240), presence)
    monkeypatch.setattr(wpmi_module, "_add_compiled", wpmi_module._add_by_torch)
    monkeypatch.setattr(wpmi_module, "_ENTRIES", 33)
    found = BOTH[name][1](as_exemplars(lists, 100, 240), presence)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4, equal_nan=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", BOTH)
def test_a_gpu_gives_what_the_cpu_gives(name):
    presence, exemplars = world(concepts=50), as_exemplars([*full_lists(6), [3, 1, 2], []], 100, 240)
    found = BOTH[name][0](exemplars, presence, device="cuda")
    torch.testing.assert_close(found, BOTH[name][0](exemplars, presence), rtol=0, atol=5e-4, equal_nan=True)


@pytest.mark.parametrize("name", BOTH)
def test_every_presence_of_one_matrix_scores_alike(name, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.normal(1, 1, (240, 8)).astype(np.float16)
    texts = torch.from_numpy(rng.normal(1, 1, (30, 8)).astype(np.float32))
    np.save(tmp_path / "images.npy", images)
    mapped = Cosines(np.load(tmp_path / "images.npy", mmap_mode="r"), texts)
    dense = mapped.part(slice(None))
    exemplars = as_exemplars(full_lists(5), 100, 240)
    expected = BOTH[name][0](exemplars, dense)
    for presence in (mapped, Cosines(torch.from_numpy(images), texts), Matrix(dense.numpy())):
        torch.testing.assert_close(BOTH[name][0](exemplars, presence), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", BOTH)
def test_classes_are_a_presence_of_0_and_1(name):
    shown = torch.arange(240) % 7 - 1
    presence, exemplars = Classes(shown, 6), as_exemplars(full_lists(5), 100, 240)
    expected = BOTH[name][0](exemplars, presence.part(slice(None)))
    torch.testing.assert_close(BOTH[name][0](exemplars, presence), expected, rtol=0, atol=1e-5)


def test_images_that_show_nothing_of_a_concept_leave_scores_finite():
    # Factors of .002 and less a hundred times over: 1e-270, far below what float32 holds.
    presence = torch.zeros(240, 3)
    presence[:, 0] = 10.0
    for name, (score, _, top) in BOTH.items():
        found = score(as_exemplars(full_lists(4), 100, 240), presence)
        assert found.isfinite().all()
        close(found, expected_scores(name, [x[:top] for x in full_lists(4)], presence, top), atol=5e-3)


@pytest.mark.parametrize("name", BOTH)
def test_an_exemplar_beyond_the_presence_is_refused(name):
    with pytest.raises(InputError, match="image 239 is an exemplar, but .* given for 239 images"):
        BOTH[name][0](as_exemplars([[3, 239, 5]], 100, 240), world(239))
    with pytest.raises(InputError, match="top is 0"):
        BOTH[name][0](as_exemplars([[3, 1, 5]], 100, 240), world(), top=0)


@pytest.mark.parametrize("name", BOTH)
def test_values_at_hand_score_as_their_exemplars(name):
    score, _, top = BOTH[name]
    values, presence = torch.randn(240, 6, generator=torch.Generator().manual_seed(0)), world()
    lists = [
        sorted(range(240), key=lambda i, d=d: -values[i, d].item())[:top] for d in range(values.shape[1])
    ]
    close(score(exemplars_of(values, top), presence), expected_scores(name, lists, presence, top))
