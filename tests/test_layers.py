"""The activation modules: training and evaluation, seeded samples, watching, compilation."""

import copy

import pytest
import torch
from torch import nn

from lwta import LWTA, TopK, lwta
from lwta.functional import mean_usage, winner_probabilities
from lwta.layers import competitions, sampled, watch
from lwta.noise import draw_seed
from tests import reference


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(**options):
    """Two competing layers and a dense one, the same weights at each call."""
    model = nn.Sequential(
        nn.Linear(6, 12), LWTA(4, -1, **options), nn.Linear(12, 8), LWTA(2, -1, **options),
        nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


# --- LWTA ----------------------------------------------------------------------------------------


def test_training_draws_anew_at_each_call_and_follows_the_global_seed():
    layer, x = LWTA(4, -1), randn(20, 12)
    torch.manual_seed(0)
    first, second = layer(x), layer(x)
    torch.manual_seed(0)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


def test_training_is_the_relaxed_competition_on_a_fresh_seed():
    layer = LWTA(4, 1, beta=1.5, noise=0.7, tau=0.6, normalize=False)
    x, upstream = randn(3, 8, 2), randn(3, 8, 2, seed=1)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(7)
    values = layer(ours)
    torch.manual_seed(7)
    expected = lwta(theirs, 4, dim=1, beta=1.5, noise=0.7, tau=0.6, seed=draw_seed(), relaxed=True).values
    values.backward(upstream)
    expected.backward(upstream)
    assert torch.equal(values, expected)
    assert torch.equal(ours.grad, theirs.grad)


def test_training_without_noise_is_deterministic_and_draws_no_seed():
    layer, x = LWTA(4, -1, noise=0.0), randn(5, 12).requires_grad_()
    state = torch.get_rng_state()
    values = layer(x)
    values.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(values, lwta(x, 4, dim=-1).values)
    assert (x.grad != 0).sum() > (values != 0).sum()  # relaxed: losers learn too


def test_evaluation_is_the_argmax_with_the_hard_mask_gradient():
    layer, x = LWTA(4, -1, noise=1.0).eval(), randn(5, 12).requires_grad_()
    state = torch.get_rng_state()
    values = layer(x)
    values.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(values, lwta(x, 4, dim=-1, noise=0.0).values)
    assert torch.equal(x.grad, (values != 0).float())


def test_noise_and_tau_can_be_scheduled():
    layer, x = LWTA(4, -1, noise=1.0), randn(50, 12)
    layer.competition.noise = 0.0
    assert torch.equal(layer(x), lwta(x, 4, dim=-1).values)
    gradients = []
    for tau in (1.0, 0.3):
        layer.competition.tau = tau
        leaf = x.clone().requires_grad_()
        layer(leaf).sum().backward()
        gradients.append(leaf.grad)
    assert not torch.allclose(*gradients)


def test_a_layer_adds_its_spread_to_the_state_dict_and_nothing_without():
    plain = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 3))
    assert list(LWTA(4, -1).state_dict()) == ["competition.spread", "competition.batches"]
    ours = nn.Sequential(nn.Linear(6, 12), LWTA(4, -1, normalize=False), nn.Linear(12, 3))
    assert ours.state_dict().keys() == plain.state_dict().keys()
    ours.load_state_dict(plain.state_dict(), strict=True)
    with sampled(ours, 0):
        assert ours.state_dict().keys() == plain.state_dict().keys()
    assert not list(LWTA(4, -1).parameters())


def test_a_copy_of_a_model_competes_on_its_own():
    model = network().eval()
    twin = copy.deepcopy(model)
    x = randn(30, 6)
    with sampled(twin, 0):
        assert not torch.equal(twin(x), model(x))
    assert torch.equal(twin(x), model(x))


def test_probabilities_are_those_of_the_draw_and_of_noise_one_without_noise():
    x = randn(4, 12, 3)
    noisy, sure = LWTA(4, 1, beta=2.0, noise=0.5), LWTA(4, 1, beta=2.0, noise=0.0)
    for layer, noise in ((noisy, 0.5), (sure, 1.0)):
        q = layer.competition.probabilities(x)
        assert torch.equal(q, winner_probabilities(x, 4, dim=1, beta=2.0, noise=noise))
        assert q.shape == (4, 3, 4, 3)


def test_a_printed_layer_states_its_settings():
    shown = repr(LWTA(4, 1, 2.0, 0.5, 1.67, normalize=True))
    assert "competitors=4, dim=1, beta=2, noise=0.5, tau=1.67, normalize=True" in shown


def test_competitions_are_found_by_the_name_of_their_layer():
    model = nn.ModuleDict({"block": nn.Sequential(LWTA(2, -1), nn.ReLU()), "act": LWTA(4, 1)})
    found = competitions(model)
    assert list(found) == ["block.0", "act"]
    assert found["act"] is model["act"].competition


# --- sampled -------------------------------------------------------------------------------------


def test_a_seeded_sample_repeats_exactly_and_ends_with_the_context():
    model, x = network().eval(), randn(30, 6)
    argmax = model(x)
    with sampled(model, 3):
        first, second = model(x), model(x)
    with sampled(model, 3):
        third = model(x)
    with sampled(model, 4):
        other = model(x)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert not torch.equal(first, argmax)
    assert not torch.equal(first, other)
    assert torch.equal(model(x), argmax)


def test_a_seeded_sample_ends_with_an_error_too():
    model, x = network().eval(), randn(30, 6)
    argmax = model(x)
    with pytest.raises(KeyError, match="stop"), sampled(model, 3):
        raise KeyError("stop")
    assert torch.equal(model(x), argmax)


def test_a_sample_within_a_sample_gives_way_to_the_outer_one():
    model, x = network().eval(), randn(30, 6)
    with sampled(model, 3):
        outer = model(x)
        with sampled(model, 4):
            assert not torch.equal(model(x), outer)
        assert torch.equal(model(x), outer)


def test_layers_of_one_sample_get_seeds_of_their_own():
    model = nn.ModuleList([LWTA(4, -1), LWTA(4, -1), LWTA(4, -1)]).eval()
    x = torch.zeros(30, 12)
    with sampled(model, 0):
        winners = [layer.competition(x).winner for layer in model]
    assert not torch.equal(winners[0], winners[1])
    assert not torch.equal(winners[1], winners[2])
    assert not torch.equal(winners[0], winners[2])


def test_a_sample_passes_the_hard_mask_gradient_and_leaves_the_global_generator_alone():
    layer, x = LWTA(4, -1).eval(), torch.ones(30, 12, requires_grad=True)
    state = torch.get_rng_state()
    with sampled(layer, 0):
        values = layer(x)
    values.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x.grad, values.detach())


def test_a_sample_uses_the_layer_noise():
    layer, x = LWTA(4, -1, noise=0.0).eval(), randn(30, 12)
    with sampled(layer, 0):
        assert torch.equal(layer(x), lwta(x, 4, dim=-1).values)


# --- watch ---------------------------------------------------------------------------------------


def test_watch_reports_input_values_and_winners_of_a_competing_layer():
    model, x = network().eval(), randn(7, 6)
    with watch(model, {"1": -1, "3": -1}) as calls:
        model(x)
    for name, competitors in (("1", 4), ("3", 2)):
        (call,) = calls[name]
        values, winner = lwta(call.inputs, competitors, dim=-1)
        assert torch.equal(call.values, values)
        assert torch.equal(call.winner, winner)
        assert call.fired.dtype == torch.bool
        assert call.fired.shape == call.inputs.shape
        assert torch.equal(call.fired, values != 0)
        assert call.dim == 1
    assert torch.equal(calls["1"][0].inputs, model[0](x))


def test_watch_reports_the_sampled_winner_and_in_training_the_drawn_one():
    model, x = network(noise=1.0), randn(7, 6)
    model.train()
    with watch(model, {"1": -1}) as calls:
        model(x)
        model.eval()
        with sampled(model, 0):
            model(x)
    for call in calls["1"]:
        assert torch.equal(call.fired, call.values != 0)
        assert torch.equal(call.fired.view(7, 3, 4).int().argmax(-1), call.winner)
    assert not torch.equal(calls["1"][0].winner, calls["1"][1].winner)


def test_a_winner_of_value_zero_or_below_fired():
    layer = LWTA(2, -1).eval()
    with watch(layer, {"": -1}) as calls:
        layer(torch.tensor([[-1.0, 0.0, -2.0, -3.0]]))
    assert calls[""][0].fired.tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("dim", [1, -3])
def test_watch_places_the_winners_on_the_channel_axis(dim):
    layer, x = LWTA(3, dim).eval(), -torch.rand(2, 6, 4, 5) - 0.1
    with watch(layer, {"": -1}) as calls:  # an LWTA module knows its own axis
        layer(x)
    (call,) = calls[""]
    assert call.dim == 1
    assert call.winner.shape == (2, 2, 4, 5)
    assert torch.equal(call.fired, call.values != 0)
    assert (call.fired.unflatten(1, (2, 3)).sum(2) == 1).all()


def test_watch_calls_a_dense_unit_active_where_it_is_not_zero():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), randn(2, 3, 5, 5)
    with watch(model, {"1": 1, "0": -3}) as calls:
        out = model(x)
    (relu,), (conv,) = calls["1"], calls["0"]
    assert torch.equal(relu.values, out)
    assert torch.equal(relu.fired, out > 0)
    assert not relu.fired.all()
    assert (relu.dim, conv.dim) == (1, 1)
    assert relu.winner is None
    assert relu.inputs is None


def test_watch_lists_the_calls_of_one_module_in_order():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.gate = LWTA(2, -1), nn.Tanh()

        def forward(self, x):
            return self.act(self.gate(self.act(x) + 1))

    model, x = Twice().eval(), randn(3, 8)
    with watch(model, {"act": -1, "gate": -1}) as calls:
        out = model(x)
        model(2 * x)
    assert [len(calls["act"]), len(calls["gate"])] == [4, 2]
    first, second, third, _ = calls["act"]
    assert torch.equal(first.inputs, x)
    assert torch.equal(third.inputs, 2 * x)
    assert torch.equal(second.inputs, calls["gate"][0].values)
    assert torch.equal(second.values, out)


def test_watch_starts_anew_when_its_lists_are_cleared():
    model, x = network().eval(), randn(3, 6)
    with watch(model, {"1": -1}) as calls:
        model(x)
        calls["1"].clear()
        model(2 * x)
    assert len(calls["1"]) == 1
    assert torch.equal(calls["1"][0].inputs, model[0](2 * x))


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_watch_removes_its_hooks():
    model, x = network().eval(), randn(3, 6)
    with watch(model, {"1": -1, "5": -1}) as calls:
        model(x)
        assert hooks(model) == 2
    assert hooks(model) == 0
    model(x)
    assert [len(found) for found in calls.values()] == [1, 1]
    with pytest.raises(KeyError, match="stop"), watch(model, {"1": -1}):
        raise KeyError("stop")
    assert hooks(model) == 0


def test_watch_refuses_a_name_that_the_model_lacks_and_leaves_no_hook():
    model = network()
    with pytest.raises(AttributeError, match="nothere"), watch(model, {"1": -1, "nothere": -1}):
        pass
    assert hooks(model) == 0


# --- TopK ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize(("shape", "dim"), [((5, 6), -1), ((2, 3, 6), 2), ((2, 6, 3, 2), 1), ((6, 4), 0)])
def test_top_k_agrees_with_the_reference(shape, dim, k):
    x, upstream = randn(*shape).double().requires_grad_(), randn(*shape, seed=1).double()
    y = TopK(k, dim)(x)
    y.backward(upstream)
    values, gradient = reference.top_k(x.detach().numpy(), upstream.numpy(), k, dim)
    torch.testing.assert_close(y.detach(), torch.from_numpy(values), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(x.grad, torch.from_numpy(gradient), rtol=1e-12, atol=1e-14)


def test_top_k_keeps_the_largest_values_after_gelu_be_they_negative():
    # GELU falls to -.17 at -.75 and rises to 0 again: of these -4 has the largest value after it.
    y = TopK(1, -1)(torch.tensor([[-0.5, -4.0, -1.0]]))
    assert (y != 0).tolist() == [[False, True, False]]


# --- torch.compile -------------------------------------------------------------------------------


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def step(model, x):
    """Output, and the gradients of its squared sum: of the input, then of the parameters."""
    x = x.clone().requires_grad_()
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("training", [False, True])
def test_inductor_agrees_with_eager_in_values_and_gradients(compiler, training):
    model = nn.Sequential(nn.Linear(6, 12), LWTA(4, -1, noise=0.0, tau=0.8)).train(training)
    x = randn(30, 6)
    with torch._inductor.config.patch(compile_threads=1):
        found = step(compiler(model, backend="inductor"), x)
    for theirs, ours in zip(step(model, x), found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_compiled_sample_agrees_with_eager_and_ends_with_the_context(compiler):
    model, x = network().eval(), randn(30, 6)
    compiled = compiler(model)
    argmax = compiled(x)
    with sampled(model, 3):
        for theirs, ours in zip(step(model, x), step(compiled, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert not torch.equal(compiled(x), argmax)
    assert torch.equal(compiled(x), argmax)


def test_a_compiled_layer_with_units_first_agrees_with_eager(compiler):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), LWTA(4, 1), nn.Conv2d(8, 2, 3)).eval()
    x = randn(2, 3, 6, 6)
    for theirs, ours in zip(step(model, x), step(compiler(model), x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_compiled_training_draws_anew_at_each_step(compiler):
    model, x = network(), randn(30, 6)
    compiled = compiler(model)
    torch.manual_seed(0)
    first, second = compiled(x), compiled(x)
    torch.manual_seed(0)
    again = compiled(x)
    assert not torch.equal(first, second)
    assert torch.equal(again, first)


def test_a_schedule_of_noise_and_tau_recompiles_a_bounded_number_of_times(compiler):
    model, x = network(), randn(30, 6)
    compiled = compiler(model)
    settled = None
    for i in range(12):
        for competition in competitions(model).values():
            competition.noise, competition.tau = 1 - i / 13, 2 - i / 13
        assert all(part.isfinite().all() for part in step(compiled, x))
        if i == 3:
            settled = graphs()
    assert settled <= 3
    assert graphs() == settled


def test_a_compiled_schedule_reaches_the_gradient(compiler):
    model, x = network(noise=0.0), randn(30, 6)
    compiled = compiler(model)
    for tau in (1.0, 0.9, 0.8, 0.3):
        for competition in competitions(model).values():
            competition.tau = tau
        for theirs, ours in zip(step(model, x), step(compiled, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_schedule_can_end_without_noise(compiler):
    model, x = network(), randn(30, 6)
    compiled = compiler(model)
    for noise in (1.0, 0.5, 0.0, 0.0):
        for competition in competitions(model).values():
            competition.noise = noise
        y = compiled(x)
    torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-5)


def test_watch_sees_the_calls_of_a_compiled_model(compiler):
    model, x = network().eval(), randn(30, 6)
    compiled = compiler(model)
    with watch(model, {"1": -1, "5": -1}) as expected:
        model(x)
    with watch(model, {"1": -1, "5": -1}) as calls:
        compiled(x)
        compiled(x)
    compiled(x)
    assert [len(found) for found in calls.values()] == [2, 2]
    assert torch.equal(calls["1"][1].winner, expected["1"][0].winner)
    torch.testing.assert_close(calls["5"][1].values, expected["5"][0].values)


def test_watch_sees_the_calls_of_a_model_that_ran_compiled_before(compiler):
    model, x = network().eval(), randn(30, 6)
    compiled = compiler(model)
    compiled(x)
    with watch(model, {"1": -1, "5": -1}) as calls:
        compiled(x)
    assert [len(found) for found in calls.values()] == [1, 1]


def test_normalised_logits_compete_relative_to_their_spread():
    x = torch.randn(64, 12) * 7
    winners = []
    for scale in (1.0, 100.0):
        layer = LWTA(4, -1, noise=0.5, normalize=True).train()
        torch.manual_seed(3)
        winners.append(layer.competition(scale * x).winner)
    assert torch.equal(*winners)
    torch.manual_seed(3)
    plain = LWTA(4, -1, noise=0.5, normalize=False).train()
    assert not torch.equal(plain.competition(x).winner, winners[0])


def test_normalised_logits_have_the_gradient_of_their_scale():
    x = torch.randn(8, 12, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(8, 12, dtype=torch.float64)
    layer = LWTA(4, -1, beta=2.0, noise=0.0, tau=0.7, normalize=True).train()
    (found,) = torch.autograd.grad(layer(x), x, upstream)
    beta = 2.0 / float(x.square().mean().sqrt())
    values = lwta(x, 4, dim=-1, beta=beta, tau=0.7, relaxed=True).values
    (expected,) = torch.autograd.grad(values, x, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_in_evaluation_logits_are_normalised_by_what_training_saw():
    layer = LWTA(4, -1, noise=0.1, normalize=True).train()
    batches = [torch.randn(16, 12) * scale for scale in (1.0, 3.0)]
    for batch in batches:
        layer(batch)
    spread = sum(float(batch.square().mean().sqrt()) for batch in batches) / 2
    usage = mean_usage(batches[0], 4, dim=-1, beta=1 / spread, noise=layer.competition.tau)
    torch.testing.assert_close(layer.competition.mean_usage(batches[0]), usage)
    competition = layer.eval().competition
    assert competition.logit_scale == pytest.approx(1 / spread, rel=1e-5)
    layer(batches[0] * 50)
    assert competition.logit_scale == pytest.approx(1 / spread, rel=1e-5)
    q = competition.probabilities(batches[0])
    torch.testing.assert_close(
        q, (batches[0].view(16, 3, 4) / spread / 0.1).softmax(-1), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.full((5, 46), 100.0), ValueError),
        (torch.ones(5, 48, dtype=torch.complex64), TypeError),
        (torch.ones(5, 48).to(torch.float8_e4m3fn), TypeError),
        (torch.empty(0, 48), None),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_refused_or_empty_leaves_the_layer_as_it_was(x, error, dtype):
    layer = LWTA(24, dim=-1).to(dtype).train()
    before = copy.deepcopy(layer.state_dict())
    if error is None:
        assert layer(x.to(dtype)).shape == x.shape
    else:
        with pytest.raises(error, match="46 units" if error is ValueError else "competition needs one of"):
            layer(x)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_mean_usage_of_one_position_is_that_of_a_batch_of_one():
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(48, dtype=dtype)
        torch.testing.assert_close(mean_usage(x, 24, dim=0), mean_usage(x[None], 24, dim=1))
