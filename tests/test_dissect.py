"""Labelling and explaining from the command line, over a run trained here, and bad input."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dissect
from tests.conftest import SPLITS, TinyRun, refused


@pytest.fixture(scope="session")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells three colours apart."""
    folder = tmp_path_factory.mktemp("runs") / "colours"
    TinyRun(image_folder, folder).fit(trainer__max_epochs=6, model__lr=1e-2)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "colours"))


def image_of(image_folder: Path, colour: str) -> Path:
    return sorted((image_folder / "test" / colour).iterdir())[0]


def test_label_writes_every_unit_once(run, capsys):
    dissect.main(["label", f"--run={run}", "--probe=train"])
    labels = pd.read_parquet(run / "labels.parquet")
    assert len(labels) == 2 * 96
    assert not labels.duplicated(["layer", "unit"]).any()
    assert set(labels["label"].dropna()) <= {"blue", "green", "red"}
    assert labels["label"].notna().sum() > 0
    unlabelled = labels[labels["label"].isna()]
    assert unlabelled["reason"].notna().all()
    assert (labels["wins"].groupby([labels["layer"], labels["unit"] // 24]).sum() == SPLITS["train"]).all()
    again = pd.read_csv(run / "labels.csv")
    assert again["label"].fillna("").tolist() == labels["label"].fillna("").tolist()
    assert "blocks.1.mlp.act: 96 units" in capsys.readouterr().out


def test_a_concept_file_gives_the_labels_of_its_columns(run, tmp_path):
    dissect.main(["label", f"--run={run}", "--probe=train"])
    own = pd.read_parquet(run / "labels.parquet")
    classes = np.repeat(np.eye(3, dtype=int), SPLITS["train"] // 3, axis=0)
    pd.DataFrame(classes, columns=["sea", "leaf", "fire"]).to_csv(tmp_path / "concepts.csv", index=False)
    dissect.main(["label", f"--run={run}", "--probe=train", f"--concepts={tmp_path / 'concepts.csv'}"])
    renamed = pd.read_parquet(run / "labels.parquet")
    words = {"blue": "sea", "green": "leaf", "red": "fire"}
    assert renamed["label"].dropna().tolist() == [words[text] for text in own["label"].dropna()]
    np.testing.assert_allclose(renamed["score"].dropna(), own["score"].dropna(), rtol=1e-5)


def test_explain_names_the_class_the_winners_and_what_silencing_changes(run, image_folder, capsys):
    dissect.main(["label", f"--run={run}", "--probe=train"])
    capsys.readouterr()
    image = image_of(image_folder, "red")
    dissect.main(["explain", f"--run={run}", str(image), "test:0", "--json"])
    red, blue = json.loads(capsys.readouterr().out)
    assert red["classes"][0][0] == "red"
    assert blue["classes"][0][0] == "blue"
    assert [layer["layer"] for layer in red["layers"]] == ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    for layer in red["layers"]:
        assert len(layer["fired"]) == 96 // 24
        assert layer["fired_per_position"] == pytest.approx(1 / 24)
        assert all(unit["silenced"] is not None for unit in layer["fired"])
        assert all(unit["excluded"] is not None for unit in layer["fired"])
    pages = {page.name for page in (run / "explanations").iterdir()}
    assert pages == {f"{image.stem}.html", "test-0.html", "index.html"}


def named(layer):
    """Units that a layer's explanation names: those that fired, and rivals of those that were measured."""
    return {unit["unit"] for unit in layer["fired"]} | {
        rival["unit"] for unit in layer["fired"] for rival in unit["rivals"]
    }


def test_explain_prints_a_table_and_takes_layers_and_a_target(run, image_folder, capsys):
    image = image_of(image_folder, "green")
    asked = ["explain", f"--run={run}", str(image), "--layers=blocks.*", "--target=blue", "--top=2"]
    dissect.main(asked)
    captured = capsys.readouterr()
    assert "logit of blue above the mean" in captured.out
    assert "blocks.0.mlp.act: 4 of 96 units fired (4.17 %) at the class token" in captured.out
    assert "not labelled" not in captured.out  # what fired and had no label has one now, or a reason
    labels = pd.read_parquet(run / "labels.parquet").set_index(["layer", "unit"])
    dissect.main([*asked, "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert set(labels.index) == {(layer["layer"], unit) for layer in found["layers"] for unit in named(layer)}
    lines = [line.split(maxsplit=1) for line in captured.out.splitlines() if re.match(r" +\d", line)]
    assert len(lines) == 2 * 2
    for layer, (unit, said) in zip(["blocks.0.mlp.act"] * 2 + ["blocks.1.mlp.act"] * 2, lines, strict=True):
        row = labels.loc[(layer, int(unit))]
        assert said.startswith(row["label"] if pd.notna(row["label"]) else f"({row['reason']})")


def test_without_a_run_explain_labels_on_the_images_it_is_given_and_says_so_where_it_has_none(
    image_folder, tmp_path, capsys
):
    asked = ["explain", "--model=timm:resnet10t", "--weights=random", "--image_size=32"]
    asked += [f"--out={tmp_path / 'out'}", str(image_of(image_folder, "green")), "--top=3"]
    dissect.main(asked)
    captured = capsys.readouterr()
    assert "no labels: name images to label on with --probe" in captured.err
    assert captured.out.count("(not labelled)") == 3
    assert not (tmp_path / "out" / "labels.parquet").exists()
    dissect.main([*asked, f"--probe={image_folder / 'train'}"])
    assert "not labelled" not in capsys.readouterr().out
    labels = pd.read_parquet(tmp_path / "out" / "labels.parquet")
    assert set(labels["label"].dropna()) <= {"blue", "green", "red"}
    assert labels["label"].notna().any()


def test_images_of_one_name_get_a_page_each(run, image_folder, capsys):
    images = [str(sorted((image_folder / "test" / colour).iterdir())[0]) for colour in ("red", "blue")]
    assert Path(images[0]).name == Path(images[1]).name
    dissect.main(["explain", f"--run={run}", *images])
    stem = Path(images[0]).stem
    pages = {page.name for page in (run / "explanations").iterdir()}
    assert pages == {f"{stem}.html", f"{stem}-2.html", "index.html"}


def test_a_dense_network_is_labelled_and_explained_too(image_folder, tmp_path, capsys):
    dense = TinyRun(image_folder, tmp_path / "dense")
    dense.fit(model__competitors="null", trainer__max_epochs=1)
    dissect.main(["label", f"--run={dense.folder}"])
    capsys.readouterr()
    dissect.main(["explain", f"--run={dense.folder}", "test:3", "--top=5", "--json"])
    ((layer,),) = [e["layers"] for e in json.loads(capsys.readouterr().out)]
    assert layer["fired_per_position"] == pytest.approx(1.0)
    assert len(layer["fired"]) == 96
    assert [unit["silenced"] is not None for unit in layer["fired"]] == [True] * 5 + [False] * 91
    assert all(unit["rivals"] == [] and unit["margin"] is None for unit in layer["fired"])


def test_a_broken_probe_image_is_named_and_left_out(image_folder, tmp_path, capsys):
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    broken = sorted((data / "validation" / "green").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:40])
    tiny = TinyRun(image_folder, tmp_path / "run")
    tiny.fit(trainer__max_epochs=1)
    dissect.main(["label", f"--run={tiny.folder}", f"--root={data}"])
    assert f"left out 1 images that do not decode: green/{broken.name}" in capsys.readouterr().err
    labels = pd.read_parquet(tiny.folder / "labels.parquet")
    assert (labels["wins"].groupby([labels["layer"], labels["unit"] // 24]).sum() == 23).all()


def test_a_broken_image_of_the_data_is_not_explained_as_its_neighbour(run, image_folder, tmp_path):
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    broken = sorted((data / "test" / "blue").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:40])
    message = refused(dissect.main, ["explain", f"--run={run}", f"--root={data}", "test:3"])
    assert "image test:3 does not decode" in message


def test_labelling_one_layer_keeps_the_others(run):
    dissect.main(["label", f"--run={run}", "--probe=train"])
    whole = pd.read_parquet(run / "labels.parquet")
    dissect.main(["label", f"--run={run}", "--probe=train", "--layers=blocks.0*"])
    again = pd.read_parquet(run / "labels.parquet")
    columns = ["layer", "unit"]
    pd.testing.assert_frame_equal(
        again.sort_values(columns, ignore_index=True), whole.sort_values(columns, ignore_index=True)
    )
    dissect.main(["label", f"--run={run}", "--probe=test", "--layers=blocks.0*"])  # another probe set
    assert set(pd.read_parquet(run / "labels.parquet")["layer"]) == {"blocks.0.mlp.act"}


def test_labels_of_another_readout_are_said_to_be(run, capsys):
    dissect.main(["label", f"--run={run}", "--readout=mean"])
    dissect.main(["explain", f"--run={run}", "test:0"])
    assert "the labels were made at mean, not at cls" in capsys.readouterr().err


def test_a_resnet_is_labelled_and_explained_by_its_maps(image_folder, tmp_path, capsys):
    net = TinyRun(image_folder, tmp_path / "net")
    net.fit(
        model__backbone="resnet10t",
        model__backbone_args="{channels: [16, 16, 24, 32]}",
        model__competitors=8,
        model__placement="inner",
        trainer__max_epochs=1,
    )
    dissect.main(["label", f"--run={net.folder}"])
    capsys.readouterr()
    dissect.main(["explain", f"--run={net.folder}", "test:0", "--layers=layer2*", "--json"])
    ((layer,),) = [e["layers"] for e in json.loads(capsys.readouterr().out)]
    assert layer["layer"] == "layer2.0.act1"
    assert layer["fired_per_position"] == pytest.approx(1 / 8)
    assert layer["fired_ever"] >= layer["fired_per_position"]
    assert len(layer["fired"][0]["map"]) == 2


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a,,b\n" + "0,1,0\n" * 24, "concept 2 of .* is blank"),
        ("a,b,a\n" + "0,1,0\n" * 24, "names the concept 'a' twice"),
        ("a,b\n" + "0,1\n" * 23, "has 23 rows and the probe set 24 images"),
        ("a,b\n" + "0,1\n" * 20 + "0,\n" * 4, "has no number in row 21 of concept 'b'"),
        ("a,b\n" + "0,yes\n" * 24, "cannot be read"),
        ("", "at least two|cannot be read"),
    ],
    ids=["blank", "duplicate", "rows", "missing", "text", "empty"],
)
def test_a_bad_concept_file_is_refused_and_nothing_written(run, tmp_path, content, sentence):
    (tmp_path / "concepts.csv").write_text(content)
    message = refused(dissect.main, ["label", f"--run={run}", f"--concepts={tmp_path / 'concepts.csv'}"])
    assert re.search(sentence, message), message
    assert not list(run.glob("labels*"))


def test_an_image_that_does_not_decode_is_refused_before_any_page(run, image_folder, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(image_of(image_folder, "red").read_bytes()[:60])
    good = str(image_of(image_folder, "red"))
    message = refused(dissect.main, ["explain", f"--run={run}", good, str(broken)])
    assert "broken.png does not decode" in message
    assert not (run / "explanations").exists()
    (tmp_path / "text.png").write_text("no image")
    assert "text.png does not decode" in refused(
        dissect.main, ["explain", f"--run={run}", str(tmp_path / "text.png")]
    )


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["explain", "nowhere.png"], "there is no image nowhere.png"),
        (["explain", "test:99"], "the split has 24 images"),
        (
            ["explain", "test:0", "--layers=stages.*"],
            "layers 'stages.*' matches nothing; the layers are blocks.0",
        ),
        (
            ["explain", "test:0", "--target=yellow"],
            "there is no class 'yellow'; the network knows 3, such as (red|blue|green), ",
        ),
        (
            ["explain", "test:0", "--readout=median"],
            "readout is one of cls, mean, max, patches, not 'median'",
        ),
        (
            ["label", "--probe=holdout"],
            "there is no split 'holdout' in .*; it holds test, train, validation",
        ),
        (["label", "--concepts=nowhere.csv"], "there is no concept file nowhere.csv"),
    ],
)
def test_bad_input_is_one_sentence(run, args, sentence):
    message = refused(dissect.main, [args[0], f"--run={run}", *args[1:]])
    assert re.search(sentence.replace("stages.*", r"stages.\*"), message), message


def test_a_folder_without_a_run_is_refused(tmp_path):
    assert "is no run: it has no config.yaml" in refused(dissect.main, ["label", f"--run={tmp_path}"])


def test_a_truncated_checkpoint_is_refused(run):
    checkpoint = run / "checkpoints" / "best.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    assert "best.ckpt is truncated" in refused(dissect.main, ["label", f"--run={run}"])


@pytest.mark.parametrize("text", ["", "[]", "data: {nonsense: 1, root: x}", "{"])
def test_a_damaged_config_is_refused(run, text):
    (run / "config.yaml").write_text(text)
    assert "config.yaml" in refused(dissect.main, ["explain", f"--run={run}", "test:0"])


def test_labels_of_other_weights_are_refused(run):
    dissect.main(["label", f"--run={run}"])
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt")
    message = refused(dissect.main, ["explain", f"--run={run}", "test:0"])
    assert "was made from other weights" in message
