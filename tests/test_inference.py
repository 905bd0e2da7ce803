"""Winners only against loops and the dense path, and where it must not be taken."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import dissect
import train
from lwta import LWTA
from lwta.dissect.intervene import silenced
from lwta.errors import InputError
from lwta.inference import sparsify
from lwta.layers import Competition, sampled, watch
from lwta.noise import gumbel_like
from lwta.winners import Timing, WinnersOnly, fired_units
from models.backbone import create_backbone
from tests import reference
from tests.conftest import refused

#: name -> (sizes with None for the units, axis of the units, channels last in memory)
LAYOUTS = {
    "N D": ((5, None), -1, False),
    "tokens": ((2, 3, None), -1, False),
    "NCHW": ((2, None, 3, 2), 1, False),
    "NCHW, channels last": ((2, None, 3, 2), 1, True),
    "one position": ((None,), 0, False),
}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def always(model, winners):
    """Take one of the two paths for every shape met so far."""
    (timings,) = {id(m.timings): m.timings for m in model.modules() if isinstance(m, WinnersOnly)}.values()
    for shape in timings:
        timings[shape] = Timing(1.0, 0.0) if winners else Timing(0.0, 1.0)
    return model


def mlp(competitors=4, units=24):
    layers = nn.Linear(6, units), LWTA(competitors, -1, noise=0.8), nn.Dropout(0.5), nn.Linear(units, 3)
    torch.manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return nn.Sequential(*layers).eval()


def convolutions(reader=None, bias=True):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), LWTA(4, 1), reader or nn.Conv2d(12, 5, 1, bias=bias)
    model = nn.Sequential(*layers, nn.BatchNorm2d(5) if reader is None else nn.Identity()).eval()
    for norm in (module for module in model if isinstance(module, nn.BatchNorm2d)):
        for statistic, low, high in (
            (norm.running_mean, -1, 1),
            (norm.running_var, 0.5, 2),
            (norm.weight, 0.5, 2),
        ):
            nn.init.uniform_(statistic, low, high)
    return model


def output(model, x):
    with torch.no_grad():
        return model(x)


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
def test_the_sum_of_rows_is_the_product(shape, bias):
    conv = len(shape) == 4
    reader = nn.Conv2d(24, 10, 1, bias=bias) if conv else nn.Linear(24, 10, bias=bias)
    competition, x = Competition(8, 1 if conv else -1, normalize=False).eval(), randn(*shape)
    layer = WinnersOnly(reader, {})
    with torch.no_grad():
        found = layer.sum(fired_units(competition, x), x)
        expected = copy.deepcopy(reader).double()(competition(x).values.double())
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert found.is_contiguous()


# --- networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("winners", [True, False])
def test_a_vision_transformer_computes_what_it_did(winners):
    model, _ = create_backbone("vit_tiny_patch16_224", 10, competitors=24, backbone_args={"img_size": 32})
    model, x = model.eval(), randn(2, 3, 32, 32)
    before, names = output(model, x), list(model.state_dict())
    done = sparsify(model, x)
    assert [pair.source for pair in done.pairs] == [f"blocks.{i}.mlp.act" for i in range(12)]
    assert not done.left
    assert not done.folded
    assert list(model.state_dict()) == names
    torch.testing.assert_close(output(always(model, winners), x), before, rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("winners", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_resnet_computes_what_it_did_without_its_batch_norms(winners, layout):
    torch.manual_seed(0)
    model, _ = create_backbone("resnet26", 10, competitors=16)
    model = model.eval().to(memory_format=layout)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1)
    x = randn(2, 3, 64, 64).contiguous(memory_format=layout)
    before = output(model, x)
    done = sparsify(model, x)
    assert len(done.pairs) == 8
    assert not done.left
    assert len(done.folded) == 29
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(output(always(model, winners), x), before, rtol=1e-4, atol=1e-5)


def test_samples_are_those_of_the_dense_path():
    model, x = mlp(), randn(40, 6)
    dense = copy.deepcopy(model)
    sparsify(model, x)
    always(model, True)
    for seed in (0, 1):
        with sampled(dense, seed), sampled(model, seed):
            torch.testing.assert_close(output(model, x), output(dense, x))
    assert not torch.allclose(output(model, x), output(dense, randn(40, 6, seed=1)))


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


def test_a_compiled_network_takes_the_dense_path(compiler):
    model, x = mlp(), randn(9, 6)
    expected = output(model, x)
    sparsify(model, x)
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


class Residual(nn.Module):
    """What competes is read by a layer and by ``also``."""

    def __init__(self, also):
        super().__init__()
        self.act, self.fc, self.also = LWTA(4, -1), nn.Linear(12, 12), also

    def forward(self, x):
        y = self.act(x)
        return self.also(self.fc(y), y, self)


@pytest.mark.parametrize(
    "also",
    [
        lambda out, y, model: out + y,
        lambda out, y, model: (out, y),
        lambda out, y, model: out + model.fc(y),
        lambda out, y, model: out + model.fc(out),
        lambda out, y, model: out + model.act(out),
        lambda out, y, model: out + y.sum(),
        lambda out, y, model: out + torch.stack([y, y]).sum(0),
    ],
)
def test_what_is_read_elsewhere_too_stays_dense(also):
    model, x = Residual(also).eval(), randn(5, 12)
    before = output(model, x)
    done = sparsify(model, x)
    assert (done.pairs, done.left) == ([], ["act"])
    assert str(done).startswith("Winners only at 0 of 1 competitions; no single layer reads act")
    torch.testing.assert_close(output(model, x), before, rtol=0, atol=0)


def test_asking_for_a_shape_is_not_reading():
    model, x = (
        Residual(lambda out, y, model: out.view(y.shape[0], y.size(1)).to(y.dtype)).eval(),
        randn(5, 12),
    )
    before = output(model, x)
    assert len(sparsify(model, x).pairs) == 1
    torch.testing.assert_close(output(always(model, True), x), before)


@pytest.mark.parametrize(
    "reader",
    [
        nn.Conv2d(12, 5, 3),
        nn.Conv2d(12, 5, 1, stride=2),
        nn.Conv2d(12, 5, 1, padding=1),
        nn.Conv2d(12, 6, 1, groups=2),
        nn.Linear(6, 5),
        nn.BatchNorm2d(12),
    ],
)
def test_a_layer_that_mixes_more_than_units_stays_dense(reader):
    model, x = convolutions(reader).eval(), randn(2, 3, 8, 8)
    before = output(model, x)
    done = sparsify(model, x)
    assert done.left == ["2"]
    assert len(done.folded) == 1
    torch.testing.assert_close(output(model, x), before, rtol=1e-4, atol=1e-5)


def test_a_batch_norm_without_statistics_of_its_own_is_not_folded():
    model, x = convolutions(), randn(2, 3, 8, 8)
    model[1] = nn.BatchNorm2d(12, track_running_stats=False)
    before = output(model, x)
    done = sparsify(model, x)
    assert [pair.source for pair in done.folded] == ["3"]
    torch.testing.assert_close(output(always(model, True), x), before, rtol=1e-4, atol=1e-5)


# --- the rule, and what is refused ------------------------------------------------------------------


def test_the_faster_path_is_measured_once_for_a_shape_and_then_taken(monkeypatch):
    model, x = mlp(), randn(9, 6)
    done = sparsify(model, x)
    ((shape, timing),) = done.timings.items()
    assert shape == ("Linear", 4, 24, 3, 16, "float32", "cpu")
    assert timing.dense > 0
    assert timing.winners > 0
    output(model, randn(16, 6))
    assert list(done.timings.items()) == [(shape, timing)]
    output(model, randn(17, 6))
    assert [met.positions for met in done.timings] == [16, 32]
    taken = []
    for path in ("sum", "product"):
        kept = getattr(model[3], path)
        monkeypatch.setattr(model[3], path, lambda *a, kept=kept, path=path: taken.append(path) or kept(*a))
    for winners in (True, False):
        output(always(model, winners), x)
    assert taken == ["sum", "product"]
    always(model, True)
    assert "Linear 24 -> 3, U = 4, at most 16 positions, float32, cpu: winners only" in str(done)
    always(model, False)
    assert "at most 32 positions, float32, cpu: dense (dense 0.00 ms, winners only 1000.00 ms)" in str(done)


def test_what_cannot_be_made_sparse_is_refused_and_left_as_it_is():
    model, x = mlp(), randn(9, 6)
    with pytest.raises(InputError, match="call model.eval"):
        sparsify(model.train(), x)
    sparsify(model.eval(), x)
    with pytest.raises(InputError, match="already"):
        sparsify(model, x)
    with pytest.raises(InputError, match="nothing competes"):
        sparsify(nn.Linear(6, 3).eval(), x)
    model = mlp()
    names = [type(module) for module in model.modules()]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sparsify(model, randn(9, 7))
    assert [type(module) for module in model.modules()] == names
    assert not any(module._forward_hooks for module in model.modules())


# --- train.py test and dissect.py -------------------------------------------------------------------


def metrics(folder):
    rows = pd.read_csv(
        max(folder.glob("metrics/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    )
    return rows.filter(like="test/").dropna().iloc[-1]


def test_a_run_is_tested_by_its_winners(tiny, monkeypatch):
    tiny.fit(trainer__max_epochs=1)
    again = ["test", f"--config={tiny.folder}/config.yaml", f"--run={tiny.folder}"]
    train.main(again)
    dense = metrics(tiny.folder)
    met = []

    def winners_are_faster(dense, winners, device):
        met.append((dense().shape, winners().shape))
        return Timing(1.0, 0.0)

    monkeypatch.setattr("lwta.winners._measure", winners_are_faster)
    summed, kept = [], WinnersOnly.sum
    monkeypatch.setattr(WinnersOnly, "sum", lambda *a: summed.append(1) or kept(*a))
    train.main([*again, "--model.winners_only=true"])
    assert met[0] == ((12, 17, 24), (12, 17, 24))
    # Two batches of 12, eleven samples and the two passes of measuring, two layers; argmax is watched.
    assert len(summed) >= 2 * 2 * 11
    pd.testing.assert_series_equal(metrics(tiny.folder), dense, rtol=1e-4)


def test_an_image_is_explained_by_its_winners(compared, tmp_path, capsys):
    args = ["explain", "test:0", f"--run={compared.sparse}", "--json"]
    found = []
    for winners in ("false", "true"):
        dissect.main([*args, f"--winners_only={winners}"])
        said = capsys.readouterr()
        found.append(json.loads(said.out))
        assert said.err.count("Winners only at 2 of 2 competitions") == (winners == "true")
    assert_close(*found)


def assert_close(one, other):
    """The same JSON but for rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_close(left, right)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    else:
        assert one == other


def test_a_network_without_competition_has_no_winners(compared):
    said = refused(dissect.main, ["explain", "test:0", f"--run={compared.dense}", "--winners_only=true"])
    assert said == "error: nothing competes in this network; swap its activations first"
