"""Readouts against plain loops, and the streamed pass against one image at a time."""

import pytest
import torch
from torch import nn

from lwta import LWTA
from lwta.dissect.activations import Readout
from lwta.errors import InputError
from lwta.layers import Firing
from tests.records import collect as collect_records


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- readout -------------------------------------------------------------------------------------


def naive_positions(x, dim, kind, prefix):
    """Per image a list of positions, each a list of the units' values, by indexing alone."""
    images = []
    for i in range(len(x)):
        image = x[i]
        if dim == 1 and x.ndim == 2:
            found = [image.tolist()]
        elif dim == 2 and x.ndim == 3:
            found = [image[t].tolist() for t in range(x.shape[1])]
            found = found[:1] if kind == "cls" else found[prefix:]
        elif dim == 1 and x.ndim == 3:
            found = [image[:, t].tolist() for t in range(x.shape[2])]
        elif dim == 1:
            found = [image[:, r, c].tolist() for r in range(x.shape[2]) for c in range(x.shape[3])]
        else:
            found = [image[r, c].tolist() for r in range(x.shape[1]) for c in range(x.shape[2])]
        images.append(found)
    return torch.tensor(images, dtype=x.dtype)


LAYOUTS = [
    pytest.param((3, 7, 4), 2, "cls", 1, id="tokens cls"),
    pytest.param((3, 7, 4), 2, "cls", 2, id="tokens cls of two prefix tokens"),
    pytest.param((3, 7, 4), 2, "mean", 0, id="tokens mean without prefix"),
    pytest.param((3, 7, 4), 2, "mean", 1, id="tokens mean"),
    pytest.param((3, 7, 4), 2, "mean", 2, id="tokens mean of two prefix tokens"),
    pytest.param((3, 7, 4), 2, "max", 1, id="tokens max"),
    pytest.param((3, 7, 4), 2, "max", 2, id="tokens max of two prefix tokens"),
    pytest.param((3, 4, 7), 1, "mean", 0, id="units before tokens"),
    pytest.param((3, 4, 2, 3), 1, "mean", 0, id="NCHW mean"),
    pytest.param((3, 4, 2, 3), 1, "max", 0, id="NCHW max"),
    pytest.param((3, 2, 3, 4), 3, "mean", 0, id="NHWC mean"),
    pytest.param((3, 2, 3, 4), 3, "max", 0, id="NHWC max"),
    pytest.param((3, 2, 3, 4), 3, "mean", 1, id="NHWC has no prefix tokens"),
    pytest.param((3, 4), 1, "mean", 0, id="ND mean"),
    pytest.param((3, 4), 1, "max", 0, id="ND max"),
]


@pytest.mark.parametrize(("shape", "dim", "kind", "prefix"), LAYOUTS)
def test_positions_are_those_the_readout_looks_at_in_order(shape, dim, kind, prefix):
    x = randn(*shape)
    assert torch.equal(Readout(kind, prefix).positions(x, dim), naive_positions(x, dim, kind, prefix))


def pooled(column, fire):
    """Largest value where the unit fired, 0 where it fired nowhere."""
    return max((value for value, hit in zip(column, fire, strict=True) if hit), default=0.0)


@pytest.mark.parametrize(("shape", "dim", "kind", "prefix"), LAYOUTS)
def test_read_agrees_with_a_loop_over_images_units_and_positions(shape, dim, kind, prefix):
    x, fired = randn(*shape), randn(*shape, seed=1) > 0.8
    values, won, peaks, count = Readout(kind, prefix).read(Firing(x, fired, dim, winner=torch.empty(0)))
    places, fires = naive_positions(x, dim, kind, prefix), naive_positions(fired, dim, kind, prefix)
    assert values.shape == won.shape == (3, 4)
    for i in range(3):
        for unit in range(4):
            column = [position[unit] for position in places[i].tolist()]
            fire = [position[unit] for position in fires[i].tolist()]
            value = pooled(column, fire) if kind == "max" else sum(column) / len(column)
            assert values[i, unit].item() == pytest.approx(value, rel=1e-6, abs=1e-6)
            assert won[i, unit].item() == any(fire)
            assert count == len(column)
            if any(fire):
                assert column[peaks[i, unit]] == pooled(column, fire)
                assert fire[peaks[i, unit]]


@pytest.mark.parametrize(("shape", "dim", "kind", "prefix"), LAYOUTS)
def test_units_that_do_not_compete_are_read_as_published(shape, dim, kind, prefix):
    x = randn(*shape).relu()
    values, won, peaks, _ = Readout(kind, prefix).read(Firing(x, x != 0, dim))
    places = naive_positions(x, dim, kind, prefix)
    expected = places.amax(1) if kind == "max" else places.mean(1)
    torch.testing.assert_close(values, expected)
    assert torch.equal(won, (places != 0).any(1))
    assert torch.equal(places.gather(1, peaks[:, None])[:, 0], places.amax(1))


def test_patches_are_read_at_their_strongest_and_need_positions():
    x = randn(3, 7, 4)
    found = Readout("patches", 1).read(Firing(x, x != 0, 2))
    assert torch.equal(found.values, x[:, 1:].amax(1))
    assert torch.equal(found.positions, x[:, 1:].argmax(1))
    assert found.places == 6
    with pytest.raises(InputError, match="readout patches needs positions, and this layer has none"):
        Readout("patches").read(Firing(x[:, 0], x[:, 0] != 0, 1))


def test_a_unit_won_where_it_fired_whatever_its_value():
    values = torch.tensor([[[0.0, 5.0], [-2.0, 3.0]]])
    fired = torch.tensor([[[True, False], [True, False]]])
    read, won, *_ = Readout("cls", 1).read(Firing(values, fired, 2))
    assert won.tolist() == [[True, False]]
    assert read.tolist() == [[0.0, 5.0]]


@pytest.mark.parametrize(
    ("shape", "dim", "prefix"),
    [((2, 5, 4), 2, 0), ((2, 4, 5), 1, 1), ((2, 4, 3, 3), 1, 1), ((2, 3, 3, 4), 3, 1), ((2, 4), 1, 1)],
)
def test_cls_is_refused_where_there_is_no_class_token(shape, dim, prefix):
    with pytest.raises(InputError, match=r"needs a class token.*use mean or max"):
        Readout("cls", prefix).positions(randn(*shape), dim)


def test_an_unknown_readout_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="one of cls, mean, max, patches, not 'median'"):
        Readout("median")


# --- collect -------------------------------------------------------------------------------------


def collect(*args):
    """The exemplars of every layer."""
    return {name: record.exemplars() for name, record in collect_records(*args).items()}


class Tokens(nn.Module):
    """Patches of an image as tokens behind two prefix tokens, the first of which sees the whole image."""

    def forward(self, x):
        patches = nn.functional.unfold(x, 2, stride=2).transpose(1, 2)
        return torch.cat([patches.mean(1, keepdim=True), patches[:, :1], patches], 1)


def token_network():
    """LWTA at "2" (12 units in blocks of 4), ReLU at "4" (6 units).

    Units 0 to 3 win with negative values only, unit 7 never wins, 8 to 11 win with either sign.
    """
    model = nn.Sequential(Tokens(), nn.Linear(12, 12), LWTA(4, -1), nn.Linear(12, 6), nn.ReLU())
    fill(model)
    with torch.no_grad():
        model[1].bias[:4] -= 9
        model[1].bias[7] -= 90
        model[1].bias[8:] -= 1
    return model.eval()


def conv_network(bias=0.0):
    """LWTA at "1" (8 units in blocks of 2) and ReLU at "3" (5 units), NCHW."""
    model = nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), LWTA(2, 1), nn.Conv2d(8, 5, 2), nn.ReLU())
    fill(model)
    with torch.no_grad():
        model[0].bias += bias
    return model.eval()


def fill(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)


def batches(images, size, indices=None):
    indices = torch.arange(len(images)) if indices is None else indices
    return list(zip(indices.split(size), images.split(size), strict=True))


@torch.no_grad()
def naive_collect(model, layer, dim, images, kind, prefix, k):
    """Exemplars by running one image at a time and sorting complete lists."""
    competitors = model[layer].competition.competitors if isinstance(model[layer], LWTA) else None
    seen = {}  # unit -> [(value, image)] of its wins
    for i in range(len(images)):
        h = model[:layer](images[i : i + 1])
        positions = naive_positions(h, dim, kind, prefix)[0].tolist()
        units = len(positions[0])
        outputs = [[0.0] * units for _ in positions]
        fired = [[False] * units for _ in positions]
        for t, row in enumerate(positions):
            if competitors is None:
                outputs[t] = [max(value, 0.0) for value in row]
                fired[t] = [value > 0 for value in row]
                continue
            for start in range(0, units, competitors):
                winner = max(range(start, start + competitors), key=lambda u, row=row: row[u])
                outputs[t][winner], fired[t][winner] = row[winner], True
        for unit in range(units):
            column = [row[unit] for row in outputs]
            fire = [row[unit] for row in fired]
            value = pooled(column, fire) if kind == "max" else sum(column) / len(column)
            wins = seen.setdefault(unit, [])
            if any(fire):
                wins.append((value, i))
    found = {}
    for unit, wins in seen.items():
        negative = competitors is not None and sum(value < 0 for value, _ in wins) > len(wins) / 2
        found[unit] = (sorted(wins, reverse=not negative)[:k], len(wins), negative)
    return found


CASES = [
    pytest.param(token_network, 2, 2, "cls", 2, id="LWTA tokens cls"),
    pytest.param(token_network, 2, 2, "mean", 2, id="LWTA tokens mean"),
    pytest.param(token_network, 4, 2, "cls", 2, id="ReLU tokens cls"),
    pytest.param(token_network, 4, 2, "mean", 2, id="ReLU tokens mean"),
    pytest.param(conv_network, 1, 1, "mean", 0, id="LWTA NCHW mean"),
    pytest.param(conv_network, 1, 1, "max", 0, id="LWTA NCHW max"),
    pytest.param(lambda: conv_network(-9.0), 1, 1, "max", 0, id="LWTA NCHW max, negative wins"),
    pytest.param(conv_network, 3, 1, "mean", 0, id="ReLU NCHW mean"),
    pytest.param(conv_network, 3, 1, "max", 0, id="ReLU NCHW max"),
]


@pytest.mark.parametrize("k", [3, 60])
@pytest.mark.parametrize(("build", "layer", "dim", "kind", "prefix"), CASES)
def test_collect_agrees_with_one_image_at_a_time(build, layer, dim, kind, prefix, k):
    model, images = build(), randn(40, 3, 6, 8)
    found = collect(model, batches(images, 7), {str(layer): dim}, Readout(kind, prefix), k)[str(layer)]
    expected = naive_collect(model, layer, dim, images, kind, prefix, k)
    assert found.count == 40
    assert found.images.shape == found.values.shape == (k, len(expected))
    assert found.images.dtype == found.wins.dtype == torch.int64
    for unit, (exemplars, wins, negative) in expected.items():
        assert found.wins[unit] == wins
        assert bool(found.negative[unit]) == negative
        assert found.images[:, unit].tolist() == [i for _, i in exemplars] + [-1] * (k - len(exemplars))
        values = torch.tensor([value for value, _ in exemplars])
        torch.testing.assert_close(found.values[: len(exemplars), unit], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 13, 40])
def test_exemplars_do_not_depend_on_the_batch_size(size):
    model, images, sites = token_network(), randn(40, 3, 6, 8), {"2": -1, "4": -1}
    one = collect(model, batches(images, 7), sites, Readout("mean", 2), 5)
    other = collect(model, batches(images, size), sites, Readout("mean", 2), 5)
    for name in sites:
        assert torch.equal(one[name].images, other[name].images)
        assert torch.equal(one[name].wins, other[name].wins)
        assert torch.equal(one[name].negative, other[name].negative)
        torch.testing.assert_close(one[name].values, other[name].values, rtol=1e-5, atol=1e-6)
        assert one[name].count == other[name].count == 40


def test_a_unit_with_fewer_wins_than_k_lists_each_win_once_and_then_nothing():
    found = collect(token_network(), batches(randn(40, 3, 6, 8), 7), {"2": -1}, Readout("cls", 2), 30)["2"]
    assert ((found.wins > 0) & (found.wins < 30)).sum() >= 6
    for unit, wins in enumerate(found.wins.tolist()):
        listed = found.images[:, unit].tolist()
        assert listed[wins:] == [-1] * (30 - min(wins, 30))
        assert len(set(listed[:wins])) == min(wins, 30)
        assert -1 not in listed[:wins]


def test_negative_winners_are_kept_and_ranked_by_how_negative_they_are():
    found = collect(token_network(), batches(randn(40, 3, 6, 8), 7), {"2": -1}, Readout("cls", 2), 40)["2"]
    assert found.negative[:4].all()
    assert found.wins[:4].sum() == 40  # one winner of the block on each image, none lost to a zero
    for unit in range(4):
        values = found.values[: found.wins[unit], unit].tolist()
        assert all(value < 0 for value in values)
        assert values == sorted(values)


def test_a_unit_of_mostly_positive_wins_keeps_its_negative_ones_at_the_end():
    model = nn.Sequential(nn.Flatten(), LWTA(2, -1))
    model.register_parameter("unused", nn.Parameter(torch.zeros(())))
    rows = torch.tensor([[1.0, -9.0], [-0.5, -9.0], [3.0, -9.0], [-9.0, -1.0]])
    found = collect(model, batches(rows, 3), {"1": -1}, Readout("mean"), 5)["1"]
    assert found.images.T.tolist() == [[2, 0, 1, -1, -1], [3, -1, -1, -1, -1]]
    assert found.values[:3, 0].tolist() == [3.0, 1.0, -0.5]
    assert found.wins.tolist() == [3, 1]
    assert found.negative.tolist() == [False, True]


def test_a_winner_whose_value_is_exactly_zero_won():
    model = nn.Sequential(nn.Flatten(), LWTA(2, -1))
    model.register_parameter("unused", nn.Parameter(torch.zeros(())))
    found = collect(model, [(torch.tensor([4]), torch.tensor([[0.0, -1.0]]))], {"1": -1}, Readout("mean"))
    assert found["1"].wins.tolist() == [1, 0]
    assert found["1"].images[0].tolist() == [4, -1]
    assert not found["1"].negative.any()


def test_a_unit_that_never_wins_has_no_exemplars():
    found = collect(token_network(), batches(randn(40, 3, 6, 8), 7), {"2": -1}, Readout("mean", 2), 10)["2"]
    assert found.wins[7] == 0
    assert (found.images[:, 7] == -1).all()
    assert (found.values[:, 7] == 0).all()
    assert not found.negative[7]


def test_exemplars_carry_the_indices_that_came_with_the_images():
    model, images = token_network(), randn(40, 3, 6, 8)
    own = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:40]
    plain = collect(model, batches(images, 7), {"2": -1}, Readout("cls", 2), 5)["2"].images
    named = collect(model, batches(images, 7, own), {"2": -1}, Readout("cls", 2), 5)["2"].images
    assert torch.equal(named, torch.where(plain >= 0, own[plain.clamp_min(0)], -1))


def test_several_layers_are_collected_in_one_pass():
    model, images, sites = token_network(), randn(40, 3, 6, 8), {"4": -1, "2": -1}
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    together = collect(model, batches(images, 10), sites, Readout("mean", 2), 5)
    assert len(passes) == 4
    assert set(together) == set(sites)
    for name in sites:
        alone = collect(model, batches(images, 10), {name: -1}, Readout("mean", 2), 5)[name]
        assert torch.equal(together[name].images, alone.images)
        assert torch.equal(together[name].values, alone.values)
        assert torch.equal(together[name].wins, alone.wins)


def test_a_network_in_training_is_read_in_evaluation_without_noise_or_gradient():
    images = randn(40, 3, 6, 8)
    evaluated = collect(token_network(), batches(images, 7), {"2": -1}, Readout("cls", 2), 5)["2"]
    training = collect(token_network().train(), batches(images, 7), {"2": -1}, Readout("cls", 2), 5)["2"]
    assert torch.equal(evaluated.images, training.images)
    assert torch.equal(evaluated.values, training.values)
    assert not training.values.requires_grad


def test_collect_leaves_no_hook_behind():
    model = token_network()
    collect(model, batches(randn(4, 3, 6, 8), 2), {"2": -1, "4": -1}, Readout("mean", 2), 5)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_batch_in_which_no_image_decoded_counts_for_nothing():
    # What models.run.Probe.loader yields where every image of a batch is broken.
    nothing = (torch.empty(0, dtype=torch.long), torch.empty(0))
    model, images = token_network(), randn(8, 3, 6, 8)
    whole = batches(images, 4)
    expected = collect(model, whole, {"2": -1}, Readout("cls", 2), 5)["2"]
    found = collect(model, [whole[0], nothing, whole[1]], {"2": -1}, Readout("cls", 2), 5)["2"]
    assert found.count == 8
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.wins, expected.wins)
