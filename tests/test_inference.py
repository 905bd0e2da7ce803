"""Networks made sparse compute what they did; what is replaced in them, and by what rule."""

import json

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dissect
import train
from lwta import LWTA
from lwta.errors import InputError
from lwta.inference import sparsify
from lwta.winners import Timing, WinnersOnly
from models.backbone import create_backbone
from tests.conftest import refused
from tests.winners import always, mlp, output, randn


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


# --- pairs ---


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
    why = "no linear layer or 1 x 1 convolution alone reads act"
    said = f"Winners only, where faster, at 0 of 1 competitions; {why}"
    assert str(done) == said
    torch.testing.assert_close(output(model, x), before, rtol=0, atol=0)


class Kept(nn.Module):
    """A forward pass written by hand over a competition and its reader."""

    def __init__(self, body):
        super().__init__()
        self.act, self.fc, self.body = LWTA(4, -1), nn.Linear(12, 5), body

    def forward(self, x):
        return self.body(self, x * 1)


def adds(model, h):
    y = model.act(h)
    y += 1
    return model.fc(y)


def changes_the_units(model, h):
    y = model.act(h)
    h += 1
    return model.fc(y)


def transposes(model, h):
    y = model.act(h)
    return model.fc(y) + y.T.sum()


def keeps(model, h):
    model.last = model.act(h)
    return model.fc(model.last)


def squashes(model, h):
    return model.fc(F.silu(model.act(h), inplace=True))


@pytest.mark.parametrize("body", [adds, changes_the_units, transposes, keeps, squashes])
def test_what_is_written_to_or_kept_stays_dense(body):
    model, x = Kept(body).eval(), randn(5, 12)
    before = output(model, x)
    assert sparsify(model, x).left == ["act"]
    torch.testing.assert_close(output(model, x), before, rtol=0, atol=0)


class Louder(LWTA):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "act", Louder(4, -1)),
        lambda model: nn.utils.weight_norm(model.fc),
        lambda model: nn.utils.parametrizations.weight_norm(model.fc),
        lambda model: model.fc.register_forward_hook(lambda module, inputs, out: 2 * out),
        lambda model: model.act.register_forward_hook(lambda module, inputs, out: 2 * out),
        lambda model: model.act.competition.register_forward_pre_hook(lambda module, inputs: (-inputs[0],)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_modules_that_do_more_are_not_replaced(change):
    model, x = Kept(lambda model, h: model.fc(model.act(h))).eval(), randn(5, 12)
    change(model)
    before = output(model.eval(), x)
    assert sparsify(model, x).left == ["act"]
    torch.testing.assert_close(output(model, x), before, rtol=0, atol=0)


@pytest.mark.parametrize("between", [nn.ReLU(inplace=True), nn.SiLU(inplace=True), nn.ReLU()])
def test_a_batch_norm_after_something_else_is_not_folded(between):
    model, x = convolutions(), randn(2, 3, 8, 8)
    model = nn.Sequential(model[0], between, *model[1:]).eval()
    before = output(model, x)
    done = sparsify(model, x)
    assert [pair.source for pair in done.folded] == ["4"]
    torch.testing.assert_close(output(always(model, True), x), before, rtol=1e-4, atol=1e-5)


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
    assert shape == ("Linear", 4, 24, 3, 16, "float32", "cpu", False, False)
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
    """The last test of a run."""
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
        assert said.err.count("Winners only, where faster, at 2 of 2 competitions") == (winners == "true")
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
