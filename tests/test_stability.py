"""Winners drawn again and again, against a loop that draws with the same seeds, and the probabilities."""

from collections import Counter

import numpy as np
import pytest
import torch

from lwta.layers import competitions, sampled
from tests.by_hand import (
    BETA,
    CLASSES,
    CLS,
    FIRST,
    LAST,
    MEAN,
    by_hand,
    image,
    map_explained,
    photo,
    resnet,
    score,
    vit,
    vit_explained,
    vit_network,
    winners,
)

__all__ = ["image", "photo", "resnet", "vit"]  # fixtures


@torch.no_grad()
def drawn_by_hand(model, pixels, layers, sizes, competitors):
    """Who won in each draw, layer -> bool (samples, ..., D), and the logits; a seed for each batch."""
    won, logits = {layer: [] for layer in layers}, []

    def hook(layer):
        def seen(module, inputs, out):
            axis = inputs[0].ndim - 1 if inputs[0].ndim == 3 else 1
            place = out.winner.movedim(axis, -1)
            fired = torch.zeros(*place.shape, competitors, dtype=torch.bool)
            for u in range(competitors):
                fired[..., u] = place == u
            won[layer].append(fired.flatten(-2).numpy())

        return seen

    for seed, size in enumerate(sizes):
        handles = [
            model.get_submodule(layer).competition.register_forward_hook(hook(layer)) for layer in layers
        ]
        with sampled(model, seed):
            logits.append(model(torch.stack([pixels] * size)))
        for handle in handles:
            handle.remove()
    return {layer: np.concatenate(found) for layer, found in won.items()}, torch.cat(logits)


@pytest.mark.parametrize(
    ("samples", "batch_size", "sizes"), [(1, 64, [1]), (30, 64, [30]), (11, 4, [4, 4, 3])]
)
@pytest.mark.parametrize("readout", [CLS, MEAN], ids=lambda r: r.kind)
def test_shares_are_those_of_a_loop_over_the_draws(vit, image, samples, batch_size, sizes, readout):
    explained = vit_explained(vit, image, readout=readout, samples=samples, batch_size=batch_size)
    won, logits = drawn_by_hand(vit, image, (FIRST, LAST), sizes, 24)
    places = [0] if readout.kind == "cls" else range(1, 25)
    for found in explained.layers:
        h, *_ = by_hand(vit, found.layer, image)
        argmax, drawn = winners(h, 24), won[found.layer]
        for u in found.fired:
            own = [t for t in places if argmax[t, u.unit]]
            again = [drawn[i, t, u.unit] for i in range(samples) for t in own]
            assert u.stability == pytest.approx(sum(again) / len(again), abs=1e-9)
        shares = {
            unit: sum(drawn[i, t, unit] for i in range(samples) for t in places) / samples / len(places)
            for unit in range(96)
            if not any(argmax[t, unit] for t in places)
        }
        often = sorted((unit for unit in shares if shares[unit] >= 0.05), key=lambda unit: -shares[unit])
        assert [d.share for d in found.drawn] == pytest.approx([shares[unit] for unit in often[:10]])
        assert all(d.share == pytest.approx(shares[d.unit]) for d in found.drawn)
    check_decision(explained, logits, samples)


def check_decision(explained, logits, samples):
    target, found = CLASSES.index(explained.target), explained.stability
    scores = score(logits, target).tolist()
    mean = sum(scores) / samples
    assert found.samples == samples
    assert found.score == pytest.approx(mean, abs=1e-9)
    assert found.deviation == pytest.approx((sum((s - mean) ** 2 for s in scores) / samples) ** 0.5, abs=1e-9)
    p = [float(row.exp()[target] / row.exp().sum()) for row in logits]
    assert found.probability == pytest.approx(sum(p) / samples, abs=1e-9)
    predicted = Counter(CLASSES[max(range(4), key=lambda k, row=row: row[k])] for row in logits.tolist())
    assert dict(found.classes) == {name: count / samples for name, count in predicted.items()}
    assert [share for _, share in found.classes] == sorted((s for _, s in found.classes), reverse=True)


def test_units_of_feature_maps_are_drawn_at_each_pixel(resnet, photo):
    layer = "layer2.0.act1"
    explained = map_explained(resnet, photo, layer, samples=6, top=2)
    won, logits = drawn_by_hand(resnet, photo, [layer], [6], 8)
    h, *_ = by_hand(resnet, layer, photo)
    argmax = winners(h.flatten(1).T, 8)
    drawn = won[layer].reshape(6, -1, 128)
    for u in explained.layers[0].fired:
        own = argmax[:, u.unit]
        assert u.stability == pytest.approx(drawn[:, own, u.unit].mean())
    check_decision(explained, logits, 6)


@pytest.mark.parametrize("noise", [1.0, 3.0])
def test_in_the_first_layer_shares_converge_to_the_winner_probabilities(vit, image, noise):
    competition = vit.get_submodule(FIRST).competition
    competition.noise, samples = noise, 2000
    (found,) = vit_explained(vit, image, [FIRST], samples=samples).layers
    competition.noise = 1.0
    h, *_ = by_hand(vit, FIRST, image)
    p = (BETA * h[0].unflatten(0, (4, 24)) / noise).softmax(1).flatten().tolist()
    error = 4 * (0.25 / samples) ** 0.5
    for u in found.fired:
        assert u.probability == pytest.approx(p[u.unit], abs=1e-9)
        assert u.stability == pytest.approx(u.probability, abs=error)
    assert all(d.share == pytest.approx(p[d.unit], abs=error) for d in found.drawn)
    often = [
        unit for unit in range(96) if p[unit] > 0.05 + error and unit not in {u.unit for u in found.fired}
    ]
    assert set(often) <= {d.unit for d in found.drawn}
    assert len({round(u.stability, 3) for u in found.fired}) > 1


def test_without_noise_every_draw_is_the_argmax(image):
    explained = vit_explained(vit_network(noise=0.0), image, readout=MEAN, samples=3)
    assert all(u.stability == 1 for found in explained.layers for u in found.fired)
    assert all(found.drawn == [] for found in explained.layers)
    assert explained.stability.classes == [(explained.target, 1.0)]
    assert explained.stability.score == pytest.approx(explained.score, abs=1e-9)
    assert explained.stability.deviation == pytest.approx(0, abs=1e-9)


def test_each_layer_is_drawn_at_its_own_noise(image):
    model = vit_network()
    model.get_submodule(FIRST).competition.noise = 0.0
    first, last = vit_explained(model, image, readout=MEAN, samples=5).layers
    assert (first.noise, last.noise) == (0, 1)
    assert {u.stability for u in first.fired} == {1}
    assert any(u.stability < 1 for u in last.fired)


def test_drawing_changes_nothing_that_is_said_of_the_argmax(vit, image):
    plain, drawn = (vit_explained(vit, image, readout=MEAN, samples=n).to_dict() for n in (0, 7))
    assert plain["stability"] is None
    assert drawn["stability"]["samples"] == 7
    for found in drawn["layers"]:
        found["drawn"] = []
        for u in found["fired"]:
            assert 0 <= u["stability"] <= 1
            u["stability"] = None
    assert drawn["layers"] == plain["layers"]
    assert all(competition.seed is None for competition in competitions(vit).values())
