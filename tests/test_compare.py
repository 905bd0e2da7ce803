"""Comparing runs: what the command says, against single images, other commands and the files it writes."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import dissect
import train
from lwta.dissect.evaluation import write_evaluation
from lwta.dissect.labels import read_labels
from lwta.dissect.report.comparison import JUDGEMENT, comparison_frame, comparison_text, write_comparison
from lwta.dissect.truth import TruthScore
from models.run import load_run
from tests.comparing import compare_args, line, numbers, row, set_data
from tests.conftest import SPLITS, refused
from tests.judgements import FOUND
from tests.test_train import rows


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
    assert {path.name for path in out.iterdir()} == {
        "comparison.csv", "comparison.png", "index.html", "inputs",
    }  # fmt: skip
    assert f"wrote {out / 'comparison.csv'}, comparison.png and index.html" in capsys.readouterr().out
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
        found = FOUND._replace(
            labels=labels.identity, truth=TruthScore(1_040, 16, 0.375, 0.1, 0.9, 0.015, 0.002)
        )
        write_evaluation(run, found, pd.DataFrame())
    dissect.main(compare_args(runs))
    said = capsys.readouterr().out
    assert line(said, "true labels, of selective units") == ["37.5 % ± 1.5"]
    assert line(said, "the same, labels shuffled") == ["10.0 % ± 0.2"]
    assert line(said, "selective units") == ["1,040"]
    assert line(said, "correlation of labels, other images") == ["0.450 ± 0.010"]
    assert line(said, "correlation of random concepts, other images") == ["0.150 ± 0.040"]
    assert line(said, "better than chance, of labels judged") == ["7 of 9"]
    assert line(said, "better than chance, one label for all") == ["2 of 9"]
    assert line(said, "better than chance, labels shuffled") == ["1 of 9"]
    assert line(said, "better than chance, random concepts") == ["0 of 9"]
    found = numbers(runs[0].parent)
    assert found["true_share"].fillna(-1).tolist() == [0.375, -1]
    assert found["shuffled_share"].fillna(-1).tolist() == [0.1, -1]
    assert found["true_error"].fillna(-1).tolist() == [0.015, -1]
    assert found["selective_units"].fillna(-1).tolist() == [1_040, -1]
    assert found["correlation_shuffled"].fillna(-1).tolist() == pytest.approx([0.25, -1])
    assert found["judge"].fillna("").tolist() == ["the factors of the embedded world on validation[5:9]", ""]
    (runs[0] / "evaluation.json").unlink()
    dissect.main(compare_args(runs))
    assert not set(JUDGEMENT) & set(numbers(runs[0].parent))
    said = capsys.readouterr().out
    assert "selective" not in said
    assert "other images" not in said
    (runs[0] / "evaluation.json").write_text("{}")
    assert "evaluation.json cannot be read" in refused(dissect.main, compare_args(runs))


def test_labels_judged_by_others_are_said_not_to_compare(runs, capsys):
    def told(*judges):
        for run, (judge, identity) in zip(runs, judges, strict=True):
            labels = read_labels(run)
            assert labels is not None
            found = FOUND._replace(labels=labels.identity, judge=judge, judge_identity=identity)
            write_evaluation(run, found, pd.DataFrame())
        dissect.main(compare_args(runs))
        return capsys.readouterr().out

    assert "do not compare" not in told(("a.csv", "0"), ("a.csv", "0"))
    assert (
        "correlations on other images do not compare: judged by a.csv on validation[5:9], or the images, of "
        "other content\n"
    ) in told(("a.csv", "0"), ("a.csv", "1"))
    said = told(("annotations", "0"), ("another CLIP", "1"))
    assert (
        "correlations on other images do not compare: judged by annotations on validation[5:9] / "
        "another CLIP on validation[5:9]\n" in said
    )
    assert "selective" not in said  # judged, and the truth is not known


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
