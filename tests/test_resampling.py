"""Whether units keep their labels: redrawn layers against layers that were really seen so."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lwta.dissect.labelers import LayerData
from lwta.dissect.labelers.clip import ClipLabeler
from lwta.dissect.labels import texts_of
from lwta.dissect.presence import Matrix
from lwta.dissect.resampling import _redrawn, kept_labels
from lwta.dissect.similarity import exemplars_of

NAMES = ["red", "blue", "round", "big"]
N, D = 120, 6


def layer(values, presence, top=N, seen=None, keep_values=False):
    """A layer of dense units as a labeler is told of it."""
    values, presence = torch.as_tensor(values), torch.as_tensor(presence)
    exemplars = exemplars_of(values, top)
    return LayerData(
        layer="a",
        exemplars=exemplars,
        evidence=exemplars,
        constant=values.amax(0) == values.amin(0),
        presence=Matrix(presence),
        competitors=None,
        values=values.numpy() if keep_values else None,
        seen=torch.arange(len(values)) if seen is None else seen,
        key="",
    )


@pytest.fixture
def world():
    """Three units that follow a concept each, and three of noise."""
    rng = np.random.default_rng(0)
    presence = (rng.random((N, 4)) < 0.4).astype(np.float32)
    values = np.concatenate([3 * presence[:, :3], np.zeros((N, 3), np.float32)], 1)
    return (values + rng.standard_normal((N, D))).astype(np.float32), presence


@pytest.mark.parametrize("similarity", ["soft_wpmi", "wpmi", "cos", "cos_cubed", "jensen_shannon"])
def test_a_redrawn_layer_is_labelled_as_one_that_was_seen_so(world, similarity):
    values, presence = world
    counts = torch.from_numpy(np.random.default_rng(1).multinomial(N, np.full(N, 1 / N)))
    keep = similarity in ("cos", "cos_cubed", "jensen_shannon")
    redrawn = _redrawn(layer(values, presence, keep_values=keep), counts)
    rows = torch.arange(N).repeat_interleave(counts).numpy()
    really = layer(values[rows], presence[rows], keep_values=keep)
    labeler = ClipLabeler(NAMES, similarity)
    found, expected = labeler.label(redrawn), labeler.label(really)
    assert found["label"].tolist() == expected["label"].tolist()
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5)


def test_exemplars_count_as_often_as_their_images_were_drawn_and_the_list_stays_as_long(world):
    values, presence = world
    data = layer(values, presence, top=5)
    counts = torch.zeros(N, dtype=torch.long)
    first, third = data.exemplars.images[0, 0], data.exemplars.images[2, 0]
    counts[first], counts[third] = 2, 4
    found = _redrawn(data, counts).evidence
    assert found.images[:, 0].tolist() == [first, first, third, third, third]
    assert found.values[:, 0].tolist() == [data.evidence.values[r, 0] for r in (0, 0, 2, 2, 2)]
    assert len(found.images) == 5
    others = found.images[:, 1:]
    assert set(others.flatten().tolist()) <= {-1, int(first), int(third)}


def test_images_that_did_not_decode_are_never_drawn(world):
    values, presence = world
    seen = torch.arange(1, N)
    presence[0] = np.nan
    found = kept_labels(ClipLabeler(NAMES, "cos"), layer(values, presence, seen=seen, keep_values=True),
                        ["red"] * D, 5)  # fmt: skip
    assert found["kept_images"].iloc[0] == 1


def test_labels_of_units_that_follow_a_concept_stay_and_those_of_noise_do_not(world):
    data = layer(*world, keep_values=True)
    labeler = ClipLabeler(NAMES, "cos_cubed")
    labels = texts_of(labeler.label(data))
    found = kept_labels(labeler, data, labels, 20)
    assert labels[:3] == NAMES[:3]
    assert found["kept_images"].iloc[:3].min() >= 0.95
    assert found["kept_concepts"].isna().all()  # the best of all is the best of any that hold it
    assert found["kept_images"].iloc[3:].min() < 0.8


def test_concepts_count_only_where_a_draw_holds_the_label(world, monkeypatch):
    data, labeler = layer(*world), ClipLabeler(NAMES)
    draws = iter([[0, 0, 1, 1], [2, 3, 3, 3], [1, 1, 1, 1]])
    rng = np.random.default_rng(0)

    class Drawn:
        def multinomial(self, *args):
            return rng.multinomial(*args)

        def integers(self, *args, **options):
            return np.array(next(draws))

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Drawn())
    found = kept_labels(labeler, data, ["red", "red", "round", "big", None, "blue"], 3)
    # Of red and blue, the first unit is red and the second blue; of round and big the third is round.
    assert found["kept_concepts"].tolist()[:3] == [1, 0, 1]
    assert np.isnan(found["kept_concepts"].iloc[4])
    assert np.isnan(found["kept_images"].iloc[4])
    # The first draw gives the first unit red, as are two of the three labels that it holds.
    assert found["shuffled_kept_concepts"].tolist()[:3] == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert np.isnan(found["shuffled_kept_concepts"].iloc[4])


def test_shuffled_labels_are_kept_as_often_as_another_units_label_comes(world):
    data, labels = layer(*world, keep_values=True), ["red", "red", "blue", "round", "big", None]
    labeler = ClipLabeler(NAMES, "cos_cubed")
    found = kept_labels(labeler, data, labels, 4)
    draws = [
        texts_of(labeler.label(_redrawn(data, torch.from_numpy(counts))))
        for counts in _multinomials(4, data.seen)
    ]
    told = [k for k, label in enumerate(labels) if label is not None]
    for unit in told:
        alike = [np.mean([given[unit] == labels[other] for other in told]) for given in draws]
        assert found["shuffled_kept_images"].iloc[unit] == pytest.approx(np.mean(alike))


def _multinomials(times, seen):
    rng = np.random.default_rng(0)
    return [rng.multinomial(len(seen), np.full(len(seen), 1 / len(seen))) for _ in range(times)]


def test_a_label_that_is_none_of_the_units_is_never_kept(world):
    found = kept_labels(ClipLabeler(NAMES), layer(*world), ["big"] * 3 + [None] * 3, 5)
    assert found["kept_images"].tolist()[:3] == [0, 0, 0]


def test_draws_are_seeded_and_leave_no_prior_behind(world, tmp_path):
    labeler, data = ClipLabeler(NAMES, cache=tmp_path), layer(*world)
    labels = texts_of(labeler.label(data))
    before = sorted(Path(tmp_path).rglob("*"))
    first, again = kept_labels(labeler, data, labels, 3), kept_labels(labeler, data, labels, 3)
    pd.testing.assert_frame_equal(first, again)
    assert sorted(Path(tmp_path).rglob("*")) == before
