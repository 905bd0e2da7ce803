"""What a run is judged by, against loops over its outputs."""

import math
from contextlib import nullcontext

import pytest
import torch

import models.judge
from lwta.layers import LWTA, sampled
from models.judge import judge, split_images
from models.run import load_run
from tests.conftest import fit_shapes

BATCH = 15  # of 40 images: the last batch is smaller


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One unit of each block of the first layer, and 20 of the 24 of the second, never win."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    network = "{img_size: 32, patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2}"
    fit_shapes(folder, model__backbone_args=network, model__noise=0.3)
    run = load_run(folder)
    with torch.no_grad():
        for block, losers in zip(run.model.backbone.blocks, (1, 20), strict=True):
            block.mlp.fc1.bias.view(-1, 24)[:, :losers] = -1e3
    return run


def batches(run):
    """Pixels and classes, batch by batch."""
    shown, see = run.data.dataset("validate"), run.data.eval_transform()
    pixels = torch.stack([see(shown[i][0]) for i in range(len(shown))])
    targets = torch.tensor([shown[i][1] for i in range(len(shown))])
    return list(zip(pixels.split(BATCH), targets.split(BATCH), strict=True))


@torch.inference_mode()
def fired(run, pixels, seed=None):
    """Probabilities, and layer -> which units are not zero (N T, D); by a sample where there is a seed."""
    found = {}
    modules = {name: m for name, m in run.model.backbone.named_modules() if isinstance(m, LWTA)}
    handles = [
        module.register_forward_hook(
            lambda _, i, out, name=name: found.update({name: out.flatten(0, 1) != 0})
        )
        for name, module in modules.items()
    ]
    with nullcontext() if seed is None else sampled(run.model.backbone, seed):
        probabilities = run.model.backbone(pixels).softmax(-1)
    for handle in handles:
        handle.remove()
    return probabilities, found


def expected_calibration_error(probabilities, targets, bins=15):
    confidence, predicted = probabilities.max(-1)
    error = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence.tolist()) if b / bins < c <= (b + 1) / bins]
        if inside:
            right = sum(float(predicted[i] == targets[i]) for i in inside) / len(inside)
            sure = sum(float(confidence[i]) for i in inside) / len(inside)
            error += len(inside) / len(targets) * abs(right - sure)
    return error


def test_accuracy_and_calibration_are_those_of_the_mean_of_samples(run):
    found = judge(run, split_images(run, "validate"), BATCH, evaluations=[0, 3])
    seed = run.model.hparams["seed"]
    for name, samples in (("argmax", [None]), ("3_samples", [0, 1, 2])):
        probabilities, targets = [], []
        for place, (pixels, classes) in enumerate(batches(run)):
            seeds = [None if s is None else seed + 10_000 * place + s for s in samples]
            each = [fired(run, pixels, s)[0] for s in seeds]
            probabilities.append(sum(each) / len(each))
            targets.append(classes)
        probabilities, targets = torch.cat(probabilities), torch.cat(targets)
        assert torch.equal(found.right[name], probabilities.argmax(-1) == targets)
        expected = expected_calibration_error(probabilities, targets)
        assert found.calibration[name] == pytest.approx(expected, abs=1e-5)
    assert not math.isclose(found.calibration["argmax"], found.calibration["3_samples"], abs_tol=1e-4)


def test_calibration_has_fifteen_bins(run, monkeypatch):
    # A network at chance is too sure in every bin: the number of bins would not matter.
    targets = torch.cat([classes for _, classes in batches(run)])
    said = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(10)[targets]
    parts = iter(said.softmax(-1).split(BATCH))

    def predicted(backbone, pixels, evaluations, seed):
        backbone(pixels)
        return {0: next(parts)} if evaluations else {}

    monkeypatch.setattr(models.judge, "predict_each", predicted)
    found = judge(run, split_images(run, "validate"), BATCH, evaluations=[0]).calibration["argmax"]
    errors = [expected_calibration_error(said.softmax(-1), targets, bins) for bins in (10, 15, 14)]
    assert found == pytest.approx(errors[1], abs=1e-5)
    assert errors[1] not in (pytest.approx(errors[0], abs=1e-3), pytest.approx(errors[2], abs=1e-3))


def test_winners_that_differ_are_those_of_the_first_two_samples(run):
    found = judge(run, split_images(run, "validate"), BATCH, evaluations=[0])
    seed, counts = run.model.hparams["seed"], {}
    for place, (pixels, _) in enumerate(batches(run)):
        (_, first), (_, second) = (fired(run, pixels, seed + 10_000 * place + s) for s in (0, 1))
        for name in first:
            winners = [
                fires.view(len(fires), -1, 24).int().argmax(-1) for fires in (first[name], second[name])
            ]
            counts.setdefault(name, []).append((winners[0] != winners[1]).flatten())
    expected = {name: float(torch.cat(differ).float().mean()) for name, differ in counts.items()}
    assert found.differing == pytest.approx(expected)
    assert len({round(share, 4) for share in expected.values()}) == 2  # or a wrong layer would pass


def test_dead_units_are_those_of_the_worst_layer(run):
    found = judge(run, split_images(run, "validate"), BATCH, evaluations=[0])
    wins = {}
    for pixels, _ in batches(run):
        for name, fires in fired(run, pixels)[1].items():
            wins[name] = wins.get(name, 0) + fires.sum(0)
    dead = {name: int((won == 0).sum()) for name, won in wins.items()}
    units = run.model.backbone.blocks[0].mlp.fc1.out_features
    assert units / 24 <= dead["blocks.0.mlp.act"] < units * 20 / 24 <= dead["blocks.1.mlp.act"] < units
    assert found.activity.dead_units == sum(dead.values())
    assert found.activity.dead_most == pytest.approx(dead["blocks.1.mlp.act"] / units)
