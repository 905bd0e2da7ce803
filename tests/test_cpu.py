"""The compiled competition against loops: its arithmetic, its noise, threads and tiles."""

import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from lwta import compiled, functional, operators, threads
from lwta.compiled import exp, log
from lwta.cpu import competition, noise, rows, usage
from lwta.noise import gumbel_like
from lwta.operators import compiled_for
from tests import reference

LOOP = "from lwta.compiled import compiled\n{imported}\n\n@compiled\ndef loop(x):\n    return {body}\n"
SHAPES = [(5, 4, 1), (3, 5, 7), (1, 24, 400), (700, 3, 1), (2, 70, 65), (3, 2, 5000), (5000, 2, 1)]


def test_a_loop_is_compiled_anew_where_one_that_it_calls_has_changed(tmp_path):
    package = tmp_path / "lwta"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(compiled.__file__, package)
    (package / "outer.py").write_text(
        LOOP.format(imported="from lwta.inner import loop as inner", body="inner(x)")
    )

    def run(body):
        (package / "inner.py").write_text(LOOP.format(imported="", body=body))
        command = [sys.executable, "-c", "from lwta.outer import loop; print(loop(1))"]
        return int(subprocess.run(command, check=True, capture_output=True, cwd=tmp_path).stdout)

    assert run("x + 1") == 2
    kept = {path.parent for path in package.rglob("*.nbc")}
    assert run("x + 100") == 101
    assert run("x + 1") == 2
    assert len({path.parent for path in package.rglob("*.nbc")}) == 2 * len(kept) > 0


def test_the_compiled_logarithm_is_one():
    x = np.concatenate([np.logspace(-37, 38, 4001), np.linspace(0.5, 2.5, 2001)]).astype(np.float32)
    found = np.array([log(number) for number in x])
    np.testing.assert_allclose(found, np.log(x.astype(np.float64)), rtol=2e-7, atol=1e-7)


def test_the_compiled_exponential_is_one():
    x = np.concatenate([np.linspace(-87, 88, 4001), np.linspace(-1, 1, 2001)]).astype(np.float32)
    found = np.array([exp(number) for number in x])
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=4e-7)
    assert 0 < exp(np.float32(-1e30)) < 2e-38
    assert 0 < exp(np.float32(-np.inf)) < 2e-38


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_loops_of_philox_give_the_published_words(counter, key, words):
    assert reference.philox(counter, key) == words


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_the_noise_is_that_of_the_loops(shape, seed):
    found = noise.gumbel(shape, seed)
    outer, competitors, inner = shape
    key = seed % 2**32, seed >> 32
    places = list(itertools.product(range(outer), range(competitors), range(inner)))
    for p, u, s in places[:: max(1, len(places) // 300)]:
        words = reference.philox((p * inner + s, 0, u // 4, 0), key)
        assert found[p, u, s] == pytest.approx(reference.gumbel(words[u % 4]), rel=3e-6, abs=3e-6)


def test_positions_beyond_32_bits_have_noise_of_their_own():
    words, first = np.empty((4, 16), np.uint32), 2**32 - 8
    noise._philox(first, 3, np.uint32(5), np.uint32(6), words, 16)
    for t in range(16):
        n = first + t
        assert tuple(words[:, t]) == reference.philox((n % 2**32, n >> 32, 3, 0), (5, 6))


def test_the_noise_is_finite_at_the_ends_of_the_uniform_draw():
    z = np.zeros(2, np.float32)
    noise._add_gumbel_row(z, np.array([0, 2**32 - 1], np.uint32), np.float32(1), 2)
    np.testing.assert_allclose(z, [reference.gumbel(0), reference.gumbel(2**32 - 1)], rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_it_agrees_with_torch_in_double_precision(shape, scale):
    generator = torch.Generator().manual_seed(sum(shape))
    h, upstream = (torch.randn(shape, generator=generator) for _ in range(2))
    beta, tau, seed = 1.3, 0.4, 11
    z = beta * h.double() + scale * gumbel_like(h, torch.tensor(seed), 1).double()
    soft, place = (z / tau).softmax(1), z.argmax(1)
    hard = torch.nn.functional.one_hot(place, shape[1]).movedim(-1, 1)
    leaf = h.double().requires_grad_()
    weighted = upstream.double() * leaf.detach()
    expected = hard * upstream + beta / tau * soft * (weighted - (weighted * soft).sum(1, keepdim=True))

    values, winner, relaxed = competition.compete(h.numpy(), beta, tau, scale, seed)
    assert np.array_equal(winner, place.numpy())
    assert np.array_equal(values, (hard * h).numpy())
    np.testing.assert_allclose(relaxed, soft.numpy(), rtol=2e-5, atol=1e-7)
    found = competition.gradient(upstream.numpy(), h.numpy(), relaxed, winner, beta / tau)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("blocks", "shape"),
    [(1, (700, 3, 1)), (5, (700, 3, 1)), (5, (20_005, 2, 1)), (2, (6, 24, 9)), (2, (2, 3, 5000))],
)
def test_usage_and_its_gradient_agree_with_torch_in_double_precision(blocks, shape):
    h, scale = torch.randn(shape, generator=torch.Generator().manual_seed(2)), 1.7
    leaf = h.double().requires_grad_()
    expected = (scale * leaf).softmax(1).unflatten(0, (-1, blocks)).mean((0, 3))
    upstream = torch.randn(blocks, shape[1], generator=torch.Generator().manual_seed(3))
    expected.backward(upstream.double())
    found, q = usage.usage(h.numpy(), blocks, scale)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5)
    gradient = usage.usage_gradient(upstream.numpy(), q, scale)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-5 / h.numel())


@pytest.mark.parametrize("shape", [(30_000, 24, 1), (30_000, 2, 1), (2, 24, 30_000)])
def test_threads_change_nothing(shape):
    h = np.random.default_rng(0).standard_normal(shape, np.float32)
    table = np.random.default_rng(1).standard_normal((2 * shape[1], 5), np.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            values, winner, relaxed = competition.compete(h, 1.0, 0.3, 0.5, 9)
            found.append([values, winner, relaxed, competition.gradient(h, h, relaxed, winner, 2.0)])
            shares, q = usage.usage(h, 2, 1.5)
            found[-1] += [shares, q, usage.usage_gradient(shares, q, 1.5)]
            found[-1].append(rows.sum_winners(h, 2, 1.0, table, table[0]))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


def test_the_first_of_equals_wins_and_nan_is_not_hidden():
    h = np.array([[1.0, 3.0, 3.0], [2.0, np.nan, 9.0], [-np.inf, -np.inf, -np.inf]], np.float32)[:, :, None]
    values, winner, _ = competition.compete(h, beta=1.0, tau=1.0)
    assert winner[:, 0].tolist() == [1, 1, 0]
    assert np.isnan(values[1, 1, 0])


@pytest.mark.parametrize("scale", [0.0, 0.7])
@pytest.mark.parametrize(
    ("blocks", "shape"),
    [
        (5, (1000, 3, 1)),
        (5, (5000, 2, 1)),
        (5, (10, 3, 700)),
        (1, (3, 4, 1)),
        (8, (16, 24, 9)),
        (400, (800, 48, 1)),
    ],
)
def test_the_rows_of_those_that_fired_are_summed_across_blocks_and_tiles(blocks, shape, scale):
    h = np.random.default_rng(0).standard_normal(shape, np.float32)
    table = np.random.default_rng(1).standard_normal((blocks * shape[1], 7), np.float32)
    bias = np.random.default_rng(2).standard_normal(7, np.float32)
    values, _, _ = competition.compete(h, 1.3, None, scale, 5)
    units = values.reshape(-1, len(table), shape[2]).swapaxes(1, 2).reshape(-1, len(table))
    expected = units.astype(np.float64) @ table + bias
    found = rows.sum_winners(h, blocks, 1.3, table, bias, scale, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


class Followed(TorchDispatchMode):
    """Keeps the names of the operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("beta", [1.3, torch.tensor(1.3)])
def test_functions_called_directly_are_those_of_the_operators_that_others_follow(beta, monkeypatch):
    def found():
        leaf = torch.randn(50, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
        options = {"dim": 1, "beta": beta, "noise": 1.0, "tau": 0.5, "seed": torch.tensor(3)}
        values, winner = functional.lwta(leaf, 24, **options, relaxed=True)
        usage = functional.mean_usage(leaf, 24, dim=1)
        ((values * torch.arange(48)).sum() + (usage * usage).sum()).backward()
        return values, winner, usage, leaf.grad

    with Followed() as followed:
        expected = found()
    assert {name for name in followed.names if name.startswith("lwta")} == {
        f"lwta::{name}" for name in ("compete", "gradient", "usage", "usage_gradient")
    }
    monkeypatch.setattr(operators, "as_tensor", lambda _: pytest.fail("an operator was called"))
    for one, other in zip(found(), expected, strict=True):
        assert torch.equal(one, other)


def double(x):
    """A view of which torch turns the sign when somebody reads it."""
    return torch._neg_view(-x)


@pytest.mark.parametrize("place", ["units", "upstream"])
def test_tensors_that_are_more_than_their_memory_are_computed_by_torch(place):
    x, upstream = (torch.randn(5, 48, generator=torch.Generator().manual_seed(i)) for i in (0, 1))

    def gradient(x, upstream):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(functional.lwta(leaf, 24, dim=1, relaxed=True).values, leaf, upstream)[0]

    lazy = (double(x), upstream) if place == "units" else (x, double(upstream))
    assert any(each.is_neg() for each in lazy)
    assert torch.equal(gradient(*lazy), gradient(x, upstream))
    assert gradient(x, torch._efficientzerotensor(5, 48)).abs().sum() == 0


def test_gradients_in_a_batch_are_those_one_by_one():
    x, several = torch.randn(5, 48, requires_grad=True), torch.randn(3, 5, 48)
    values = functional.lwta(x, 24, dim=1, relaxed=True).values
    found = torch.autograd.grad(values, x, several, is_grads_batched=True, retain_graph=True)[0]
    for one, upstream in zip(found, several, strict=True):
        assert torch.equal(one, torch.autograd.grad(values, x, upstream, retain_graph=True)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_derivatives_in_evaluation_are_those_of_the_winners(dtype):
    def winners(x):
        return functional.lwta(x, 24, dim=1).values

    x = torch.randn(5, 48, dtype=dtype)
    expected = (winners(x) != 0).to(dtype)
    assert torch.equal(torch.func.jvp(winners, (x,), (torch.ones_like(x),))[1], expected)
    with forward_ad.dual_level():
        out = winners(forward_ad.make_dual(x, torch.ones_like(x)))
        assert torch.equal(forward_ad.unpack_dual(out).tangent, expected)
    assert torch.equal(torch.func.vmap(winners)(x[None])[0], winners(x))


@pytest.mark.parametrize(("blocks", "shape"), [(5, (35, 2, 1)), (7, (35, 3, 1)), (5, (35, 24, 9))])
def test_however_the_positions_are_shared_out_the_loops_find_the_same(blocks, shape, monkeypatch):
    h, upstream = (np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in (0, 1))
    table = np.random.default_rng(2).standard_normal((blocks * shape[1], 5), np.float32)

    def found():
        values, winner, relaxed = competition.compete(h, 1.3, 0.4, 0.7, 5)
        gradient = competition.gradient(upstream, h, relaxed, winner, 2.0)
        shares, q = usage.usage(h, blocks, 1.5)
        others = usage.usage_gradient(shares, q, 1.5), noise.gumbel(shape, 3)
        read = rows.sum_winners(h, blocks, 1.3, table, table[0], 0.7, 5)
        return [values, winner, relaxed, gradient, shares, q, read, *others]

    expected, odd = found(), []
    for module in (competition, usage, noise, rows):
        monkeypatch.setattr(module, "share", lambda count, units: odd.append(count) or 3)
    for one, other in zip(found(), expected, strict=True):
        assert np.array_equal(one, other)
    assert len(odd) == 5


@pytest.mark.parametrize("dim", [1, 3])
def test_the_operators_keep_the_rules_of_torch_library(dim):
    x, seed, place = torch.randn(3, 8, 5, 4), torch.tensor(1), (2, dim)
    scales = [torch.tensor(scale) for scale in (1.5, 0.5, 0.3)]
    of_usage = (x, *place, scales[0])
    _, winner, relaxed = torch.ops.lwta.compete(x, seed, *place, *scales)
    mean, q = torch.ops.lwta.usage(*of_usage)
    for operator, arguments in {
        "compete": (x, seed, *place, *scales),
        "winners": (x, seed, *place, *scales[:2]),
        "gradient": (torch.randn_like(x), x, relaxed, winner, *place, torch.tensor(5.0)),
        "usage": of_usage,
        "usage_gradient": (mean, q, dim, scales[0]),
    }.items():
        call = getattr(torch.ops.lwta, operator).default
        torch.library.opcheck(call, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("shape", "dim"), [((50, 48), 1), ((4, 48, 9, 9), 1)])
def test_evaluation_without_and_with_gradient_finds_the_same_winners(shape, dim):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for scale, seed in ((0.0, None), (0.8, torch.tensor(4))):
        arguments = {"dim": dim, "beta": 1.3, "noise": scale, "seed": seed}
        with_gradient = functional.lwta(x.clone().requires_grad_(), 24, **arguments)
        without = functional.lwta(x, 24, **arguments)
        training = functional.lwta(x, 24, **arguments, relaxed=True)
        assert with_gradient.values.requires_grad
        for other in (without, training):
            assert torch.equal(with_gradient.values, other.values)
            assert torch.equal(with_gradient.winner, other.winner)


def test_memory_formats_are_kept():
    x = torch.randn(2, 8, 3, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    values = functional.lwta(x, 4, dim=1, noise=1.0, seed=torch.tensor(3), relaxed=True).values
    values.backward(torch.randn(2, 8, 3, 5))
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_what_is_kept_for_the_gradient_is_the_input_the_relaxed_sample_and_the_winners():
    x, kept = torch.randn(6, 48, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        functional.lwta(x, 24, dim=1, noise=1.0, seed=torch.tensor(3), relaxed=True)
    assert sorted(kept) == [(6, 2), (6, 48), (6, 48)]


def test_other_types_take_the_path_of_torch():
    assert compiled_for(torch.zeros(1))
    assert not compiled_for(torch.zeros(1, dtype=torch.float64))
    assert not compiled_for(torch.zeros(1, dtype=torch.bfloat16))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_element_of_an_output_is_written(shape, monkeypatch):
    h, upstream = (np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in (0, 1))
    table = np.random.default_rng(2).standard_normal((shape[1], 5), np.float32)

    def found():
        values, winner, relaxed = competition.compete(h, 1.3, 0.4, 0.7, 5)
        read = rows.sum_winners(h, 1, 1.3, table, table[0], 0.7, 5)
        shares, q = usage.usage(h, 1, 1.5)
        gradients = (
            competition.gradient(upstream, h, relaxed, winner, 2.0),
            usage.usage_gradient(shares, q, 1.5),
        )
        return [values, winner, relaxed, read, shares, q, *gradients]

    expected, empty, empty_like = found(), np.empty, np.empty_like  # compiled before anything is poisoned

    def poisoned(array):
        array.fill(-(2**40) if array.dtype.kind == "i" else np.nan)
        return array

    monkeypatch.setattr(np, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(np, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
    for one, other in zip(found(), expected, strict=True):
        assert np.array_equal(one, other)


# --- threads ----------------------------------------------------------------------------------------

WORK = """
import os, sys, numpy as np, torch
from lwta import threads
from lwta.cpu import noise

torch.set_num_threads(2)
torch.randn(2_000_000).exp()  # torch's threads are there
before = len(os.listdir("/proc/self/task"))
expected = noise.gumbel((300_000, 4, 1), 3)
print(len(os.listdir("/proc/self/task")) - before, threads.team_serves(), flush=True)
print(sum(threads._for_team(noise._fill_gumbel).stats.cache_misses.values()), flush=True)
child = os.fork()
if not child:
    same = np.array_equal(noise.gumbel((300_000, 4, 1), 3), expected)
    os._exit(0 if same and not threads.team_serves() else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the threads are Python's")
def test_loops_run_in_the_threads_of_torch_and_in_forked_processes_in_python_s():
    def run():
        # Threads of OpenBLAS, which SciPy starts when numba imports it, are not counted.
        env = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", WORK]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout

    added, serves, _, status = run().split()
    assert (added, serves, status) == ("0", "True", "0")
    assert run().split()[2] == "0"  # its machine code was kept


@pytest.mark.parametrize("shape", SHAPES)
def test_without_openmp_the_loops_find_the_same(shape, monkeypatch):
    h = np.random.default_rng(0).standard_normal(shape, np.float32)
    monkeypatch.setattr(competition, "share", lambda count, units: 7)
    found, ways = [], []
    pool = threads.ThreadPoolExecutor
    monkeypatch.setattr(threads, "ThreadPoolExecutor", lambda count: ways.append("pool") or pool(count))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for team in (True, False):
        monkeypatch.setattr(threads, "team_serves", lambda team=team: team)
        found.append(competition.compete(h, 1.0, 0.3, 0.5, 9))
        ways.append(team)
    assert ways == ([True, "pool", False] if h.shape[0] * h.shape[2] > 7 else [True, False])
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)
