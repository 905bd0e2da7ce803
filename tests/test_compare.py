"""Comparing runs: every number against a plain loop or a formula by hand, and what is refused."""

import contextlib
import io
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import commands.compare
import dissect
import models.speed
import train
from lwta.dissect.evaluate import TruthScore, write_evaluation
from lwta.dissect.labels import read_labels
from lwta.dissect.report.comparison import comparison_frame, comparison_text, write_comparison
from lwta.errors import InputError
from lwta.layers import watch
from models.activity import Activity, ActivityMeter
from models.backbone import create_backbone
from models.compare import Judged, describe, judge_all, paired, run_names, split_images, wilson
from models.run import load_run
from models.sites import Site
from models.speed import images_per_second
from models.swap import SwapReport
from tests.conftest import SPLITS, TinyRun, refused
from tests.test_train import rows


class Compared(NamedTuple):
    """Two labelled runs and what comparing them printed; their folder also holds the files."""

    sparse: Path
    dense: Path
    said: str


@pytest.fixture(scope="session")
def compared(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """The sparse one is barely trained and its competing layers weigh tenfold, so that its argmax, its
    samples and the dense run are right on different images."""
    folder = tmp_path_factory.mktemp("runs")
    sparse, dense = folder / "sparse", folder / "dense"
    TinyRun(image_folder, sparse).fit(trainer__max_epochs=1, model__noise=5.0, model__lr=1e-3)
    TinyRun(image_folder, dense).fit(trainer__max_epochs=1, model__competitors="null", model__lr=3e-3)
    best = sparse / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    for name, weight in checkpoint["state_dict"].items():
        weight *= 10 if ".mlp." in name else 1
    torch.save(checkpoint, best)
    for run in (sparse, dense):
        dissect.main(["label", f"--run={run}"])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        dissect.main(["compare", str(sparse), str(dense), "--batch_size=12"])
    return Compared(sparse, dense, said.getvalue())


@pytest.fixture
def runs(compared: Compared, tmp_path: Path) -> list[Path]:
    """Copies of the two runs that a test may change."""
    copies = [tmp_path / "runs" / run.name for run in compared[:2]]
    return [Path(shutil.copytree(run, copy)) for run, copy in zip(compared[:2], copies, strict=True)]


def compare_args(runs: list[Path], *options: str) -> list[str]:
    return ["compare", *map(str, runs), *options]


def numbers(folder: Path) -> pd.DataFrame:
    """The CSV file, a row for each run by its name."""
    return pd.read_csv(folder / "comparison" / "comparison.csv", index_col="run")


def line(text: str, title: str) -> list[str]:
    """The cells of a line of the printed table."""
    (found,) = [row for row in text.splitlines() if row.startswith(f"{title}  ")]
    return re.split(r"\s{2,}", found.removeprefix(title).strip())


# --- who fired --------------------------------------------------------------------------------


def test_activity_is_what_loops_over_images_units_and_positions_count():
    torch.manual_seed(0)
    backbone, report = create_backbone(
        "resnet10t", 3, backbone_args={"channels": [16, 16, 24, 32]}, competitors=8, placement="inner"
    )
    backbone.eval()
    assert report.left
    meter, outputs = ActivityMeter(report), {}
    for name in meter.sites:
        backbone.get_submodule(name).register_forward_hook(
            lambda module, inputs, out, name=name: outputs.setdefault(name, []).append(out.clone())
        )
    with torch.no_grad():
        for count in (3, 2):
            with watch(backbone, meter.dims) as calls:
                backbone(torch.randn(count, 3, 32, 32))
            meter.update(calls, count)
    competing = [site.name for site in report.swapped]
    everywhere = {name: torch.cat(parts).numpy() for name, parts in outputs.items()}  # (N, D, H, W)
    seen = meter.compute()
    for names, position, ever in (
        (competing, seen.position_competing, seen.ever_competing),
        (list(everywhere), seen.position_all, seen.ever_all),
    ):
        maps = [unit for name in names for image in everywhere[name] for unit in image]
        assert ever == pytest.approx(np.mean([bool((unit != 0).any()) for unit in maps]))
        assert position == pytest.approx(sum((u != 0).sum() for u in maps) / sum(u.size for u in maps))
    assert seen.position_competing == pytest.approx(1 / 8)
    assert seen.ever_competing > 1.5 / 8
    ratios, weights = [], []
    for name in competing:
        for at in np.moveaxis(everywhere[name].astype(np.float64), 1, -1).reshape(
            -1, everywhere[name].shape[1]
        ):
            ratios.append((at**2).sum() ** 2 / (at.size * (at**4).sum()))
            weights.append(at.size)
    assert seen.participation_ratio == pytest.approx(np.average(ratios, weights=weights), rel=1e-5)
    units = [everywhere[name][:, unit] for name in competing for unit in range(everywhere[name].shape[1])]
    assert (seen.dead_units, seen.units) == (sum(not unit.any() for unit in units), len(units))
    assert (seen.sites_competing, seen.sites_all, seen.sites_uncounted) == (
        len(competing),
        len(everywhere),
        0,
    )


class Shared(nn.Module):
    """One ReLU called at two widths, one on images folded with windows, one whose axis nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(3, 4), nn.Linear(4, 6)
        self.shared, self.folded, self.unknown = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.shared(self.wide(self.shared(self.narrow(x))))
        return self.unknown(x - 1) + self.folded(x.reshape(-1, 3)).reshape(x.shape)


def test_a_module_called_twice_is_two_sites_and_sites_without_known_axes_are_left_out():
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(5, 3)
    found = [
        Site("shared", "ReLU", -1, (5, 6), 2),
        Site("folded", "ReLU", -1, (10, 3), 1),
        Site("unknown", "ReLU", None, (5, 6), 1),
    ]
    meter = ActivityMeter(SwapReport([], found, found))
    with torch.no_grad(), watch(model, meter.dims) as calls:
        model(x)
    meter.update(calls, len(x))
    first = model.narrow(x).relu()
    second = model.wide(first).relu()
    seen = meter.compute()
    assert seen.units == 4 + 6
    assert seen.sites_uncounted == 2
    fired = int((first > 0).sum() + (second > 0).sum())
    assert seen.ever_all == pytest.approx(fired / (5 * 10))  # one position for each image
    fired += int((second > 1).sum() + (second > 0).sum())
    assert seen.position_all == pytest.approx(fired / (5 * (4 + 6 + 6 + 6)))
    dead = (~(first > 0).any(0)).sum() + (~(second > 0).any(0)).sum()
    assert seen.dead_units == dead


# --- intervals and tests ----------------------------------------------------------------------


@pytest.mark.parametrize(("right", "images"), [(0, 24), (5, 24), (24, 24), (5785, 10_000)])
def test_the_interval_is_wilsons(right, images):
    z, share = 1.959963984540054, right / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    assert wilson(right, images) == pytest.approx((centre - half, centre + half), abs=1e-12)


def judged(right: torch.Tensor, targets: torch.Tensor | None = None) -> Judged:
    count = len(right)
    targets = torch.zeros(count, dtype=torch.long) if targets is None else targets
    activity = Activity(0.5, 0.5, 0.5, 0.5, 0.5, 0, 1, 1, 1, 0)
    return Judged(Path("run"), targets, torch.zeros(count, 32), {"argmax": right}, activity)


@pytest.mark.parametrize(("lost", "won"), [(3, 9), (9, 3), (1, 0), (4, 4), (0, 6)])
def test_the_paired_test_is_mcnemars_and_its_error_that_of_the_differences(lost, won):
    first = torch.tensor([True] * lost + [False] * won + [True] * 10 + [False] * 7)
    other = torch.tensor([False] * lost + [True] * won + [True] * 10 + [False] * 7)
    found = paired(judged(first), judged(other))
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1)) / 2**n
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    differences = other.double() - first.double()
    assert found.difference == pytest.approx(100 * float(differences.mean()))
    assert found.difference_error == pytest.approx(
        100 * float(differences.std(correction=0)) / len(first) ** 0.5
    )
    assert (found.wrong_alone, found.right_alone) == (lost, won)


def test_identical_networks_do_not_differ(compared):
    opened = [load_run(compared.sparse), load_run(compared.sparse)]
    first, again = judge_all(opened, [split_images(run, "test") for run in opened], 24)
    assert torch.equal(first.right["10_samples"], again.right["10_samples"])
    assert paired(first, again) == (0.0, 0.0, 0, 0, 1.0)


def test_images_that_do_not_decode_count_nowhere():
    right = torch.tensor([True, True, False, False])
    targets = torch.tensor([0, 1, 2, -1])
    assert paired(
        judged(right, targets), judged(~right & (targets >= 0), targets)
    ).difference == pytest.approx(-100 / 3)


# --- speed ------------------------------------------------------------------------------------


def test_runs_take_turns_and_the_median_round_counts(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(models.speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def run(name: str, seconds: float) -> SimpleNamespace:
        def backbone(batch):
            assert batch.shape == (4, 3)
            order.append(name)
            now[0] += seconds * math.ceil(
                len(order) / 2
            )  # each round is slower, so that it shows which count

        return SimpleNamespace(model=SimpleNamespace(backbone=backbone, device=torch.device("cpu")))

    class Images(list):
        @staticmethod
        def collate_indexed(items):
            return torch.arange(len(items)), (torch.stack(items), None), torch.zeros(len(items))

    images = Images(torch.zeros(3) for _ in range(6))
    found = images_per_second([run("a", 2.0), run("b", 4.0)], [images, images], batch_size=4)  # type: ignore
    middle = models.speed._WARM_UP + (models.speed._ROUNDS + 1) / 2
    assert [row["images_per_second"] for row in found] == pytest.approx([4 / 2 / middle, 4 / 4 / middle])
    assert order == ["a", "b"] * (len(order) // 2)
    assert {(row["timed_images"], row["device"]) for row in found} == {(4, "cpu")}


# --- the command ------------------------------------------------------------------------------


def test_the_numbers_are_those_of_single_images_and_of_train_test(compared):
    found = numbers(compared.sparse.parent)
    for path in compared[:2]:
        run = load_run(path)
        images = run.data.dataset("test")
        transform = run.data.eval_transform()
        with torch.no_grad():
            said = [int(run.model(transform(image)[None]).argmax()) for image, _ in images]
        right = sum(guess == target for guess, (_, target) in zip(said, images, strict=True))
        assert found.loc[path.name, "top1_argmax"] == pytest.approx(right / SPLITS["test"])
        assert found.loc[path.name, "parameters"] == sum(p.numel() for p in run.model.backbone.parameters())
        assert found.loc[path.name, "weights"] == run.weights
        labels = pd.read_parquet(path / "labels.parquet")
        labels = labels[labels["label"].notna()]
        assert found.loc[path.name, "label_score"] == pytest.approx(labels["score"].mean(), nan_ok=True)
        assert found.loc[path.name, "labelled_units"] == len(labels)
    assert found.loc["sparse", "position_competing"] == pytest.approx(1 / 24)
    assert found.loc["dense", "position_competing"] == pytest.approx(1.0, abs=0.01)
    assert found["competitors"].fillna(0).tolist() == [24, 0]
    assert found["images"].tolist() == [24, 24]
    assert found["top1_argmax"].nunique() == 2  # else much of what is tested here would not show
    assert found.loc["sparse", ["top1_argmax", "top1_1_sample", "top1_10_samples"]].nunique() == 3
    assert found.loc["dense", "top1_10_samples"] == found.loc["dense", "top1_argmax"]


def test_samples_are_those_of_train_test(compared, runs):
    train.main(["test", f"--config={compared.sparse / 'config.yaml'}", f"--run={runs[0]}"])
    logged = [row for row in rows(runs[0]) if row.get("test/top1/10_samples")][-1]
    found = numbers(compared.sparse.parent).loc["sparse"]
    for evaluation in ("argmax", "1_sample", "10_samples"):
        assert found[f"top1_{evaluation}"] == pytest.approx(float(logged[f"test/top1/{evaluation}"]))
    assert found["position_competing"] == pytest.approx(float(logged["test/active_fraction"]))
    assert found["dead_units"] == float(logged["test/dead_units"])


def test_the_table_shows_the_numbers_of_the_file(compared):
    found, text = numbers(compared.sparse.parent), compared.said
    for title, column in (
        ("top-1, argmax", "top1_argmax"),
        ("top-1, 1 sample", "top1_1_sample"),
        ("top-1, 10 samples", "top1_10_samples"),
    ):
        wanted = [
            f"{100 * row[column]:.2f} % [{100 * row[f'{column}_low']:.2f}, {100 * row[f'{column}_high']:.2f}]"
            for _, row in found.iterrows()
        ]
        assert line(text, title) == wanted
    for title, column in (
        ("fire at a position, competing sites", "position_competing"),
        ("fire at a position, all sites", "position_all"),
        ("fire anywhere in an image, competing", "ever_competing"),
        ("fire anywhere in an image, all sites", "ever_all"),
        ("participation ratio, competing", "participation_ratio"),
    ):
        assert line(text, title) == [f"{100 * value:.2f} %" for value in found[column]]
    assert line(text, "competitors") == ["24", "none (GELU)"]
    assert line(text, "dead units, competing") == [f"{n} of 192" for n in found["dead_units"]]
    assert line(text, "images per second") == [f"{n:,.0f} on cpu" for n in found["images_per_second"]]
    other = found.loc["dense"]
    assert f"dense against sparse: {other['difference']:+.2f} points" in text
    assert f"McNemar p = {other['p_value']:.3g}" in text
    assert other["difference"] == pytest.approx(
        100 * (found["top1_argmax"].iloc[1] - found["top1_argmax"].iloc[0])
    )
    assert "true labels" not in text
    assert "label scores do not compare" not in text


def test_moved_runs_and_data_compare_as_before(compared, runs, image_folder, tmp_path, capsys):
    data = shutil.copytree(image_folder, tmp_path / "data")
    out = tmp_path / "elsewhere"
    dissect.main(compare_args(runs, f"--root={data}", f"--out={out}", "--batch_size=12"))
    assert {path.name for path in out.iterdir()} == {"comparison.csv", "comparison.png"}
    assert str(out / "comparison.csv") in capsys.readouterr().out
    again = pd.read_csv(out / "comparison.csv", index_col="run")
    pd.testing.assert_frame_equal(
        again.drop(columns="images_per_second"),
        numbers(compared.sparse.parent).drop(columns="images_per_second"),
    )


def test_another_transform_of_the_same_images_is_no_other_data(runs):
    set_data(runs[1], mean=[0.1, 0.2, 0.3], interpolation="bilinear")
    dissect.main(compare_args(runs))
    assert numbers(runs[0].parent)["images"].tolist() == [24, 24]


def test_one_run_is_described_alone(runs, capsys):
    dissect.main(compare_args(runs[:1], "--split=validate"))
    said = capsys.readouterr().out
    assert "against" not in said
    assert line(said, "competitors") == ["24"]
    assert numbers(runs[0].parent).index.tolist() == ["sparse"]


def test_true_labels_are_shown_where_these_labels_of_a_run_were_judged(runs, capsys):
    labels = read_labels(runs[0])
    assert labels is not None
    for run in runs:  # the other run's labels are not those that were judged
        write_evaluation(run, TruthScore(1_040, 16, 0.375, 0.1), "other images", labels.identity)
    dissect.main(compare_args(runs))
    said = capsys.readouterr().out
    assert line(said, "true labels, of selective units") == ["37.50 %"]
    assert line(said, "the same, labels shuffled") == ["10.00 %"]
    assert line(said, "selective units") == ["1,040"]
    found = numbers(runs[0].parent)
    assert found["true_share"].fillna(-1).tolist() == [0.375, -1]
    assert found["shuffled_share"].fillna(-1).tolist() == [0.1, -1]
    assert found["selective_units"].fillna(-1).tolist() == [1_040, -1]
    (runs[0] / "evaluation.json").unlink()
    dissect.main(compare_args(runs))
    assert not {"true_share", "shuffled_share", "selective_units"} & set(numbers(runs[0].parent))
    assert "selective" not in capsys.readouterr().out
    (runs[0] / "evaluation.json").write_text("{}")
    assert "evaluation.json cannot be read" in refused(dissect.main, compare_args(runs))


def test_labels_made_differently_are_said_not_to_compare(runs, capsys):
    dissect.main(["label", f"--run={runs[1]}", "--probe=train"])
    capsys.readouterr()
    dissect.main(compare_args(runs))
    (said,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("label scores")]
    assert "probe (validate / train)" in said


def test_a_broken_image_is_named_and_left_out(runs, image_folder, tmp_path, capsys):
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    broken = sorted((data / "test" / "green").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:40])
    dissect.main(compare_args(runs, f"--root={data}", "--batch_size=1"))
    assert f"left out 1 images that do not decode: green/{broken.name}" in capsys.readouterr().err
    found = numbers(runs[0].parent)
    assert found["images"].tolist() == [23, 23]
    shares = found["top1_argmax"] * 23
    np.testing.assert_allclose(shares, shares.round(), atol=1e-9)


def row(run: str, active: float, top1: float) -> dict[str, object]:
    """A row of a comparison, all numbers made up."""
    shown = describe_columns() | {"run": run, "split": "test", "position_competing": active}
    for evaluation in ("argmax", "1_sample", "10_samples"):
        shown |= {f"top1_{evaluation}": top1}
        shown |= {f"top1_{evaluation}_low": top1 - 0.01, f"top1_{evaluation}_high": top1 + 0.01}
    return shown


def describe_columns() -> dict[str, object]:
    report = SimpleNamespace(chosen=[Site("act", "LWTA", -1, (1, 24), 1)])
    model = SimpleNamespace(
        hparams={"backbone": "vit", "competitors": 24}, report=report, backbone=nn.Linear(1, 1)
    )
    seen = judged(torch.tensor([True]))
    labels = {"label_score": math.nan, "labelled_units": 0, "label_units": 24}
    labels |= dict.fromkeys(("true_share", "shuffled_share", "selective_units"))
    speed = {"images_per_second": 1.0, "device": "cpu"}
    return describe(SimpleNamespace(model=model, weights="w"), seen, seen) | speed | labels  # type: ignore


def test_many_runs_with_long_names_stay_in_the_width_and_each_is_drawn(tmp_path):
    names = [f"cifar10_vit_lwta24_deterministic_{k}" for k in range(5)]
    comparison = comparison_frame(
        row(name, [0.04, 1.0][k > 2], 0.5 + k / 100) for k, name in enumerate(names)
    )
    text = comparison_text(comparison, [{"weights": name} for name in names])
    table = text.split("\n\ncifar10")[0]
    assert max(map(len, table.splitlines())) <= 110
    assert all(name in table for name in names)
    assert "none labelled" in table
    _, picture = write_comparison(tmp_path, comparison)
    with Image.open(picture) as image:
        colours = {tuple(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    palette = {(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)}
    assert palette <= colours


# --- bad input --------------------------------------------------------------------------------


def set_data(run: Path, **fields: object) -> None:
    """Change the data section of a run's config."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= fields
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def other_pixels(test: Path) -> None:
    with Image.open(test / "green" / "003.png") as image:
        pixels = np.asarray(image).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(test / "green" / "003.png")


def other_class(test: Path) -> None:
    """The same images in the same order, the last blue one now called green."""
    for path in sorted((test / "green").iterdir(), reverse=True):
        path.rename(path.with_name(f"{int(path.stem) + 1:03}.png"))
    last = sorted((test / "blue").iterdir())[-1]
    last.rename(test / "green" / "000.png")


def broken_image(test: Path) -> None:
    (test / "red" / "007.png").write_bytes(b"no image")


def fewer_images(test: Path) -> None:
    (test / "red" / "007.png").unlink()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (other_pixels, "sparse and .*dense are judged on different data: image 11 or its class"),
        (other_class, "sparse and .*dense are judged on different data: image 7 or its class"),
        (broken_image, "sparse and .*dense are judged on different data: image 23 or its class"),
        (fewer_images, "sparse has 24 images to be judged on and .*dense has 23"),
    ],
)
def test_runs_on_other_data_are_refused_and_nothing_is_written(
    runs, image_folder, tmp_path, change, sentence
):
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    change(data / "test")
    set_data(runs[1], root=str(data))
    message = refused(dissect.main, compare_args(runs, "--batch_size=24"))
    assert re.search(sentence, message), message
    assert not (runs[0].parent / "comparison").exists()


def test_runs_of_other_classes_are_refused(compared):
    opened = [load_run(compared.sparse), load_run(compared.dense)]
    opened[1].model.hparams["class_names"] = ["sea", "leaf", "fire"]
    images = [split_images(run, "test") for run in opened]
    with pytest.raises(InputError, match="tell different classes apart .blue, green, red .* sea, leaf, fire"):
        judge_all(opened, images, 24)


def test_a_split_without_an_image_is_refused(runs, image_folder, tmp_path):
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    for path in (data / "test").glob("*/*.png"):
        path.write_bytes(b"no image")
    message = refused(dissect.main, compare_args(runs, f"--root={data}"))
    assert "no image of the split decodes" in message


def test_a_run_without_labels_is_refused_before_any_work(runs, monkeypatch):
    (runs[1] / "labels.parquet").unlink()
    monkeypatch.setattr(commands.compare, "judge_all", lambda *_: pytest.fail("judged"))
    message = refused(dissect.main, compare_args(runs))
    assert f"{runs[1]} has no labels" in message
    assert f"dissect.py label --run {runs[1]}" in message


def test_labels_of_other_weights_are_refused(runs):
    for name in ("labels.parquet", "exemplars.parquet"):
        shutil.copy(runs[0] / name, runs[1] / name)
    assert "was made from other weights" in refused(dissect.main, compare_args(runs))


def test_labels_of_some_units_do_not_compare(runs):
    (runs[0] / "labels.parquet").unlink()
    dissect.main(["explain", f"--run={runs[0]}", "test:0"])
    message = refused(dissect.main, compare_args(runs))
    assert "only some units of blocks.1.mlp.act are labelled, those that explain came upon" in message
    assert f"label all with dissect.py label --run {runs[0]}" in message
    dissect.main(["label", f"--run={runs[0]}"])
    dissect.main(compare_args(runs))
    assert numbers(runs[0].parent)["label_units"].tolist() == [192, 192]


def test_the_same_run_twice_is_refused(runs):
    again = runs[0].parent / "dense" / ".." / "sparse"
    assert "is given twice" in refused(dissect.main, compare_args([*runs, again]))


def test_runs_of_one_name_are_told_apart_by_their_folders():
    assert run_names(["runs/a", "old/b"]) == ["a", "b"]
    assert run_names(["runs/a", "old/a"]) == ["runs/a", "old/a"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nowhere"], "nowhere is no run: it has no config.yaml"),
        (["--split=holdout"], "there is no split 'holdout'"),
        (["--batch_size=0"], "batch_size is at least 1"),
        (["--out={run}/config.yaml"], "config.yaml is a file; name a folder with --out"),
    ],
)
def test_bad_input_is_one_sentence(compared, options, sentence):
    options = [option.format(run=compared.sparse) for option in options]
    assert sentence in refused(dissect.main, ["compare", str(compared.sparse), *options])
