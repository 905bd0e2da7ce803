"""The decision after a change, against passes with hooks of our own."""

import pytest
import torch

from lwta.dissect.intervene import Change
from tests.by_hand import (
    CLASSES,
    CLS,
    FIRST,
    LAST,
    MEAN,
    by_hand,
    captured,
    competing,
    image,
    logits_with,
    map_explained,
    photo,
    resnet,
    resnet_network,
    rewritten,
    score,
    vit,
    vit_explained,
    vit_network,
    winners,
    zeroing,
)

__all__ = ["image", "photo", "resnet", "vit"]  # fixtures


def strongest(explained, layer=0):
    """The unit of a layer that contributes most."""
    return explained.layers[layer].fired[0].unit


def check_decision(explained, before, after, target, against=None):
    """Classes and score against the logits (C,) of two passes."""
    found = explained.counterfactual
    p, q = before.softmax(0).tolist(), after.softmax(0).tolist()
    order = sorted(range(4), key=lambda k: -max(p[k], q[k]))
    assert [name for name, *_ in found.classes] == [CLASSES[k] for k in order]
    for (_, was, now), k in zip(found.classes, order, strict=True):
        assert (was, now) == pytest.approx((p[k], q[k]), abs=1e-9)
    assert found.score == pytest.approx(score(after[None], target, against).item(), abs=1e-9)
    assert explained.score == pytest.approx(score(before[None], target, against).item(), abs=1e-9)


@pytest.mark.parametrize("against", [None, 1])
@pytest.mark.parametrize("layer", [FIRST, LAST])
def test_silencing_shows_where_the_classes_go(vit, image, layer, against):
    unit = strongest(vit_explained(vit, image, [layer]))
    change = Change(silenced={layer: [unit]})
    explained = vit_explained(vit, image, change=change, target=0, against=against)
    before = vit(image[None])[0].detach()
    after = logits_with(vit, layer, image, zeroing(unit, axis=-1))
    check_decision(explained, before, after, 0, against)
    assert explained.counterfactual.told == [f"unit {unit} of {layer} is silenced"]
    assert explained.counterfactual.score != pytest.approx(explained.score, abs=1e-3)


def test_silencing_is_the_change_that_is_measured_of_the_unit(vit, image):
    unit = vit_explained(vit, image, [FIRST]).layers[0].fired[0]
    explained = vit_explained(vit, image, change=Change(silenced={FIRST: [unit.unit]}))
    assert explained.counterfactual.score - explained.score == pytest.approx(unit.silenced, abs=1e-9)


@torch.no_grad()
def fired_after(model, image, layer, changed_layer, change):
    """bool (T, D), who fires in a layer when an earlier one returns something else."""
    with captured(model.get_submodule(layer)) as seen, rewritten(model.get_submodule(changed_layer), change):
        model(image[None])
    return winners(seen["input"][0], 24)


def check_units(change, before, after):
    """Gained, lost and the share of blocks with another winner, by loops: (T, D)."""
    blocks = range(0, before.shape[1], 24)
    gained = [u for u in range(96) if after[:, u].any() and not before[:, u].any()]
    lost = [u for u in range(96) if before[:, u].any() and not after[:, u].any()]
    others = [
        list(before[t, b : b + 24]) != list(after[t, b : b + 24]) for t in range(len(before)) for b in blocks
    ]
    assert [word.unit for word in change.gained] == gained
    assert [word.unit for word in change.lost] == lost
    assert change.positions == pytest.approx(sum(others) / len(others))


@pytest.mark.parametrize("readout", [CLS, MEAN], ids=lambda r: r.kind)
def test_the_layer_after_a_silenced_unit_shows_who_fires_instead(vit, image, readout):
    units = [u.unit for u in vit_explained(vit, image, [FIRST], MEAN).layers[0].fired[:3]]
    change = Change(silenced={FIRST: units})
    explained = vit_explained(vit, image, readout=readout, change=change)
    places = slice(0, 1) if readout.kind == "cls" else slice(1, None)
    before = winners(by_hand(vit, LAST, image)[0], 24)[places]
    after = fired_after(vit, image, LAST, FIRST, zeroing(*units, axis=-1))[places]
    assert (before != after).any()
    (changed,) = explained.counterfactual.layers  # the competition of the silenced layer is as it was
    assert changed.layer == LAST
    check_units(changed, before, after)


@pytest.mark.parametrize("readout", [CLS, MEAN], ids=lambda r: r.kind)
def test_a_forced_winner_wins_and_the_layers_after_it_follow(vit, image, readout):
    rival = vit_explained(vit, image, [FIRST]).layers[0].fired[0].rivals[1].unit
    forced = {rival // 24: rival}
    explained = vit_explained(vit, image, readout=readout, change=Change(winners={FIRST: forced}))
    after = logits_with(vit, FIRST, image, competing(24, forced=forced))
    check_decision(explained, vit(image[None])[0].detach(), after, CLASSES.index(explained.target))
    assert explained.counterfactual.told == [f"unit {rival} of {FIRST} wins block {rival // 24}"]
    first, last = explained.counterfactual.layers
    places = slice(0, 1) if readout.kind == "cls" else slice(1, None)
    before = winners(by_hand(vit, FIRST, image)[0], 24)[places]
    forced_win = before.copy()
    forced_win[:, rival // 24 * 24 : rival // 24 * 24 + 24] = False
    forced_win[:, rival] = True
    check_units(first, before, forced_win)
    later = fired_after(vit, image, LAST, FIRST, competing(24, forced=forced))[places]
    check_units(last, winners(by_hand(vit, LAST, image)[0], 24)[places], later)


def test_forcing_the_nearest_rival_is_what_excluding_the_winner_does_where_it_is_the_rival_everywhere(image):
    model = vit_network(competitors=2)
    unit = vit_explained(model, image, [LAST]).layers[0].fired[0]
    explained = vit_explained(
        model, image, [LAST], change=Change(winners={LAST: {unit.unit // 2: unit.unit ^ 1}})
    )
    assert explained.counterfactual.score - explained.score == pytest.approx(unit.excluded, abs=1e-9)


def test_several_changes_are_made_together(vit, image):
    first, last = (vit_explained(vit, image).layers[k].fired for k in (0, 1))
    rival = last[0].rivals[0].unit
    change = Change({FIRST: [first[0].unit, first[1].unit]}, {LAST: {rival // 24: rival}})
    explained = vit_explained(vit, image, change=change)
    silent = zeroing(first[0].unit, first[1].unit, axis=-1)
    with rewritten(vit.get_submodule(FIRST), silent):
        after = logits_with(vit, LAST, image, competing(24, forced={rival // 24: rival}))
    check_decision(explained, vit(image[None])[0].detach(), after, CLASSES.index(explained.target))
    assert len(explained.counterfactual.told) == 3


def test_where_nothing_fires_otherwise_no_layer_is_named(vit, image):
    unit = vit_explained(vit, image, [LAST]).layers[0].fired[0].unit
    silenced = vit_explained(vit, image, change=Change(silenced={LAST: [unit]})).counterfactual
    assert silenced.layers == []
    fired = winners(by_hand(vit, FIRST, image)[0], 24).any(0)
    silent = vit_explained(vit, image, change=Change(silenced={FIRST: [list(fired).index(False)]}))
    assert silent.counterfactual.layers == []
    assert silent.counterfactual.score == pytest.approx(silent.score, abs=1e-9)


def test_a_layer_that_is_not_explained_can_be_silenced_too(vit, image):
    change = Change(silenced={"blocks.0.mlp.fc1": [5, 90]})
    explained = vit_explained(vit, image, [LAST], change=change, change_sites={"blocks.0.mlp.fc1": -1})
    after = logits_with(vit, "blocks.0.mlp.fc1", image, zeroing(5, 90, axis=-1))
    check_decision(explained, vit(image[None])[0].detach(), after, CLASSES.index(explained.target))


def test_in_dense_layers_that_a_silenced_unit_is_silent_is_not_told_again(image):
    model = vit_network(competitors=None)
    explained = vit_explained(model, image, change=Change(silenced={FIRST: [7]}))
    assert explained.counterfactual.layers == []
    after = logits_with(model, FIRST, image, zeroing(7, axis=-1))
    check_decision(explained, model(image[None])[0].detach(), after, CLASSES.index(explained.target))


@torch.no_grad()
def test_after_a_relu_other_units_fire_where_an_earlier_layer_is_silenced(photo):
    model = resnet_network(competitors=None)
    first, last = "layer4.0.act1", "layer4.0.act2"
    with captured(model.get_submodule(last)) as seen:
        model(photo[None])
        before = seen["output"][0].flatten(1).any(1).tolist()
        units = [u.unit for u in map_explained(model, photo, first, top=0).layers[0].fired[:40]]
        with rewritten(model.get_submodule(first), zeroing(*units, axis=1)):
            model(photo[None])
        after = seen["output"][0].flatten(1).any(1).tolist()
    silent = before.index(True)  # by itself
    change = Change(silenced={first: units, last: [silent]})
    sites = dict.fromkeys((first, last), 1)
    explained = map_explained(model, photo, first, last, top=0, change=change, change_sites=sites)
    (changed,) = explained.counterfactual.layers
    assert (changed.layer, changed.positions) == (last, None)
    assert [word.unit for word in changed.gained] == [u for u in range(512) if after[u] and not before[u]]
    lost = [u for u in range(512) if before[u] and not after[u] and u != silent]
    assert [word.unit for word in changed.lost] == lost
    assert lost


def test_a_silenced_unit_that_lost_its_competition_too_is_told(vit, image):
    (last,) = vit_explained(vit, image, [LAST]).layers
    unit, rival = last.fired[0].unit, last.fired[0].rivals[0].unit
    change = Change({LAST: [unit]}, {LAST: {unit // 24: rival}})
    (changed,) = vit_explained(vit, image, change=change).counterfactual.layers
    assert [word.unit for word in changed.lost] == [unit]
    assert [word.unit for word in changed.gained] == [rival]


def test_maps_are_changed_at_every_pixel(resnet, photo):
    layer = "layer2.0.act1"
    unit = map_explained(resnet, photo, layer, top=1).layers[0].fired[0]
    rival = unit.rivals[0].unit
    change = Change({layer: [unit.unit]}, {layer: {rival // 8: rival}})
    explained = map_explained(resnet, photo, layer, top=1, change=change)
    after = logits_with(resnet, layer, photo, competing(8, forced={rival // 8: rival}))
    check_decision(explained, resnet(photo[None])[0].detach(), after, CLASSES.index(explained.target))
    (changed,) = explained.counterfactual.layers
    assert unit.unit in [word.unit for word in changed.lost]
    assert 0 < changed.positions <= 1 / 16
