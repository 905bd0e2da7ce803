"""The competition against the naive reference, and the properties it owes its formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lwta import Winners, lwta
from lwta.functional import (
    kl_to_uniform,
    mean_usage,
    nearest_divisors,
    to_blocks,
    usage_entropy,
    winner_probabilities,
)
from lwta.noise import draw_seed, gumbel_like
from tests import reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

# (rtol, atol) of a gradient. In half precision the arithmetic is float32 and only the result is
# rounded: half a unit in the last place, 2^-9 and 2^-12 of the value; doubled here.
GRADIENT_TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (2**-8, 1e-5),
    torch.float16: (2**-11, 1e-5),
}

# name -> (sizes with None for the units, axis of the units, memory layout)
LAYOUTS = {
    "units only": ((None,), 0, "contiguous"),
    "N D": ((5, None), -1, "contiguous"),
    "D N": ((None, 5), 0, "contiguous"),
    "tokens": ((2, 3, None), 2, "contiguous"),
    "middle": ((3, None, 2), -2, "contiguous"),
    "NCHW": ((2, None, 3, 2), 1, "contiguous"),
    "NCHW, dim from the end": ((2, None, 2, 3), -3, "contiguous"),
    "NCHW, channels last in memory": ((2, None, 3, 2), 1, "permuted"),
    "NHWC": ((2, 3, 2, None), -1, "contiguous"),
    "NHWC, permuted in memory": ((2, 3, 2, None), 3, "permuted"),
    "every second unit of a wider tensor": ((4, None), -1, "strided"),
    "first of four": ((None, 2, 2, 2), -4, "strided"),
    "expanded batch": ((3, 2, None), -1, "expanded"),
}


def lay_out(x, memory):
    """The same numbers in another memory layout (an expanded batch repeats its first entry)."""
    if memory == "permuted":
        y = x.transpose(1, -1).contiguous().transpose(1, -1)
    elif memory == "strided":
        y = x.repeat_interleave(2, -1)[..., ::2]
    elif memory == "expanded":
        return x[:1].expand(x.shape)
    else:
        return x
    assert not y.is_contiguous()
    assert torch.equal(x, y)
    return y


def double(x):
    return x.detach().double().numpy()


def noise_of(x, competitors, dim, seed):
    """The noise ``lwta`` adds to x, in x's shape; drawn in blocks, in the arithmetic's dtype."""
    like = to_blocks(x, competitors, dim % x.ndim)
    half = x.dtype in (torch.float16, torch.bfloat16)
    like = torch.empty(like.shape, dtype=torch.float32 if half else x.dtype)
    return double(gumbel_like(like, torch.tensor(seed), dim % x.ndim + 1).reshape(x.shape))


def check_against_reference(x, competitors, dim, beta, noise, tau, seed):
    """Values and winners exactly, both kinds of gradient within the tolerance of x's dtype."""
    g = noise_of(x, competitors, dim, seed)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.dtype)
    arguments = (double(x), g, double(upstream), competitors, dim, beta, noise)
    values, winner = reference.forward(double(x), g, competitors, dim, beta, noise)
    rtol, atol = GRADIENT_TOLERANCE[x.dtype]
    for relaxed in (False, True):
        leaf = x.detach().requires_grad_()
        before = leaf.detach().clone()
        out = lwta(
            leaf, competitors, dim=dim, beta=beta, noise=noise, tau=tau,
            seed=torch.tensor(seed), relaxed=relaxed,
        )  # fmt: skip
        out.values.backward(upstream)
        assert torch.equal(leaf.detach(), before)
        assert out.values.dtype == leaf.grad.dtype == x.dtype
        assert out.winner.dtype == torch.int64
        assert not out.winner.requires_grad
        assert torch.equal(out.values.double(), torch.from_numpy(values))
        assert torch.equal(out.winner, torch.from_numpy(winner))
        if relaxed:
            expected = torch.from_numpy(reference.relaxed_gradient(*arguments, tau))
            torch.testing.assert_close(leaf.grad.double(), expected, rtol=rtol, atol=atol)
        else:
            assert torch.equal(leaf.grad.double(), torch.from_numpy(reference.hard_gradient(*arguments)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("competitors", [2, 3, 4, 8, 24])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_winners_and_gradients_agree_with_the_reference(layout, competitors, dtype):
    sizes, dim, memory = LAYOUTS[layout]
    shape = tuple(2 * competitors if size is None else size for size in sizes)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(competitors)).to(dtype)
    x = lay_out(x, memory)
    check_against_reference(x, competitors, dim, beta=1.0, noise=0.0, tau=1.0, seed=1)
    check_against_reference(x, competitors, dim, beta=1.7, noise=0.6, tau=0.7, seed=2)


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_random_shapes_and_scales_agree_with_the_reference(data):
    rank = data.draw(st.integers(2, 4), "rank")
    axis = data.draw(st.integers(0, rank - 1), "axis")
    competitors = data.draw(st.sampled_from([2, 3, 4, 8, 24]), "competitors")
    shape = [data.draw(st.integers(1, 3), "size") for _ in range(rank)]
    shape[axis] = competitors * data.draw(st.integers(1, 3), "blocks")
    seed = data.draw(st.integers(0, 2**63 - 1), "seed")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    order = data.draw(st.permutations(range(rank)), "memory order")
    inverse = [order.index(i) for i in range(rank)]
    x = x.permute(order).contiguous().permute(inverse)
    check_against_reference(
        x,
        competitors,
        dim=data.draw(st.sampled_from([axis, axis - rank]), "dim"),
        beta=data.draw(st.floats(0.1, 4.0), "beta"),
        noise=data.draw(st.sampled_from([0.0, 0.3, 1.0, 2.0]), "noise"),
        tau=data.draw(st.floats(0.3, 3.0), "tau"),
        seed=seed,
    )


def test_a_sharp_competition_of_large_logits_agrees_with_the_reference():
    x = 300 * torch.randn(20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    check_against_reference(x, 8, -1, beta=2.0, noise=1.0, tau=0.1, seed=5)


def test_the_relaxed_gradient_is_autograd_of_the_straight_through_sample():
    seed, beta, noise, tau = torch.tensor(3), 1.3, 0.8, 0.6
    x = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    upstream = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()

    lwta(ours, 4, dim=1, beta=beta, noise=noise, tau=tau, seed=seed, relaxed=True).values.backward(upstream)

    h = theirs.view(7, 3, 4)
    z = beta * h + noise * gumbel_like(h.detach(), seed, 2)
    soft = (z / tau).softmax(-1)
    hard = torch.nn.functional.one_hot(z.argmax(-1), 4).to(x.dtype)
    ((hard + soft - soft.detach()) * h).view(7, 12).backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_evaluation_is_piecewise_linear_by_gradcheck(noise):
    generator = torch.Generator().manual_seed(0)
    # Units 0.1 apart: no finite difference of 1e-6 can change a winner.
    x = (torch.randperm(3 * 12, generator=generator).double() / 10).view(3, 12).requires_grad_()
    seed = torch.tensor(11)
    assert torch.autograd.gradcheck(
        lambda x: lwta(x, 4, dim=-1, beta=2.0, noise=noise, seed=seed).values, (x,)
    )


def test_a_second_derivative_of_the_relaxed_gradient_is_refused():
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    y = lwta(x, 2, dim=-1, relaxed=True).values
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("relaxed", [False, True])
def test_an_upstream_gradient_without_memory_of_its_own(relaxed):
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    lwta(x, 3, dim=1, relaxed=relaxed).values.sum().backward()  # sum's gradient is expanded
    g, ones = torch.zeros(x.shape), torch.ones(x.shape)
    arguments = (double(x), double(g), double(ones), 3, 1, 1.0, 0.0)
    rule = reference.hard_gradient(*arguments)
    if relaxed:
        rule = reference.relaxed_gradient(*arguments, 1.0)
    torch.testing.assert_close(x.grad.double(), torch.from_numpy(rule), rtol=1e-5, atol=1e-5)


# --- who wins ------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_each_block_has_one_winner_that_passes_its_own_value(noise):
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    values, winner = lwta(x, 8, dim=-1, noise=noise, seed=torch.tensor(1))
    fired = (values != 0).view(50, 3, 8)
    assert (fired.sum(-1) == 1).all()
    assert torch.equal(fired.int().argmax(-1), winner)
    assert torch.equal(values[values != 0], x[values != 0])


@pytest.mark.parametrize("relaxed", [False, True])
def test_of_units_that_are_all_negative_one_fires_all_the_same(relaxed):
    x = -torch.rand(20, 12, generator=torch.Generator().manual_seed(0)) - 0.1
    values, winner = lwta(x, 4, dim=-1, relaxed=relaxed)
    assert (values.view(20, 3, 4) < 0).sum(-1).eq(1).all()
    assert torch.equal(values.view(20, 3, 4).sum(-1), x.view(20, 3, 4).amax(-1))
    assert torch.equal(winner, x.view(20, 3, 4).argmax(-1))


@pytest.mark.parametrize("relaxed", [False, True])
def test_a_winner_of_value_zero_is_still_reported(relaxed):
    x = torch.tensor([[-1.0, -2.0, 0.0, -3.0]])
    values, winner = lwta(x, 4, dim=-1, relaxed=relaxed)
    assert torch.equal(values, torch.zeros(1, 4))
    assert winner.tolist() == [[2]]


@pytest.mark.parametrize("relaxed", [False, True])
def test_equal_units_still_have_one_winner(relaxed):
    values, winner = lwta(torch.ones(3, 8), 4, dim=-1, relaxed=relaxed)
    assert (values.view(3, 2, 4).sum(-1) == 1).all()
    assert torch.equal(values.view(3, 2, 4).argmax(-1), winner)


def test_a_negative_beta_lets_the_smallest_win():
    assert lwta(torch.tensor([[3.0, -1.0, 2.0]]), 3, dim=-1, beta=-1.0).winner.tolist() == [[1]]


def test_permuting_blocks_permutes_the_outcome():
    generator = torch.Generator().manual_seed(0)
    x, order = torch.randn(6, 5, 4, generator=generator), torch.randperm(5, generator=generator)
    values, winner = lwta(x.flatten(1), 4, dim=-1)
    permuted = lwta(x[:, order].flatten(1), 4, dim=-1)
    assert torch.equal(permuted.values.view(6, 5, 4), values.view(6, 5, 4)[:, order])
    assert torch.equal(permuted.winner, winner[:, order])


def test_permuting_competitors_permutes_the_winner():
    generator = torch.Generator().manual_seed(0)
    x, order = torch.randn(6, 5, 4, generator=generator), torch.randperm(4, generator=generator)
    values, winner = lwta(x.flatten(1), 4, dim=-1)
    permuted = lwta(x[..., order].flatten(1), 4, dim=-1)
    assert torch.equal(permuted.values.view(6, 5, 4), values.view(6, 5, 4)[..., order])
    assert torch.equal(order[permuted.winner], winner)


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_tau_never_changes_values_or_winners(noise, relaxed):
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    seed = torch.tensor(4)
    first, *others = (
        lwta(x, 8, dim=-1, noise=noise, tau=tau, seed=seed, relaxed=relaxed) for tau in (1.0, 0.05, 20.0)
    )
    for other in others:
        assert torch.equal(first.values, other.values)
        assert torch.equal(first.winner, other.winner)


def test_tau_shapes_the_relaxed_gradient():
    gradients = []
    for tau in (1.0, 0.5):
        x = torch.tensor([[1.0, 2.0, 0.5]], requires_grad=True)
        lwta(x, 3, dim=-1, tau=tau, relaxed=True).values.sum().backward()
        gradients.append(x.grad)
    assert not torch.allclose(*gradients)


def test_evaluation_passes_the_gradient_of_the_hard_mask_alone():
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    values, _ = lwta(x, 4, dim=-1, beta=3.0, noise=1.0, tau=0.5, seed=torch.tensor(2))
    values.backward(upstream)
    assert torch.equal(x.grad, torch.where(values != 0, upstream, 0))


# --- noise ---------------------------------------------------------------------------------------


def chi_square_p_value(counts, expected):
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2))


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize(("beta", "noise"), [(1.0, 1.0), (2.0, 1.0), (1.0, 0.5), (0.5, 2.0), (3.0, 1.5)])
def test_winners_are_drawn_from_softmax_of_beta_h_over_s(beta, noise, relaxed):
    draws, h = 20_000, [0.3, -0.4, 1.0, 0.0]
    x = torch.tensor([h]).expand(draws, 4)
    seed = torch.tensor(17)
    _, winner = lwta(x, 4, dim=-1, beta=beta, noise=noise, seed=seed, relaxed=relaxed)
    counts = torch.bincount(winner.flatten(), minlength=4).double()
    q = torch.tensor(reference.softmax([beta * h_u / noise for h_u in h])).double()
    assert chi_square_p_value(counts, draws * q) > 1e-3


def test_blocks_draw_their_winners_independently():
    draws, h = 20_000, [0.3, -0.4, 1.0]
    _, winner = lwta(torch.tensor([h + h]).expand(draws, 6), 3, dim=-1, noise=1.0, seed=torch.tensor(5))
    joint = torch.bincount(winner[:, 0] * 3 + winner[:, 1], minlength=9).double()
    q = torch.tensor(reference.softmax(h)).double()
    assert chi_square_p_value(joint, draws * torch.outer(q, q).flatten()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_noise_has_the_moments_and_median_of_gumbel(dtype):
    n = 200_000
    g = gumbel_like(torch.empty(n // 20, 20, dtype=dtype), torch.tensor(3), 1).double()
    variance = math.pi**2 / 6
    # Four standard errors each; Gumbel's kurtosis is 5.4.
    assert abs(float(g.mean()) - 0.5772156649) < 4 * math.sqrt(variance / n)
    assert abs(float(g.var()) - variance) < 4 * variance * math.sqrt(4.4 / n)
    assert abs(float((g < -math.log(math.log(2))).double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(n)


def test_the_noise_is_finite_at_the_ends_of_the_uniform_draw(monkeypatch):
    ends = torch.tensor([0.0, 1 - torch.finfo(torch.float64).eps / 2], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: ends.clone())
    g = gumbel_like(torch.empty(2, dtype=torch.float64), torch.tensor(0), 0)
    assert g.isfinite().all()
    assert g[0] < -4
    assert g[1] > 16


def test_the_same_seed_repeats_exactly_and_another_differs():
    x = torch.randn(30, 24, generator=torch.Generator().manual_seed(0))

    def sample(seed):
        return lwta(x, 8, dim=-1, noise=1.0, seed=torch.tensor(seed))

    assert torch.equal(sample(1).values, sample(1).values)
    assert torch.equal(sample(1).winner, sample(1).winner)
    assert not torch.equal(sample(1).winner, sample(2).winner)


def test_noise_leaves_the_global_generator_and_the_seed_alone():
    state, seed = torch.get_rng_state(), torch.tensor(5)
    lwta(torch.zeros(3, 4), 2, dim=-1, noise=1.0, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    assert seed == 5


def test_fresh_seeds_follow_the_global_generator():
    torch.manual_seed(0)
    first, second = draw_seed(), draw_seed()
    torch.manual_seed(0)
    assert first == draw_seed()
    assert first != second
    assert (first.dtype, first.shape, first.device.type) == (torch.int64, (), "cpu")


def test_the_noise_operator_keeps_the_rules_of_torch_library():
    torch.library.opcheck(
        torch.ops.lwta.gumbel.default,
        (torch.zeros(2, 3, 4), torch.tensor(1), 1),
        test_utils=("test_schema", "test_faketensor"),
    )


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("relaxed", [False, True])
def test_autocast_keeps_the_competition_in_float32(relaxed):
    generator = torch.Generator().manual_seed(0)
    x = 1 + 0.01 * torch.randn(100, 24, generator=generator)  # bfloat16 steps near 1: .004 and .008
    seed, beta, noise = torch.tensor(2), 1.1, 0.005
    outside = lwta(x, 8, dim=-1, beta=beta, noise=noise, seed=seed, relaxed=relaxed)
    with torch.autocast("cpu", torch.bfloat16):
        inside = lwta(x, 8, dim=-1, beta=beta, noise=noise, seed=seed, relaxed=relaxed)
    g = noise_of(x, 8, -1, 2)
    _, winner = reference.forward(double(x), g, 8, -1, beta, noise)
    rounded = (beta * x.bfloat16() + noise * torch.from_numpy(g).bfloat16()).view(100, 3, 8).argmax(-1)
    assert not torch.equal(rounded, inside.winner)
    assert torch.equal(inside.winner, torch.from_numpy(winner))
    assert torch.equal(inside.winner, outside.winner)
    assert torch.equal(inside.values, outside.values)
    assert inside.values.dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_units_compete_in_float32(dtype, autocast):
    generator = torch.Generator().manual_seed(0)
    x = (1 + torch.rand(1000, 24, generator=generator)).to(dtype)
    seed = torch.tensor(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values, winner = lwta(x, 8, dim=-1, beta=1.3, noise=0.01, seed=seed)
    g = noise_of(x, 8, -1, 3)
    _, expected = reference.forward(double(x), g, 8, -1, 1.3, 0.01)
    rounded = (1.3 * x + 0.01 * torch.from_numpy(g).to(dtype)).view(1000, 3, 8).argmax(-1)
    assert not torch.equal(rounded, winner)
    assert torch.equal(winner, torch.from_numpy(expected))
    assert values.dtype == dtype


# --- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize(
    ("shape", "dim", "winners"),
    [((0, 8), -1, (0, 2)), ((2, 0, 8), 2, (2, 0, 2)), ((0, 8, 3, 3), 1, (0, 2, 3, 3))],
)
def test_an_empty_batch_gives_an_empty_outcome(shape, dim, winners, relaxed):
    x = torch.zeros(shape, requires_grad=True)
    out = lwta(x, 4, dim=dim, noise=1.0, seed=torch.tensor(0), relaxed=relaxed)
    out.values.sum().backward()
    assert out.values.shape == x.grad.shape == shape
    assert out.winner.shape == winners


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relaxed", [False, True])
def test_a_loser_of_minus_infinity_passes_zero(relaxed, dtype):
    x = torch.tensor([[-1.0, -torch.inf, 2.0, 1.0]], dtype=dtype)
    values, winner = lwta(x, 2, dim=-1, relaxed=relaxed)
    assert values.tolist() == [[-1.0, 0.0, 2.0, 0.0]]
    assert winner.tolist() == [[0, 0]]


@pytest.mark.parametrize("relaxed", [False, True])
def test_a_loser_of_plus_infinity_passes_zero(relaxed):
    x = torch.tensor([[-1.0, torch.inf]])
    values, winner = lwta(x, 2, dim=-1, beta=-1.0, relaxed=relaxed)
    assert values.tolist() == [[-1.0, 0.0]]
    assert winner.tolist() == [[0]]


def test_an_infinite_loser_gets_no_gradient_in_evaluation():
    x = torch.tensor([[-1.0, -torch.inf, 2.0, 1.0]], requires_grad=True)
    lwta(x, 2, dim=-1).values.sum().backward()
    assert x.grad.tolist() == [[1.0, 0.0, 1.0, 0.0]]


def test_nan_stays_in_its_block():
    x = torch.tensor([[1.0, torch.nan, 2.0, 1.0]])
    values, _ = lwta(x, 2, dim=-1)
    assert values[0, 0] == 0
    assert values[0, 1].isnan()
    assert values[0, 2:].tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("competitors", "options", "error", "words"),
    [
        (5, {}, ValueError, "5 competitors .* 12 units.* 4, 6"),
        (24, {}, ValueError, "24 competitors .* 12 units.* 6, 12"),
        (1, {}, ValueError, "at least 2 competitors, got 1"),
        (0, {}, ValueError, "at least 2 competitors, got 0"),
        (-3, {}, ValueError, "at least 2 competitors, got -3"),
        (4, {"noise": 1.0}, ValueError, "seed"),
        (4, {"tau": 0.0}, ValueError, "tau=0"),
        (4, {"tau": -1.0}, ValueError, "tau=-1"),
        (4, {"noise": -0.5, "seed": torch.tensor(0)}, ValueError, "noise=-0.5"),
    ],
)
@pytest.mark.parametrize("relaxed", [False, True])
def test_a_wrong_argument_is_refused_by_name(competitors, options, error, words, relaxed):
    with pytest.raises(error, match=words):
        lwta(torch.zeros(2, 12), competitors, dim=-1, relaxed=relaxed, **options)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
def test_units_that_are_not_floating_point_are_refused(dtype):
    with pytest.raises(TypeError, match=r"(?i)float"):
        lwta(torch.zeros(2, 12, dtype=dtype), 4, dim=-1)


@pytest.mark.parametrize("dim", [3, 5, -4])
@pytest.mark.parametrize("function", [lwta, winner_probabilities])
def test_an_axis_that_the_tensor_lacks_is_refused(function, dim):
    with pytest.raises(IndexError, match=f"no axis {dim} in a tensor of 3 axes"):
        function(torch.zeros(4, 4, 4), 2, dim=dim)


@pytest.mark.parametrize("units", [12, 97, 384, 1000])
@pytest.mark.parametrize("competitors", [1, 2, 5, 23, 2000])
def test_the_divisors_offered_are_the_nearest_in_ratio(units, competitors):
    def distance(u):
        return abs(math.log(u / competitors))

    offered = nearest_divisors(units, competitors)
    others = [u for u in range(2, units + 1) if units % u == 0 and u not in offered]
    assert offered == sorted(set(offered))
    assert 1 <= len(offered) <= 4
    assert all(units % u == 0 and u >= 2 for u in offered)
    assert all(distance(u) >= max(map(distance, offered)) - 1e-9 for u in others)
    assert not others or len(offered) == 4


def test_the_outcome_is_named():
    out = lwta(torch.zeros(2, 4), 2, dim=-1)
    assert isinstance(out, Winners)
    assert Winners._fields == ("values", "winner")


# --- losses --------------------------------------------------------------------------------------

LOSS_CASES = pytest.mark.parametrize(
    ("shape", "dim", "competitors"),
    [((3, 8), -1, 4), ((6, 3), 0, 2), ((2, 3, 6), 2, 3), ((2, 8, 3), 1, 8), ((2, 4, 2, 3), -3, 2)],
)


def losses(x, competitors, dim, beta, noise):
    q = winner_probabilities(x, competitors, dim=dim, beta=beta, noise=noise)
    kl = kl_to_uniform(q, dim=dim % x.ndim + 1)
    usage = mean_usage(x, competitors, dim=dim, beta=beta, noise=noise)
    return {"kl": kl, "entropy": usage_entropy(usage)}


NAIVE = {"kl": reference.kl_to_uniform, "entropy": reference.usage_entropy}


@LOSS_CASES
@pytest.mark.parametrize(("beta", "noise"), [(1.0, 1.0), (2.0, 0.7)])
def test_winner_probabilities_agree_with_the_reference(shape, dim, competitors, beta, noise):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = winner_probabilities(x, competitors, dim=dim, beta=beta, noise=noise)
    axis = dim % x.ndim
    assert q.shape == to_blocks(x, competitors, axis).shape
    by_block = q.movedim(axis + 1, -1)
    naive = reference.winner_probabilities(double(x), competitors, dim, beta, noise)
    assert len(naive) == q.numel() // competitors
    for block, row in naive:
        assert by_block[block].tolist() == pytest.approx(row, rel=1e-12)


@LOSS_CASES
@pytest.mark.parametrize("loss", NAIVE)
@pytest.mark.parametrize(("beta", "noise"), [(1.0, 1.0), (2.0, 0.7)])
def test_losses_and_their_gradients_agree_with_the_reference(loss, shape, dim, competitors, beta, noise):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    value = losses(x, competitors, dim, beta, noise)[loss]
    value.backward()

    def naive(x):
        return NAIVE[loss](x, competitors, dim, beta, noise)

    assert value.item() == pytest.approx(naive(double(x)), rel=1e-12)
    differences = torch.from_numpy(reference.finite_difference(naive, double(x)))
    torch.testing.assert_close(x.grad, differences, rtol=1e-6, atol=1e-8)


@LOSS_CASES
def test_compiled_usage_agrees_with_double_precision(shape, dim, competitors):
    exact = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, exact = exact.float().requires_grad_(), exact.requires_grad_()
    shares = [mean_usage(x, competitors, dim=dim, beta=1.5, noise=0.4) for x in (found, exact)]
    assert shares[0].shape == (shape[dim] // competitors, competitors)
    torch.testing.assert_close(shares[0].double(), shares[1], rtol=1e-5, atol=1e-7)
    upstream = torch.randn(shares[1].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for share in shares:
        share.backward(upstream.to(share.dtype))
    torch.testing.assert_close(found.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, -1.0])
def test_usage_without_noise_is_refused(dtype, noise):
    with pytest.raises(ValueError, match="need noise above 0"):
        mean_usage(torch.zeros(2, 4, dtype=dtype), 2, dim=-1, noise=noise)


@pytest.mark.parametrize("competitors", [2, 3, 8, 24])
def test_equal_logits_have_no_kl_and_no_gradient(competitors):
    x = torch.full((3, 2 * competitors), 1.7, dtype=torch.float64, requires_grad=True)
    kl = losses(x, competitors, -1, 1.0, 1.0)["kl"]
    kl.backward()
    assert abs(kl.item()) < 1e-15
    assert x.grad.abs().max() < 1e-15


@pytest.mark.parametrize("loss", NAIVE)
@pytest.mark.parametrize("noise", [1.0, 0.01])
def test_a_probability_that_underflows_leaves_the_loss_gradient_finite(loss, noise):
    # exp(-150) is 0 in float32; in the limit such a unit gets no gradient.
    h = [[1.0, 1.0 - 150 * noise, 1.0, 1.0 - 0.3 * noise]]
    x = torch.tensor(h, requires_grad=True)
    losses(x, 2, -1, 1.0, noise)[loss].backward()
    exact = torch.tensor(h, dtype=torch.float64, requires_grad=True)
    losses(exact, 2, -1, 1.0, noise)[loss].backward()
    assert exact.grad.isfinite().all()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-3, atol=1e-4)


def test_a_certain_winner_has_the_kl_of_one_bit_per_doubling():
    q = torch.eye(8).view(4, 2, 8)
    assert kl_to_uniform(q, dim=-1).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize(("shift", "expected"), [(1, 1.0), (0, 0.0)])
def test_usage_entropy_is_one_where_certain_winners_take_turns_and_zero_where_one_takes_all(shift, expected):
    samples = torch.arange(6) * shift % 3
    sure = 100 * torch.nn.functional.one_hot(samples, 3).float().repeat(1, 2)
    assert usage_entropy(mean_usage(sure, 3, dim=1)).item() == pytest.approx(expected, abs=1e-6)


def test_without_noise_the_winner_is_certain():
    x = torch.randn(5, 12, 2, generator=torch.Generator().manual_seed(0))
    q = winner_probabilities(x, 4, dim=1, noise=0.0)
    assert torch.equal(q.argmax(2), lwta(x, 4, dim=1).winner)
    assert torch.equal(q, (q == q.amax(2, keepdim=True)).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_probabilities_of_half_precision_units_are_float32(noise, dtype):
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    q = winner_probabilities(x, 4, dim=-1, noise=noise)
    assert q.dtype == torch.float32
    torch.testing.assert_close(q, winner_probabilities(x.float(), 4, dim=-1, noise=noise))
