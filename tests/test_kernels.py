"""The fused kernels against loops: compiled on a GPU where there is one, else in Triton's interpreter."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lwta import LWTA, functional, fused, lwta
from lwta.functional import usage_entropy
from lwta.layers import competitions
from lwta.measured import measured
from lwta.noise import draw_seed, gumbel_like
from lwta.operators import as_tensor
from lwta.winners import fired_units
from models.loss import training_loss
from tests import reference

triton = pytest.importorskip("triton", reason="the kernels need Triton")
tl = triton.language
kernels = pytest.importorskip("lwta.kernels")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
interpreted = pytest.mark.skipif(ON_GPU, reason="needs the interpreter: compares with the CPU, by its seeds")

# Of a gradient, (rtol, atol). Noise is off by 1e-5 at most (by its logarithms, on a GPU), and with it the
# logarithms of p; in half precision the result is rounded, half a unit in the last place, doubled here. The
# interpreter cuts bfloat16 off, a whole unit.
TOLERANCE = {
    torch.float32: (1e-4, 2e-5),
    torch.bfloat16: (2**-8 if ON_GPU else 2**-7, 2e-5),
    torch.float16: (2**-11, 2e-5),
}
COMPETITORS = [2, 3, 5, 8, 24, 48, 64]
LAYOUTS = {"last": ((3, None), -1), "channel": ((2, None, 5), 1), "first": ((None, 3), 0)}


@pytest.fixture(autouse=True)
def kernels_serve(monkeypatch):
    """The kernels take the tensors of :data:`DEVICE`."""
    monkeypatch.setattr(fused, "DEVICES", [DEVICE])


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def double(x):
    return x.detach().cpu().double().numpy()


def noise_of(x, competitors, dim, seed):
    blocks = torch.empty(functional.to_blocks(x, competitors, dim).shape)
    return double(gumbel_like(blocks, torch.tensor(seed), dim + 1).reshape(x.shape))


def check(x, competitors, dim, beta=1.7, noise=0.6, tau=0.7, seed=2):
    """Values and winners exactly, both kinds of gradient within the tolerance of x's dtype."""
    g = noise_of(x, competitors, dim % x.ndim, seed)
    upstream = randn(*x.shape, seed=seed, dtype=x.dtype)
    arguments = (double(x), g, double(upstream), competitors, dim, beta, noise)
    values, winner = reference.forward(double(x), g, competitors, dim, beta, noise)
    for relaxed in (False, True):
        leaf = x.detach().to(DEVICE).requires_grad_()
        assert fused.serves(leaf, competitors)
        options = {"beta": beta, "noise": noise, "tau": tau, "seed": torch.tensor(seed), "relaxed": relaxed}
        found = lwta(leaf, competitors, dim=dim, **options)
        found.values.backward(upstream.to(DEVICE))
        assert found.values.dtype == leaf.grad.dtype == x.dtype
        assert found.winner.dtype == torch.int64
        assert not found.winner.requires_grad
        assert np.array_equal(double(found.values), values)
        assert np.array_equal(found.winner.cpu().numpy(), winner)
        if relaxed:
            rtol, atol = TOLERANCE[x.dtype]
            expected = reference.relaxed_gradient(*arguments, tau)
            np.testing.assert_allclose(double(leaf.grad), expected, rtol=rtol, atol=atol)
        else:
            assert np.array_equal(double(leaf.grad), reference.hard_gradient(*arguments))


# --- against loops ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("competitors", COMPETITORS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_winners_and_gradients_agree_with_the_reference(layout, competitors, dtype):
    sizes, dim = LAYOUTS[layout]
    shape = [2 * competitors if size is None else size for size in sizes]
    x = randn(*shape, seed=competitors, dtype=dtype)
    check(x, competitors, dim, noise=0.0)
    check(x, competitors, dim)


@pytest.mark.parametrize(
    ("shape", "dim", "competitors"),
    [((700, 6), 1, 3), ((31, 48), 1, 24), ((2, 4, 300), 1, 2), ((5, 24, 7, 9), 1, 8), ((3, 64, 70), 1, 64)],
)
def test_positions_beyond_a_tile_agree_with_the_reference(shape, dim, competitors):
    check(randn(*shape), competitors, dim)


def test_a_single_position_agrees_with_the_reference():
    check(randn(5), 5, 0)
    check(randn(2, 8, 1), 8, 1)


def test_more_positions_than_can_be_counted_are_refused():
    with pytest.raises(ValueError, match="2147483648 positions"):
        lwta(torch.zeros(1, 2, 1, device=DEVICE).expand(1, 2, 2**31), 2, dim=1)


@pytest.mark.parametrize("memory", ["permuted", "strided", "expanded"])
@pytest.mark.parametrize("dim", [1, -1])
def test_memory_of_another_layout_agrees_with_the_reference(memory, dim):
    x = randn(2, 6, 6)
    if memory == "permuted":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    x = randn(2, 6, 12)[..., ::2] if memory == "strided" else x
    check(x[:1].expand(2, 6, 6) if memory == "expanded" else x, 3, dim)


def test_memory_formats_are_kept():
    x = randn(2, 8, 3, 5).contiguous(memory_format=torch.channels_last).to(DEVICE).requires_grad_()
    values = lwta(x, 4, dim=1, noise=1.0, seed=torch.tensor(3), relaxed=True).values
    values.backward(randn(2, 8, 3, 5).to(DEVICE))
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_an_upstream_gradient_without_memory_of_its_own():
    x = randn(2, 6, 3).to(DEVICE).requires_grad_()
    lwta(x, 3, dim=1, relaxed=True).values.sum().backward()
    arguments = (double(x), np.zeros(x.shape), np.ones(x.shape), 3, 1, 1.0, 0.0, 1.0)
    np.testing.assert_allclose(double(x.grad), reference.relaxed_gradient(*arguments), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (3, 0)])
@pytest.mark.parametrize("relaxed", [False, True])
def test_no_units_give_an_empty_outcome(shape, relaxed):
    x = torch.zeros(shape, device=DEVICE, requires_grad=True)
    options = {"noise": 1.0, "seed": torch.tensor(0), "relaxed": relaxed}
    found = measured(x, 4, dim=-1, **options, usage=1.0, kl=1.0)
    (found.values.sum() + found.usage.sum() + found.kl).backward()
    assert found.values.shape == x.grad.shape == shape
    assert found.winner.shape == (*shape[:-1], shape[-1] // 4)
    assert found.usage.eq(0).all()
    assert found.kl == 0


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_first_of_equals_wins_and_nan_is_not_hidden(noise):
    inf, nan = math.inf, math.nan
    rows = [
        [1.0, 3.0, 3.0],
        [2.0, nan, 9.0],
        [-inf] * 3,
        [inf, nan, nan],
        [-1.0, -inf, -2.0],
        [0.0, -0.0, -1],
    ]
    x, seed = torch.tensor(rows, device=DEVICE), torch.tensor(3)
    found = lwta(x, 3, dim=-1, noise=0.0)
    assert found.winner[:, 0].tolist() == [1, 1, 0, 1, 0, 0]
    assert found.values[[0, 4]].tolist() == [[0.0, 3.0, 0.0], [-1.0, 0.0, 0.0]]
    assert found.values[1].isnan().tolist() == [False, True, False]
    drawn = lwta(x[:4], 3, dim=-1, noise=1e-3, seed=seed)
    assert drawn.winner[1:, 0].tolist() == [1, 0, 1]
    assert lwta(x[:1], 3, dim=-1, beta=-1.0).winner.tolist() == [[0]]


# --- noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(900, 48), (2, 48, 400)])
@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_a_seed_gives_the_winners_of_the_cpu_and_gives_them_again(shape, scale, monkeypatch):
    x, options = randn(*shape), {"dim": 1, "noise": scale, "seed": torch.tensor(11)}
    first, second = (lwta(x.to(DEVICE), 24, **options).winner.cpu() for _ in range(2))
    assert torch.equal(first, second)
    other = lwta(x.to(DEVICE), 24, dim=1, noise=scale, seed=torch.tensor(12)).winner.cpu()
    assert not torch.equal(first, other)
    monkeypatch.setattr(fused, "DEVICES", [])
    differing = (first != lwta(x, 24, **options).winner).float().mean()
    assert differing <= (1e-3 if ON_GPU else 0)  # a GPU's logarithm is another


def test_a_seed_on_the_device_is_as_good():
    x = randn(50, 24).to(DEVICE)
    seeds = torch.tensor(2**62 + 5), torch.tensor(2**62 + 5, device=DEVICE)
    first, second = (lwta(x, 8, dim=1, noise=1.0, seed=seed) for seed in seeds)
    assert torch.equal(first.winner, second.winner)
    torch.manual_seed(0)
    drawn = draw_seed(DEVICE)
    torch.manual_seed(0)
    assert drawn == draw_seed(DEVICE)
    assert (drawn.dtype, drawn.shape, drawn.device.type) == (torch.int64, (), DEVICE)


@triton.jit
def _write_noise(out, first, seed, N: tl.constexpr, K: tl.constexpr, C: tl.constexpr, NVIDIA: tl.constexpr):
    n = first + tl.arange(0, N).to(tl.int64)
    noise = -0.6931471805599453 * kernels._log2_noise(n, seed, N, K, C, NVIDIA)
    tl.store(out + tl.arange(0, N)[:, None, None] * K * C + kernels._competitors(K, C), noise)


@pytest.mark.parametrize(("chunks", "chunk"), [(1, 2), (1, 4), (1, 16), (4, 8), (8, 4)])
@pytest.mark.parametrize("first", [0, 2**32 - 8, 2**40])
@pytest.mark.parametrize("seed", [7, 2**63 - 1])
def test_the_noise_is_that_of_the_loops_beyond_32_bits_too(chunks, chunk, first, seed):
    out = torch.full((16, chunks * chunk), math.nan, device=DEVICE)
    _write_noise[(1,)](out, first, torch.tensor(seed, device=DEVICE), N=16, K=chunks, C=chunk, NVIDIA=ON_GPU)
    for t, u in itertools.product(range(16), range(chunks * chunk)):
        n = first + t
        words = reference.philox((n % 2**32, n >> 32, u // 4, 0), (seed % 2**32, seed >> 32))
        assert float(out[t, u]) == pytest.approx(reference.gumbel(words[u % 4]), rel=1e-5, abs=1e-5)


@triton.jit
def _write_places(out, start, S, N: tl.constexpr, LAST: tl.constexpr):
    u = kernels._competitors(1, 4)
    base, offset = kernels._places(tl.load(start), S, u, 3, N, 4, LAST)
    tl.store(out + tl.arange(0, N)[:, None, None] * 4 + u, base + offset)


@pytest.mark.parametrize("inner", [1, 7, 4096, 2**27])
@pytest.mark.parametrize("first", [0, 2**33 - 16])
def test_places_in_memory_are_right_beyond_32_bits(inner, first):
    out = torch.full((32, 4), -1, device=DEVICE)
    start = torch.tensor(first, device=DEVICE)  # as in the kernels, 64 bits wide whatever its value
    _write_places[(1,)](out, start, inner, N=32, LAST=inner == 1)
    n = first + np.arange(32)[:, None]
    expected = n // inner * 3 * inner + np.arange(4) * inner + n % inner
    assert np.array_equal(out.cpu().numpy(), expected)


# --- what losses ask for ---------------------------------------------------------------------------

STATISTICS = pytest.mark.parametrize(
    ("shape", "dim", "competitors"),
    [((3, 8), -1, 4), ((6, 3), 0, 2), ((2, 3, 6), 2, 3), ((2, 8, 3), 1, 8), ((2, 4, 2, 3), -3, 2)],
)


@STATISTICS
@pytest.mark.parametrize("loss", ["kl", "usage", "both"])
def test_losses_and_their_gradients_agree_with_the_reference(loss, shape, dim, competitors):
    x = randn(*shape).to(DEVICE).requires_grad_()
    asked = {"usage": 1.4 if loss != "kl" else None, "kl": 2.2 if loss != "usage" else None}
    found = measured(x, competitors, dim=dim, noise=0.5, seed=torch.tensor(1), relaxed=True, **asked)

    def naive(x):
        total = 0.0
        if loss != "usage":
            total += reference.kl_to_uniform(x, competitors, dim, 2.2, 1.0)
        return total + (reference.usage_entropy(x, competitors, dim, 1.4, 1.0) if loss != "kl" else 0.0)

    value = 0.0
    for name, statistic in (("kl", found.kl), ("usage", found.usage)):
        assert (statistic is None) == (loss not in (name, "both"))
        if statistic is not None:
            value = value + (usage_entropy(statistic) if name == "usage" else statistic)
    value.backward()
    assert value.item() == pytest.approx(naive(double(x)), rel=1e-5)
    differences = reference.finite_difference(naive, double(x))
    np.testing.assert_allclose(double(x.grad), differences, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("programs", [1, 3, 1024])
@pytest.mark.parametrize("shape", [(700, 15), (90, 6, 5), (3, 24, 70)])
def test_sums_over_the_batch_are_the_same_however_they_are_shared_out(shape, programs, dtype, monkeypatch):
    monkeypatch.setattr(fused, "_PROGRAMS", programs)
    x, upstream = randn(*shape, dtype=dtype), randn(shape[1] // 3, 3, seed=1)
    leaf, exact = (x.clone().to(DEVICE, kind).requires_grad_() for kind in (dtype, torch.float64))
    results = []
    for units in (leaf, exact):
        found = measured(units, 3, dim=1, usage=1.3, kl=0.8, relaxed=True)
        goal = (found.usage * upstream.to(found.usage)).sum() + 0.3 * found.kl + found.values.sum()
        goal.backward()
        results.append((found.usage.cpu().double(), found.kl.cpu().double()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    rtol, atol = TOLERANCE[dtype]
    np.testing.assert_allclose(double(leaf.grad), double(exact.grad), rtol=rtol, atol=atol)


def test_a_probability_that_underflows_leaves_the_gradient_finite():
    x = torch.tensor([[1.0, -300.0, 1.0, 0.7]], device=DEVICE, requires_grad=True)
    found = measured(x, 2, dim=-1, usage=1.0, kl=1.0)
    (found.kl + usage_entropy(found.usage)).backward()
    assert found.kl.isfinite()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(33, 15), (3, 15, 7)])
def test_every_element_is_written(shape, monkeypatch):
    x, seed = randn(*shape).to(DEVICE), torch.tensor(1)

    def run():
        leaf = x.clone().requires_grad_()
        found = measured(leaf, 5, dim=1, noise=0.5, seed=seed, relaxed=True, usage=1.0, kl=1.0)
        (found.values.sum() + found.usage.square().sum() + found.kl).backward()
        return [*found, leaf.grad]

    expected = run()

    def poisoned(make):
        def made(*args, **kwargs):
            out = make(*args, **kwargs)
            return out.fill_(math.nan if out.is_floating_point() else -1)

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for ours, theirs in zip(run(), expected, strict=True):
        assert torch.equal(ours, theirs)


# --- what the kernels are not for ------------------------------------------------------------------


def test_other_units_take_the_path_of_torch():
    assert fused.serves(torch.zeros(1, device=DEVICE), 64)
    assert not fused.serves(torch.zeros(1, device=DEVICE), 65)
    assert not fused.serves(torch.zeros(1, device=DEVICE, dtype=torch.float64), 8)
    assert not fused.serves(torch.zeros(1, device="meta"), 8)
    x = randn(3, 130).to(DEVICE)
    assert torch.equal(lwta(x, 65, dim=1, relaxed=True).winner, x.view(3, 2, 65).argmax(-1))
    found = measured(x.double(), 65, dim=1, usage=1.0, kl=1.0)
    assert found.usage.shape == (2, 65)
    assert found.kl.dtype == torch.float64


def test_without_triton_the_path_of_torch_runs(monkeypatch):
    monkeypatch.setattr(fused, "_TRITON", False)
    monkeypatch.setattr(fused, "compete", None)
    assert lwta(torch.tensor([[1.0, 2.0]], device=DEVICE), 2, dim=1, relaxed=True).winner.tolist() == [[1]]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"competitors": 5}, ValueError, "5 competitors .* 12 units.* 4, 6"),
        ({"competitors": 1}, ValueError, "at least 2 competitors"),
        ({"noise": 1.0}, ValueError, "seed"),
        ({"tau": 0.0}, ValueError, "tau=0"),
        ({"dim": 2}, IndexError, "no axis 2"),
    ],
)
@pytest.mark.parametrize("function", [lwta, measured])
def test_a_wrong_argument_is_refused_by_name(function, options, error, words):
    with pytest.raises(error, match=words):
        function(torch.zeros(2, 12, device=DEVICE), **{"competitors": 4, "dim": 1} | options)


def test_units_that_are_not_floating_point_are_refused():
    with pytest.raises(TypeError, match="(?i)float"):
        lwta(torch.zeros(2, 12, dtype=torch.int64, device=DEVICE), 4, dim=1)


# --- as an operator of torch -----------------------------------------------------------------------


@pytest.mark.parametrize("loss", [{}, {"usage": 1.0, "kl": 1.0}])
def test_what_is_kept_for_the_gradient_is_the_input_and_the_seed(loss):
    x, seed, kept = randn(6, 48).to(DEVICE).requires_grad_(), draw_seed(DEVICE), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        measured(x, 24, dim=1, noise=1.0, seed=seed, relaxed=True, **loss)
    assert len(kept) == 2
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), seed.data_ptr()}


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_operators_keep_the_rules_of_torch_library(asked, memory):
    h = randn(3, 8, 5, 2).contiguous(memory_format=memory).to(DEVICE).unflatten(1, (2, 4))
    scales = [as_tensor(scale) for scale in (1.5, 0.5, 0.3)]
    above = [as_tensor(1.0), as_tensor(0.7)] if asked else [None, None]
    arguments = (*scales, torch.tensor(1), *above, True, 2)
    torch.library.opcheck(torch.ops.lwta.fused.default, (h.requires_grad_(), *arguments))
    values, _, *found = torch.ops.lwta.fused(h, *arguments)
    upstream = [torch.ones_like(g) if asked else None for g in found]
    given = (torch.ones_like(values), *upstream, h.detach(), *arguments)
    torch.library.opcheck(torch.ops.lwta.fused_gradient.default, given)


def test_a_second_derivative_is_refused():
    x = randn(2, 4).to(DEVICE).requires_grad_()
    (gradient,) = torch.autograd.grad(
        lwta(x, 2, dim=1, relaxed=True).values.square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="autograd"):
        gradient.sum().backward()


def test_scales_that_are_numbers_give_what_tensors_give(monkeypatch):
    def run():
        x = randn(9, 24).to(DEVICE).requires_grad_()
        scales = {"beta": torch.tensor(1.3), "usage": torch.tensor(0.9), "kl": torch.tensor(1.1)}
        scales = {name: scale.to(DEVICE) for name, scale in scales.items()}
        found = measured(x, 8, dim=1, noise=0.3, tau=0.6, seed=draw_seed(), relaxed=True, **scales)
        (found.values.square().sum() + found.usage.square().sum() + found.kl).backward()
        return [*found, x.grad]

    torch.manual_seed(0)
    expected = run()
    number = fused._scale

    def as_number(scale, h):
        return number(scale, h) if scale is None or scale.dtype == torch.int64 else float(scale)

    monkeypatch.setattr(fused, "_scale", as_number)
    torch.manual_seed(0)
    for ours, theirs in zip(run(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


# --- in networks -----------------------------------------------------------------------------------


def network(**options):
    torch.manual_seed(0)
    layers = [
        nn.Linear(6, 12),
        LWTA(4, -1, **options),
        nn.Linear(12, 8),
        LWTA(2, -1, **options),
        nn.Linear(8, 3),
    ]
    return nn.Sequential(*layers).to(DEVICE)


def step(model, x, forward=None):
    """Output, and the gradients of its squared sum: of the input, then of the parameters."""
    x = x.clone().requires_grad_()
    y = (forward or model)(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


def same(found, expected, tolerance=1e-5):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_activation_checkpointing_draws_the_same_winners_again():
    x, results = randn(30, 6).to(DEVICE), []
    for forward in (None, lambda model: lambda x: checkpoint(model, x, use_reentrant=False)):
        model = network(noise=1.0, normalize=False)
        torch.manual_seed(3)
        results.append(step(model, x, forward and forward(model)))
    same(*results)


@interpreted
@pytest.mark.parametrize("training", [False, True])
def test_a_network_learns_as_it_does_on_the_cpu(training, monkeypatch):
    x, results = randn(30, 6), []
    for devices in (["cpu"], []):
        monkeypatch.setattr(fused, "DEVICES", devices)
        model = network(noise=0.5).train(training)
        torch.manual_seed(3)
        results.append([*step(model, x), *step(model, x), *model.buffers()])
    same(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_units_of_half_precision(dtype):
    model, seen = network(noise=0.5), []
    model[1].register_forward_hook(lambda module, inputs, out: seen.append((inputs[0].dtype, out.dtype)))
    with torch.autocast(DEVICE, dtype):
        y = model(randn(30, 6).to(DEVICE))
    y.float().square().sum().backward()
    assert seen == [(dtype, dtype)]
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "weights", [{"kl": 0.3}, {"usage_entropy": -1.0}, {"kl": 0.3, "usage_entropy": -1.0}]
)
def test_training_takes_its_losses_from_the_same_pass(weights, monkeypatch):
    x, target, results, calls = randn(30, 6).to(DEVICE), torch.arange(30, device=DEVICE) % 3, [], []
    for separate in (False, True):
        model = network(noise=0.5)
        for competition in competitions(model).values():
            for name in ("probabilities", "mean_usage"):
                method = getattr(competition, name)
                monkeypatch.setattr(competition, name, lambda x, f=method: calls.append(1) or f(x))
        if separate:
            monkeypatch.setattr("models.loss._STATISTIC", dict.fromkeys(weights, "nothing"))
        torch.manual_seed(3)
        loss, terms = training_loss(model, x, target, {"1": -1, "3": -1}, 0.1, weights)
        loss.backward()
        assert bool(calls) == separate
        assert terms.keys() == weights.keys()
        results.append([loss, *terms.values(), *(p.grad for p in model.parameters())])
    same(*results)


@pytest.fixture
def compiler(monkeypatch):
    """A clean compiler; the run-time shape checks are off, since it cannot trace through them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._inductor.config.patch(compile_threads=1):
        yield lambda model, backend: torch.compile(model, fullgraph=True, backend=backend)
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_network_agrees_with_eager(backend, compiler):
    x, models = randn(30, 6).to(DEVICE), [network(noise=0.0, tau=0.8) for _ in range(2)]
    compiled = compiler(models[0], backend)
    for tau in (0.8, 0.7, 0.5, 0.4):
        for model in models:
            for competition in competitions(model).values():
                competition.tau = tau
        same(step(models[0], x, compiled), step(models[1], x), 1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


def test_a_compiled_network_draws_anew_at_each_step(compiler):
    model, x = network(noise=1.0), randn(30, 6).to(DEVICE)
    compiled = compiler(model, "aot_eager")
    torch.manual_seed(0)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    assert all(part.isfinite().all() for part in step(model, x, compiled))


def test_winners_only_finds_those_of_the_kernels():
    layer = LWTA(8, -1, noise=2.0, normalize=False).eval()
    layer.competition.seed = torch.tensor(3)
    x = randn(50, 24, dtype=torch.bfloat16).to(DEVICE)
    values, winner = layer.competition(x)
    fired = fired_units(layer.competition, x)
    assert torch.equal(fired.unit % 8, winner)
    assert torch.equal(fired.values, values.gather(1, fired.unit))


# --- compiled for GPUs -----------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cuda:90:32", "hip:gfx942:64"])
def test_the_kernels_compile_for_a_gpu_that_is_not_there(target):
    script = Path(__file__).with_name("compile_kernels.py")
    found = subprocess.run([sys.executable, script, target], capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr[-2000:]


@needs_gpu
def test_a_captured_graph_draws_anew_at_each_replay():
    layer, x = LWTA(8, -1, noise=1.0, normalize=False).cuda(), randn(50, 24).cuda()
    layer(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    graph.replay()
    first = y.clone()
    graph.replay()
    assert not torch.equal(first, y)


@needs_gpu
def test_nothing_waits_for_the_device():
    layer, x = LWTA(8, -1).cuda(), randn(50, 24).cuda().requires_grad_()
    for mode in (True, False):
        layer.train(mode)
        layer(x).sum().backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            layer(x).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_memory_that_is_kept_is_the_input():
    x = torch.randn(64, 197, 1536, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    before = torch.cuda.memory_allocated()
    y = lwta(x, 24, dim=-1, noise=0.5, seed=draw_seed("cuda"), relaxed=True).values
    assert torch.cuda.memory_allocated() - before <= 1.01 * y.numel() * y.element_size()
