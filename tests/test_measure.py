"""Predictions by argmax and by samples, and the sparsity meter."""

import pytest
import torch

from lwta.errors import InputError
from lwta.layers import competitions, sampled, watch
from models.backbone import create_backbone
from models.measure import SparsityMeter, evaluation_name, predict


def network(competitors=8, depth=2):
    torch.manual_seed(0)
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": depth, "num_heads": 2}
    return create_backbone("vit_tiny_patch16_224", 3, backbone_args=args, competitors=competitors)


def images(count=6):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_samples_are_averaged_as_probabilities_and_repeat():
    model, x = network()[0].eval(), images()
    for competition in competitions(model).values():
        competition.noise = 2.0
    parts = []
    for seed in (5, 6, 7):
        with sampled(model, seed):
            parts.append(model(x).softmax(-1))
    mean = predict(model, x, samples=3, seed=5)
    torch.testing.assert_close(mean, torch.stack(parts).mean(0))
    assert torch.equal(mean, predict(model, x, samples=3, seed=5))
    assert not torch.equal(mean, predict(model, x, samples=3, seed=8))
    assert torch.equal(predict(model, x, 0, seed=5), model(x).softmax(-1))


@torch.no_grad()
def test_without_noise_or_competition_samples_are_the_argmax():
    x = images()
    silent = network()[0].eval()
    for competition in competitions(silent).values():
        competition.noise = 0.0
    dense = network(competitors=None)[0].eval()
    for model in (silent, dense):
        torch.testing.assert_close(predict(model, x, 2, seed=0), model(x).softmax(-1))


def test_evaluations_have_names():
    assert [evaluation_name(n) for n in (0, 1, 10)] == ["argmax", "1_sample", "10_samples"]


@torch.no_grad()
def test_the_meter_counts_as_a_loop_does():
    model, report = network()
    meter = SparsityMeter(report.swapped)
    batches = [images(4), images(3)]
    counts = {name: torch.zeros(96, dtype=torch.long) for name in meter.dims}
    for x in batches:
        with watch(model.eval(), meter.dims) as calls:
            model(x)
        meter.update(calls)
        for name, (firing,) in calls.items():
            for image in firing.fired:
                for token in image:
                    counts[name] += token
    measured = meter.compute()
    dead = {name: float((count == 0).sum()) for name, count in counts.items()}
    assert {name: float(measured[f"{name}/dead_units"]) for name in counts} == dead
    assert measured["dead_units"] == sum(dead.values())
    assert measured["active_fraction"] == pytest.approx(1 / 8)
    meter.reset()
    assert not meter.overall.update_called


def test_layers_are_chosen_by_glob_in_network_order():
    meter = SparsityMeter(network()[1].swapped)
    assert list(meter.select(None)) == ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    assert list(meter.select("*1*")) == ["blocks.1.mlp.act"]
    assert list(meter.select(["*1*", "*0*"])) == ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    with pytest.raises(InputError, match="layers 'stages' matches nothing; the layers are blocks.0"):
        meter.select(["stages"])
