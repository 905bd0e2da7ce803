"""Units silenced, left out of the competition, or made to win, against loops over every block."""

import pytest
import torch
from torch import nn

from lwta import LWTA, functional
from lwta.dissect.intervene import Change, changed, excluded, silenced
from lwta.errors import InputError
from lwta.layers import competitions, sampled, watch
from lwta.noise import gumbel_like
from tests.by_hand import (
    FIRST,
    LAST,
    MEAN,
    by_hand,
    competing,
    hooks,
    image,
    map_explained,
    photo,
    randn,
    resnet,
    vit,
    vit_explained,
)

__all__ = ["image", "photo", "resnet", "vit"]  # fixtures

LAYOUTS = {"tokens": ((3, 5, 12), -1), "maps": ((3, 12, 2, 5), 1), "vectors": ((3, 12), 1)}


def layer(competitors, dim, beta=1.0, noise=1.0):
    return nn.Sequential(LWTA(competitors, dim, beta=beta, noise=noise)).eval()


def units_first(x, dim):
    """A list of n lists of positions, each D numbers."""
    x = x.movedim(dim, -1)
    return [one.reshape(-1, x.shape[-1]).tolist() for one in x]


def outcome(z, h, competitors, barred=(), forced=()):
    """What comes out at one position: of each block the unit of the largest z passes its h."""
    out = [0.0] * len(z)
    for start in range(0, len(z), competitors):
        units = [unit for unit in range(start, start + competitors) if unit not in barred]
        winner = next((unit for unit in forced if unit in units), max(units, key=lambda unit: z[unit]))
        out[winner] = h[winner]
    return out


def expected(x, dim, competitors, barred=((), (), ()), forced=(), noise=None):
    """:func:`outcome` at each position of three images, with the units barred in each."""
    z = units_first(x.double() if noise is None else x.double() + noise.double(), dim)
    return [
        [outcome(*pair, competitors, barred[i], forced) for pair in zip(z[i], h, strict=True)]
        for i, h in enumerate(units_first(x, dim))
    ]


# --- silenced ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dim"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    "units", [[[2], [0], [2]], [[2, 3], [0, 11], [5, 5]], [[7]], [[1, 4]], [[*range(12)]]], ids=str
)
def test_silencing_zeroes_the_units_of_each_image_and_nothing_else(shape, dim, units):
    x = randn(*shape) + 10
    kept, model = x.clone(), nn.Sequential(nn.Identity())
    with silenced(model, "0", torch.tensor(units), dim):
        found = units_first(model(x), dim)
    for i, positions in enumerate(units_first(x, dim)):
        mine = units[i] if len(units) > 1 else units[0]
        for place, values in enumerate(positions):
            assert found[i][place] == [0 if unit in mine else value for unit, value in enumerate(values)]
    assert torch.equal(x, kept)


def test_silencing_leaves_the_competition_unchanged():
    model, x = layer(4, -1), randn(2, 5, 12)
    with watch(model, {"0": -1}) as calls:
        winner = int(model(x)[0, 0].nonzero()[0])
        with silenced(model, "0", torch.tensor([[winner]]), -1):
            assert not model(x)[..., winner].any()
    assert torch.equal(calls["0"][0].fired, calls["0"][1].fired)
    assert calls["0"][0].fired[0, 0, winner]


# --- excluded ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dim"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("competitors", [2, 3, 12])
@pytest.mark.parametrize("beta", [1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_of_the_units_that_are_left_the_largest_wins(shape, dim, competitors, beta, dtype):
    x = (3 * randn(*shape) - 2).to(dtype)
    model, barred = layer(competitors, dim, beta), [[1], [0], [11]]
    with excluded(model, "0", torch.tensor(barred)):
        found = model(x)
    assert found.dtype == dtype
    assert units_first(found, dim) == expected(x, dim, competitors, barred)
    if competitors > 2:
        with excluded(model, "0", torch.tensor([[1, 0]])):  # of all images
            found = model(x)
        assert units_first(found, dim) == expected(x, dim, competitors, [[0, 1]] * 3)


def test_a_unit_that_did_not_win_is_excluded_without_effect(vit, image):
    out = by_hand(vit, LAST, image)[1]
    losers = (out == 0).all(0).nonzero()[:, 0].tolist()
    assert losers
    with torch.no_grad():
        before = vit(image[None])
        with excluded(vit, LAST, torch.tensor([losers[:5]])):
            torch.testing.assert_close(vit(image[None]), before)


@pytest.mark.parametrize(("shape", "dim"), LAYOUTS.values(), ids=LAYOUTS)
def test_where_winners_are_drawn_the_same_draw_decides_among_those_left(shape, dim):
    x, barred = randn(*shape), [[1], [0], [11]]
    model = layer(4, dim, noise=3.0)
    with sampled(model, 5):
        seed = competitions(model)["0"].seed
        with excluded(model, "0", torch.tensor(barred)):
            found = model(x)
    axis = functional.positive_axis(dim, x.ndim)
    noise = 3 * gumbel_like(x.unflatten(axis, (3, 4)), seed, axis + 1).flatten(axis, axis + 1)
    assert units_first(found, dim) == expected(x, dim, 4, barred, noise=noise)
    assert units_first(found, dim) != expected(x, dim, 4, barred)


# --- forced --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dim"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("competitors", [2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_forced_winner_passes_its_linear_value(shape, dim, competitors, dtype):
    x = randn(*shape).to(dtype)
    model = layer(competitors, dim, beta=2.0)
    forced = {0: 1, 12 // competitors - 1: 12 - competitors}
    with changed(model, Change(winners={"0": forced}), {}):
        found = model(x)
    assert found.dtype == dtype
    assert units_first(found, dim) == expected(x, dim, competitors, forced=tuple(forced.values()))
    assert units_first(found, dim) != expected(x, dim, competitors)


def test_a_forced_winner_wins_whatever_is_drawn_and_the_others_are_drawn_alike():
    x, model = randn(4, 5, 12), layer(4, -1, noise=3.0)
    with sampled(model, 5):
        drawn = model(x)
        with changed(model, Change(winners={"0": {1: 6}}), {}):
            found = model(x)
    assert torch.equal(found[..., [*range(4), *range(8, 12)]], drawn[..., [*range(4), *range(8, 12)]])
    assert torch.equal(found[..., 6], x[..., 6])
    assert not found[..., [4, 5, 7]].any()


def test_what_is_forced_is_seen_as_having_fired_and_what_is_silenced_after_it_is_silent():
    model, x = layer(4, -1), randn(2, 5, 12)
    change = Change(silenced={"0": [0, 6]}, winners={"0": {1: 6, 2: 9}})
    with changed(model, change, {"0": -1}), watch(model, {"0": -1}) as calls:
        found = model(x)
    (firing,) = calls["0"]
    assert firing.fired[..., [6, 9]].all()
    assert (firing.fired.sum(-1) == 3).all()
    assert not found[..., [0, 6]].any()
    assert torch.equal(found[..., 9], x[..., 9])
    assert change.told() == [
        "unit 6 of 0 wins block 1",
        "unit 9 of 0 wins block 2",
        "unit 0 of 0 is silenced",
        "unit 6 of 0 is silenced",
    ]


def test_no_change_changes_nothing(vit, image):
    assert not Change()
    assert Change(silenced={LAST: [1]})
    assert Change(winners={LAST: {0: 1}})
    with torch.no_grad():
        before = vit(image[None])
        with changed(vit, Change(), {}):
            assert torch.equal(vit(image[None]), before)


# --- what explain measures by them ---------------------------------------------------------------


def test_units_of_a_whole_batch_are_measured_each_on_its_own(resnet, photo):
    name = "layer3.0.act1"
    for found in map_explained(resnet, photo, name, top=5, batch_size=5).layers[0].measured:
        with torch.no_grad(), excluded(resnet, name, torch.tensor([[found.unit]])):
            inside = resnet(photo[None])
        with torch.no_grad():
            handle = resnet.get_submodule(name).register_forward_hook(
                lambda module, inputs, out, unit=found.unit: competing(8, (unit,))(inputs[0], out)
            )
            by_loops = resnet(photo[None])
            handle.remove()
        torch.testing.assert_close(inside, by_loops)


# --- bad input, and nothing left behind ----------------------------------------------------------


@pytest.mark.parametrize("unit", [96, -1, 1000])
def test_a_unit_that_is_not_there_is_refused(vit, image, unit):
    for context in (
        silenced(vit, LAST, torch.tensor([[0, unit]]), -1),
        excluded(vit, LAST, torch.tensor([[unit]])),
    ):
        with pytest.raises(InputError, match=f"has the units 0 to 95, and no unit {unit}"), context:
            vit(image[None])


@pytest.mark.parametrize(("block", "unit"), [(0, 24), (3, 96), (4, 96), (-1, 95), (1, 3)])
def test_a_winner_of_another_block_is_refused(vit, image, block, unit):
    with (
        pytest.raises(InputError, match=f"unit {unit} of {LAST} does not compete in block {block}"),
        changed(vit, Change(winners={LAST: {block: unit}}), {}),
    ):
        vit(image[None])


def test_where_nothing_competes_nothing_is_excluded_and_nothing_wins(vit):
    for context in (
        excluded(vit, "head", torch.tensor([[0]])),
        changed(vit, Change(winners={"head": {0: 1}}), {}),
    ):
        with pytest.raises(TypeError, match="head is a Linear; only the units of an LWTA layer"), context:
            pass


def test_no_hook_is_left_behind_even_where_the_pass_fails(vit, image):
    before, change = hooks(vit), Change(silenced={FIRST: [3]}, winners={LAST: {0: 1}})
    winner = int(by_hand(vit, LAST, image)[1][0, 48:].nonzero()[0]) + 48
    with torch.no_grad():
        logits = vit(image[None])
        with changed(vit, change, {FIRST: -1}), excluded(vit, LAST, torch.tensor([[winner]])):
            assert hooks(vit) != before
            assert not torch.equal(vit(image[None]), logits)
        assert hooks(vit) == before
        with pytest.raises(InterruptedError), changed(vit, change, {FIRST: -1}):
            raise InterruptedError
        with (
            pytest.raises(AttributeError),
            changed(vit, Change({FIRST: [0], "nowhere": [1]}), {FIRST: -1, "nowhere": 1}),
        ):
            pass
        with pytest.raises(InputError):
            vit_explained(vit, image, readout=MEAN, change=Change(silenced={FIRST: [99]}))
        assert hooks(vit) == before
        assert torch.equal(vit(image[None]), logits)
