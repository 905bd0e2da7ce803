"""The study of labels: what it counts, against loops, and its tables."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

from benchmarks.accuracy.study import Study
from benchmarks.labels import photographs
from benchmarks.labels.measure import TOPS, _passes, _read, _units, overlap, units_needed
from benchmarks.labels.tables import layers_alike, write_tables
from lwta.dissect.judged_layer import CONTROLS
from lwta.dissect.labelers import LayerData
from lwta.dissect.metrics import REPORTED


def test_units_needed_are_the_fewest_that_carry_nine_tenths():
    contributions = torch.tensor([[5.0, 4.0, -1.0, 0.0], [0.0, -1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert units_needed(contributions).tolist() == [2, 1, 4]
    random = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    for row, count in zip(random.abs(), units_needed(random).tolist(), strict=True):
        sizes = sorted(row.tolist(), reverse=True)
        assert sum(sizes[:count]) >= 0.9 * sum(sizes) - 1e-5
        assert sum(sizes[: count - 1]) < 0.9 * sum(sizes) + 1e-5


def test_overlap_is_the_mean_jaccard_index_of_pairs():
    generator = torch.Generator().manual_seed(1)
    fired, classes = torch.rand(12, 9, generator=generator) < 0.4, torch.arange(12) % 3
    sets = [set(row.nonzero()[:, 0].tolist()) for row in fired]
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]

    def mean(same):
        kept = [(i, j) for i, j in pairs if (classes[i] == classes[j]) == same]
        return np.mean([len(sets[i] & sets[j]) / max(1, len(sets[i] | sets[j])) for i, j in kept])

    assert overlap(fired, classes) == pytest.approx((mean(True), mean(False)))


def test_who_fires_and_what_carries_a_logit_in_layers_of_different_widths():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 10, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4),
    ).eval()  # fmt: skip
    pictures = Pictures([(20 * i, 250 - 20 * i, 7 * i) for i in range(12)], [i % 4 for i in range(12)])
    stub: Any = SimpleNamespace(model=model, transform=to_tensor, probe=lambda spec: pictures)
    fired, top, classes, needed, there, width = _passes(stub, {"1": 1, "3": 1}, "any", 12)
    assert (fired.shape, classes.tolist(), width) == ((12, 16), pictures.classes, 10)
    x = torch.stack([to_tensor(picture) for picture in pictures.pictures])
    first, last = model[:2](x), model[:4](x)
    expected = torch.cat([first.flatten(2).gt(0).any(2), last.flatten(2).gt(0).any(2)], 1)
    assert 0 < expected.float().mean() < 1
    assert torch.equal(fired, expected)
    assert not (top & ~expected).any()
    for i in range(12):
        logits = model[4:](last[[i]])[0]
        weight = model[6].weight[logits.argmax()] - model[6].weight.mean(0)  # over the mean logit
        contributions = weight * last[i].mean((1, 2))
        assert units_needed(contributions[None]).item() == needed[i]
        assert (contributions != 0).sum() == there[i]


@pytest.mark.parametrize("shift", [0.0, -9.0])  # units of GELU are below zero nearly everywhere
def test_a_unit_is_read_at_its_own_top(shift):
    values = np.random.default_rng(0).standard_normal((500, 7)).astype(np.float32) + np.float32(shift)
    whole = LayerData("a", *[None] * 5, values, torch.arange(500), "key")  # type: ignore[arg-type]
    assert _read(whole, None) is whole
    for share in TOPS:
        top = _read(whole, share)
        assert top.key != whole.key
        assert (top.values > 0).sum(0).tolist() == [500 * share] * 7
        assert (top.values == 0).sum(0).tolist() == [500 - 500 * share] * 7
        for unit in range(7):
            strongest = np.argsort(values[:, unit])[-int(500 * share) :]
            np.testing.assert_array_equal(np.argsort(top.values[:, unit])[-int(500 * share) :], strongest)


@pytest.fixture
def study(tmp_path):
    """A study of two networks with rows that were made up."""
    study = Study("toy", "runs", {name: None for name in ("gelu", "lwta")}, str(tmp_path))  # type: ignore[arg-type]
    keys = [{"variant": "gelu", "seed": 0}] + [{"variant": "lwta", "seed": seed} for seed in (0, 1)]
    measured = {
        f"{m} {n}{e}": 0.25 for m in REPORTED for n in ("label", *CONTROLS, "ahead") for e in ("", "_error")
    }
    counts = {"units": 40, "labelled": 30, "scored": 20, "selective": 10, "distinct": 7.0, "fires on": 0.5}
    counts |= {"mean_auroc": 0.75, "true_share": 0.5, "shuffled_share": np.nan}
    rows = [
        key
        | {"readout": readout, "similarity": similarity, "reading": reading, "layer": layer}
        | measured
        | counts
        for key in keys
        for readout in ("cls", "mean", "patches")
        for similarity in ("soft_wpmi", "cos_cubed")[: 1 if readout == "patches" else 2]
        for reading in (("all", "top 4%") if key["variant"] == "gelu" else ("all",))
        for layer in ("blocks.2.mlp.act", "blocks.3.mlp.act")
    ]
    frame = pd.DataFrame(rows)
    frame.loc[(frame["variant"] == "lwta") & (frame["seed"] == 1), "correlation label"] = 0.75
    frame.to_csv(tmp_path / "toy-labels.csv", index=False)
    fired = {"fired in an image": 0.5, "units for 90 %": 12.0, "contribute": 16.0, "last layer": 384}
    fired |= {f"overlap {w}{e}": 0.125 for w in ("within", "between") for e in ("", " at top 4%")}
    pd.DataFrame([key | fired for key in keys]).to_csv(tmp_path / "toy-firing.csv", index=False)
    trained = {"validate top1 argmax": 0.96875, "validate active, competing sites": 0.0417}
    trained |= {"validate participation ratio": 0.03}
    pd.DataFrame([key | trained for key in keys]).to_csv(tmp_path / "toy.csv", index=False)
    return study


def cells(text, start):
    """The cells of the rows that begin with ``start``, by the names of their columns."""
    lines, found = text.splitlines(), []
    for place, line in enumerate(lines):
        if line.startswith(start):
            head = next(i for i in range(place, -1, -1) if lines[i].startswith("|---")) - 1
            split = [[cell.strip() for cell in one.strip("|").split("|")] for one in (lines[head], line)]
            found.append(dict(zip(*split, strict=True)))
    return found


def test_the_tables_hold_the_means_over_seeds(study, tmp_path):
    text = write_tables(study).read_text()
    summary, network, *labels = cells(text, "| lwta |")
    expected = {
        "seeds": "2", "top-1": "96.9 %", "labelled": "75 %", "fires on": "50 %",
        "correlation, cls": "0.500 ± 0.250",
        "of every unit": "0.250 ± 0.125 (0.125 ± 0.000)",
        "with a true label": "12.5 ± 0.0 % (0.0 ± 0.0 %)", "carry nine tenths": "12 of 16",
    }  # fmt: skip
    assert expected.items() <= summary.items()
    assert network["overlap within / between classes"] == "0.12 / 0.12"
    assert (
        len(labels) == 5 + 9
    )  # labels of two readouts by two similarities, of patches by one; over controls
    assert all(row["correlation"] == "0.500 ± 0.250" for row in labels[:5])
    assert all(row["selective"] == "25.0 ± 0.0 %" and row["distinct"] == "7" for row in labels[:5])
    # Of shuffled labels the rows hold the differences; those of the others are made for the tables.
    assert [row["cos_cubed"] for row in labels[5:8]] == ["0.250 ± 0.000", "0.250 ± 0.250", "0.250 ± 0.250"]
    assert (tmp_path / "toy.png").stat().st_size > 10_000


def test_the_error_of_one_seed_is_over_units_of_layers_alike(study):
    text = write_tables(study).read_text()
    (summary, *others), (narrow, *_) = cells(text, "| gelu |"), cells(text, "| gelu, at its top 4% |")
    alone = f"0.250 ± {np.hypot(0.25, 0.25) / 2:.3f}"
    assert {summary[name] for name in ("correlation, cls", *CONTROLS)} == {alone}
    assert {narrow[name] for name in ("correlation", *CONTROLS, "AUROC", "constant AUROC")} == {alone}
    over = [row["cos_cubed"] for row in others if "cos_cubed" in row][:3]
    assert over == [alone, "0.000 ± 0.250", "0.000 ± 0.250"]


def test_units_without_a_score_count_as_zero_among_all():
    rng = np.random.default_rng(4)
    values = [np.concatenate([rng.random(30), np.zeros(10)]), np.concatenate([rng.random(8), np.zeros(32)])]
    rows = [
        {
            "variant": "a",
            "seed": 0,
            "readout": "cls",
            "similarity": "cos",
            "reading": "all",
            "layer": str(layer),
        }
        | {"units": 40, "labelled": 30, "scored": scored, "selective": 0, "true_share": np.nan}
        | {"shuffled_share": np.nan, "correlation label": kept.mean()}
        | {"correlation label_error": kept.std(ddof=1) / scored**0.5}
        | {"correlation shuffled": 0.5, "correlation shuffled_error": 0.0, "correlation constant": 0.6}
        | {"correlation constant_error": 0.03, "correlation random": 0.1, "correlation random_error": 0.0}
        | {"correlation ahead": kept.mean() - 0.5, "correlation ahead_error": 0.01}
        for layer, (scored, kept) in enumerate([(30, values[0][:30]), (8, values[1][:8])])
    ]
    (found,) = layers_alike(pd.DataFrame(rows)).to_dict("records")
    assert found["every unit label"] == pytest.approx(np.mean([each.mean() for each in values]))
    assert found["every unit shuffled"] == pytest.approx(0.5 * (30 + 8) / 80)
    assert found["over constant"] == pytest.approx(
        np.mean([values[0][:30].mean(), values[1][:8].mean()]) - 0.6
    )
    each = [values[k][:n].std(ddof=1) / n**0.5 for k, n in enumerate((30, 8))]
    assert found["over constant_error"] == pytest.approx(
        np.hypot(*(np.hypot(error, 0.03) for error in each)) / 2
    )
    assert found["over random_error"] == pytest.approx(np.hypot(*each) / 2)
    errors = [each.std(ddof=1) / 40**0.5 for each in values]
    assert found["every unit label_error"] == pytest.approx(np.hypot(*errors) / 2)
    assert (found["true of all"], found["labelled"]) == (0, 0.75)


def test_a_layer_without_a_score_is_not_left_out_of_a_mean():
    row = {"variant": "a", "seed": 0, "readout": "cls", "similarity": "cos", "reading": "all", "units": 4}
    row |= {"labelled": 0, "selective": 0, "true_share": np.nan, "shuffled_share": np.nan}
    controls = [f"{name}{end}" for name in (*CONTROLS, "ahead") for end in ("", "_error")]
    row |= {f"correlation {name}": 0.0 for name in controls}
    known = {"layer": "b", "scored": 4, "correlation label": 0.5, "correlation label_error": 0.1}
    none = {"layer": "a", "scored": 0, "correlation label": np.nan, "correlation label_error": np.nan}
    (found,) = layers_alike(pd.DataFrame([row | known, row | none])).to_dict("records")
    assert np.isnan(found["correlation label"])
    assert found["every unit label"] == pytest.approx(0.25)


class Pictures:
    """Plain pictures of given colours, with their classes."""

    def __init__(self, colours, classes):
        self.pictures = [
            Image.fromarray(np.full((8, 8, 3), colour, np.uint8)) if isinstance(colour, tuple) else colour
            for colour in colours
        ]
        self.classes = classes

    def __len__(self):
        return len(self.classes)

    def __getitem__(self, index):
        return self.pictures[index], self.classes[index]


@pytest.mark.parametrize(
    ("concept", "colour"),
    [
        ("blue picture", (40, 80, 220)),
        ("green picture", (60, 180, 70)),
        ("red picture", (220, 30, 40)),
        ("bright picture", (250, 250, 250)),
        ("dark picture", (5, 5, 10)),
        ("grey picture", (128, 128, 128)),
    ],
)
def test_what_pixels_tell_of_a_photograph(concept, colour):
    others = [(150, 120 + i, 60) for i in range(19)]  # shades of ochre
    shown = photographs.annotations(Pictures([*others, colour], [0] * 20))
    column = shown[:, photographs.CONCEPTS.index(concept)]
    assert column[19] == 1, column
    assert column.sum() <= 2  # a tenth of them


def test_a_rough_photograph_is_one_of_many_edges():
    edges = Image.fromarray(np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 200).convert("RGB")
    shown = photographs.annotations(Pictures([(100, 100, 100)] * 19 + [edges], [0] * 20))
    assert shown[:, photographs.CONCEPTS.index("rough picture")].nonzero()[0].tolist() == [19]


def test_what_classes_tell_of_a_photograph():
    shown = photographs.annotations(Pictures([(90, 60, 30)] * 10, list(range(10))))
    told = dict(zip(photographs.CONCEPTS, shown.T, strict=True))
    assert told["bird"].nonzero()[0].tolist() == [2]
    assert told["mammal"].nonzero()[0].tolist() == [3, 4, 5, 7]
    np.testing.assert_array_equal(told["animal"] + told["vehicle"], np.ones(10))


def test_units_of_feature_maps_are_those_of_tokens():
    maps = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(2))
    tokens = maps.flatten(2).mT
    torch.testing.assert_close(_units(maps, 1), tokens, rtol=0, atol=0)
    torch.testing.assert_close(_units(tokens, 2), tokens, rtol=0, atol=0)
