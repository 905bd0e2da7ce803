"""The units that fired and the sum of their rows, against loops, and where the dense path is taken."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lwta.deferred import Deferred
from lwta.dissect.intervene import silenced
from lwta.inference import sparsify
from lwta.layers import Competition, sampled, watch
from lwta.noise import gumbel_like
from lwta.winners import WinnersOnly, fired_units
from tests import reference
from tests.winners import always, mlp, output, randn

#: name -> (sizes with None for the units, axis of the units, channels last in memory)
LAYOUTS = {
    "N D": ((5, None), -1, False),
    "tokens": ((2, 3, None), -1, False),
    "NCHW": ((2, None, 3, 2), 1, False),
    "NCHW, channels last": ((2, None, 3, 2), 1, True),
    "one position": ((None,), 0, False),
}


# --- who fired, and the sum of their rows -----------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("competitors", "seed"), [(2, None), (3, 5), (24, None), (24, 7)])
def test_the_units_that_fired_are_those_of_the_loops(layout, dtype, competitors, seed):
    sizes, dim, last = LAYOUTS[layout]
    x = randn(*(2 * competitors if size is None else size for size in sizes)).to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    competition = Competition(competitors, dim, beta=1.3, noise=0.8, normalize=False).eval()
    competition.seed = None if seed is None else torch.tensor(seed)
    axis = dim % x.ndim
    blocks = x.unflatten(axis, (2, competitors))
    working = blocks.float() if dtype == torch.bfloat16 else blocks
    noise = torch.zeros_like(working) if seed is None else gumbel_like(working, torch.tensor(seed), axis + 1)
    g = noise.flatten(axis, axis + 1).double().numpy()
    expected, winner = reference.forward(x.double().numpy(), g, competitors, dim, 1.3, 0.8)

    values, unit = fired_units(competition, x)
    assert values.dtype == dtype
    assert unit.dtype == torch.int64
    assert values.is_contiguous()
    assert unit.is_contiguous()
    offset = np.moveaxis(winner, axis, -1) + competitors * np.arange(2)
    assert np.array_equal(unit.numpy(), offset)
    assert np.array_equal(
        values.double().numpy(), np.take_along_axis(np.moveaxis(expected, axis, -1), offset, axis=-1)
    )


def test_the_first_of_equals_fires_and_nan_is_not_hidden():
    x = torch.tensor([[2.0, 2.0, 1.0, 1.0, torch.nan, 9.0], [-torch.inf] * 3 + [0.0, -0.0, -1.0]])
    values, unit = fired_units(Competition(3, -1, normalize=False).eval(), x)
    assert unit.tolist() == [[0, 4], [0, 3]]
    assert values[0, 1].isnan()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 24), (24,), (2, 24, 3, 5)])
@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("seed", [None, torch.tensor(5)])
@pytest.mark.parametrize("last", [False, True])
def test_the_sum_of_rows_is_the_product(shape, bias, dtype, near, seed, last):
    conv = len(shape) == 4
    reader = nn.Conv2d(24, 10, 1, bias=bias) if conv else nn.Linear(24, 10, bias=bias)
    competition = Competition(8, 1 if conv else -1, noise=0.8, normalize=False).eval()
    competition.seed = seed
    layout = torch.channels_last if conv and last else torch.contiguous_format
    x = randn(*shape).to(dtype).contiguous(memory_format=layout)
    layer = WinnersOnly(reader.to(dtype), {})
    with torch.no_grad():
        found = layer.sum(competition, x)
        expected = copy.deepcopy(reader).double()(competition(x).values.double())
    assert found.dtype == dtype
    np.testing.assert_allclose(found.double().numpy(), expected.numpy(), rtol=near, atol=near)
    assert found.is_contiguous(memory_format=layout)


def test_samples_are_those_of_the_dense_path():
    model, x = mlp(), randn(40, 6)
    dense = copy.deepcopy(model)
    sparsify(model, x)
    found = [output(always(model, True), x)]
    for seed in (0, 1):
        with sampled(dense, seed), sampled(model, seed):
            output(model, x)  # drawing is a shape of its own
            found.append(output(always(model, True), x))
            torch.testing.assert_close(found[-1], output(dense, x))
    for one, other in itertools.combinations(found, 2):
        assert not torch.allclose(one, other)


def test_noise_has_the_numbering_of_the_dense_path_in_any_layout():
    x = randn(2, 8, 3, 5).contiguous(memory_format=torch.channels_last)
    competition = Competition(4, 1, noise=2.0, normalize=False).eval()
    competition.seed = torch.tensor(3)
    values, winner = competition(x)
    fired = fired_units(competition, x)
    assert torch.equal(fired.unit.movedim(-1, 1) % 4, winner)
    assert torch.equal(values.gather(1, fired.unit.movedim(-1, 1)), fired.values.movedim(-1, 1))


def test_weights_that_change_are_read_anew():
    model, x = mlp(), randn(9, 6)
    sparsify(model, x)
    always(model, True)
    other = mlp()
    with torch.no_grad():
        other[3].weight.mul_(-2)
        other[0].weight.add_(0.1)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(output(model, x), output(other, x))
    model.load_state_dict(mlp().state_dict(), assign=True)
    torch.testing.assert_close(output(model, x), output(mlp(), x))
    with torch.no_grad():
        model[3].bias.add_(1)
    torch.testing.assert_close(output(model, x), output(mlp(), x) + 1)


def test_copies_and_casts_compute_on():
    model, x = mlp(), randn(9, 6)
    expected = output(model, x)
    sparsify(model, x)
    always(model, True)
    torch.testing.assert_close(output(copy.deepcopy(model), x), expected)
    torch.testing.assert_close(output(copy.deepcopy(model).double(), x.double()), expected.double())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(output(model, x).float(), expected, rtol=0.05, atol=0.05)
    assert output(model, x[:0]).shape == (0, 3)


def test_a_compiled_network_takes_the_dense_path(compiler, monkeypatch):
    model, x = mlp(), randn(9, 6)
    expected = output(model, x)
    sparsify(model, x)
    monkeypatch.setattr(WinnersOnly, "sum", lambda *_: pytest.fail("a sum of rows was traced"))
    torch.testing.assert_close(output(compiler(always(model, True)), x), expected)


# --- where the dense path is taken ------------------------------------------------------------------


def test_gradients_are_those_of_before():
    model, x = mlp(), randn(9, 6).requires_grad_()
    expected = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    sparsify(model, x.detach())
    always(model, True)
    found = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_training_is_that_of_before():
    model, x = mlp(), randn(9, 6)
    twin = copy.deepcopy(model).train()
    sparsify(model, x)
    always(model, True).train()
    found = []
    for network in (model, twin):
        torch.manual_seed(0)
        found.append(output(network, x))
    assert torch.equal(*found)


def test_who_looks_on_sees_what_won():
    model, x = mlp(), randn(9, 6)
    dense = copy.deepcopy(model)
    sparsify(model, x)
    always(model, True)
    seen = []
    for network in (model, dense):
        with watch(network, {"1": -1}) as calls:
            output(network, x)
        (firing,) = calls["1"]
        handle = network[3].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # noqa: B023
        output(network, x)
        handle.remove()
        seen += [firing.values, firing.fired, firing.inputs, firing.winner]
        with silenced(network, "1", torch.tensor([[0, 5]]), -1):
            seen.append(output(network, x))
    for one, other in zip(seen[:6], seen[6:], strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(seen[5], output(dense, x))


def test_global_hooks_see_what_won():
    model, x = mlp(), randn(9, 6)
    sparsify(model, x)
    always(model, True)
    read = []
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: read.append(inputs[0]) if module is model[3] else None
    )
    try:
        output(model, x)
    finally:
        handle.remove()
    assert (read[0] != 0).sum() <= 9 * 6


# --- values that nobody has computed yet ------------------------------------------------------------


def deferred():
    """What the competition of a sparse network returns and what it did before; the network and the units."""
    model, x = mlp(), randn(9, 6)
    h = output(model[0], x)
    expected = output(model[1], h)
    sparsify(model, x)
    return output(always(model, True)[1], h), expected, model, h


@pytest.mark.parametrize(
    "use",
    [
        lambda y: y + 0,
        lambda y: y.T.contiguous().T,
        lambda y: y.clone().add_(1) - 1,
        lambda y: torch.cat([y, y])[:9],
        lambda y: y.add_(1) - 1,
        lambda y: y.detach(),
        lambda y: torch.jit.script(torch.nn.Identity())(y) * 1,
        lambda y: torch.from_numpy(y.detach().numpy()),
        lambda y: copy.deepcopy(y.detach()),
    ],
)
def test_whoever_uses_deferred_values_gets_what_won(use):
    values, expected, *_ = deferred()
    assert isinstance(values, Deferred)
    assert (values.shape, values.dtype, values.device) == (expected.shape, expected.dtype, expected.device)
    assert values.computed is None
    found = use(values)
    assert not isinstance(found, Deferred)
    torch.testing.assert_close(found, expected)
    assert repr(deferred()[0]) == repr(expected)


def test_deferred_values_that_were_written_to_are_read_as_written():
    values, expected, model, _ = deferred()
    values.mul_(-2)
    torch.testing.assert_close(output(model[3], values), output(mlp()[3], -2 * expected))


def test_a_reader_with_gradient_reads_what_a_competition_without_one_passed():
    values, expected, model, _ = deferred()
    out = model[3](values)
    out.sum().backward()
    own = mlp()[3]
    own(expected).sum().backward()
    torch.testing.assert_close(out, own(expected))
    torch.testing.assert_close(model[3].weight.grad, own.weight.grad)


def test_units_that_were_changed_before_they_were_read_are_refused():
    values, _, model, h = deferred()
    h.add_(1)
    with pytest.raises(RuntimeError, match="changed in place after they competed"):
        output(model[3], values)


def test_what_is_traced_or_exported_is_right_for_other_images(compiler):
    model, x, other = mlp(), randn(9, 6), randn(9, 6, seed=1)
    expected = output(model, other)
    sparsify(model, x)
    always(model, True)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, x)(other), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(other), expected)


@pytest.mark.parametrize("made_in", [torch.inference_mode, torch.no_grad])
def test_a_sparse_network_sums_its_winners_with_and_without_inference_mode(made_in, monkeypatch):
    model, x = mlp(), randn(9, 6)
    expected = output(model, x)
    with made_in():
        sparsify(model, x)
    always(model, True)
    summed, kept = [], WinnersOnly.sum
    monkeypatch.setattr(WinnersOnly, "sum", lambda *a: summed.append(1) or kept(*a))
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            torch.testing.assert_close(model(x), expected)
    assert len(summed) == 2


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_dropout_that_is_switched_on_drops_what_won(mode):
    values, expected, model, _ = deferred()
    with mode():
        torch.manual_seed(0)
        found = model[2].train()(values)
        torch.manual_seed(0)
        torch.testing.assert_close(found, model[2](expected))


def test_weights_written_through_data_are_read_anew_with_the_mode():
    model, x = mlp(), randn(9, 6)
    sparsify(model, x)
    output(always(model, True), x)
    model[3].weight.data.mul_(-1)
    other = mlp()
    with torch.no_grad():
        other[3].weight.mul_(-1)
    torch.testing.assert_close(output(model.train().eval(), x), output(other, x))
