"""explain from the command line: layers, classes, draws, changes, folders, pages, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

import dissect
from lwta.dissect.activations import Readout
from lwta.dissect.explain import explain
from lwta.dissect.intervene import Change
from models.run import load_run
from tests.conftest import TinyRun, refused
from tests.pages import Page
from tests.test_page import PICTURE
from tests.toy import SIZE, network_args, passes, probe, toys, write_module

__all__ = ["passes", "toys"]  # fixtures

FIRST, LAST = "blocks.0.mlp.act", "blocks.1.mlp.act"
COLOURS = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """A small run with all its units labelled, so that explaining it labels nothing."""
    folder = tmp_path_factory.mktemp("runs") / "colours"
    TinyRun(image_folder, folder).fit(trainer__max_epochs=2, model__noise=1.0)
    dissect.main(["label", f"--run={folder}"])
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "colours"))


def asked(capsys, *args):
    """Run ``explain --json``; what it found, and what it said beside."""
    capsys.readouterr()
    dissect.main(["explain", "--json", *map(str, args)])
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def by_call(run, source="test:0", **options):
    """The same by a call of ``explain`` on the network of a run."""
    opened = load_run(run, device="cpu")
    split, index = source.split(":")
    pixels = opened.data.eval_transform()(opened.data.dataset(split)[int(index)][0])
    sites = {FIRST: -1, LAST: -1}
    return explain(opened.model.backbone, pixels, sites, Readout("cls", 1), class_names=COLOURS, **options)


def assert_same(found, expected):
    """Numbers and units of both; words are the command's."""
    if isinstance(expected, dict):
        for key in expected.keys() - {
            "label",
            "runner_up",
            "reason",
            "negative",
            "map",
            "sign_differs",
            "image",
        }:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5)
    else:
        assert found == expected


def worded(explanation):
    """(layer, unit) of all words in the JSON of an explanation."""
    for layer in explanation["layers"]:
        for unit in layer["fired"]:
            yield layer["layer"], unit
            yield from ((layer["layer"], rival) for rival in unit["rivals"])
        yield from ((layer["layer"], unit) for unit in layer["drawn"])
    for change in (explanation["counterfactual"] or {"layers": []})["layers"]:
        yield from ((change["layer"], unit) for unit in [*change["gained"], *change["lost"]])


# --- what is asked -------------------------------------------------------------------------------


def test_options_are_those_of_the_call(run, capsys):
    (found,), _ = asked(
        capsys, f"--run={run}", "test:0", "--target=red", "--against=0", "--top=3", "--samples=9",
        f"--silence=[{FIRST}:5, {FIRST}:7, blocks.1.mlp.fc1:2]", f"--winner={LAST}:2=50",
    )  # fmt: skip
    assert (found["target"], found["against"], found["image"]) == ("red", "blue", "test:0")
    change = Change({FIRST: [5, 7], "blocks.1.mlp.fc1": [2]}, {LAST: {2: 50}})
    expected = by_call(
        run, target=2, against=0, top=3, samples=9, change=change,
        change_sites={FIRST: -1, "blocks.1.mlp.fc1": -1},
    )  # fmt: skip
    assert_same(found, expected.to_dict() | {"truth": "blue"})
    assert found["counterfactual"]["told"][:4] == change.told()
    assert all(told.endswith("did not fire anyway") for told in found["counterfactual"]["told"][4:])
    assert found["stability"]["samples"] == 9


def test_by_default_the_predicted_class_of_every_competing_layer_is_explained(run, capsys):
    (found,), _ = asked(capsys, f"--run={run}", "test:0")
    assert_same(found, by_call(run).to_dict() | {"truth": "blue"})
    assert found["target"] == found["classes"][0][0]
    assert (found["against"], found["stability"], found["counterfactual"]) == (None, None, None)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (f"[{LAST}]", [LAST]),
        ("blocks.0.mlp.fc2", ["blocks.0.mlp.fc2"]),
        ("[blocks.1, blocks.0.norm1, blocks.1.mlp*]", None),
    ],
)
def test_layers_of_any_kind_are_explained(run, capsys, layers, expected):
    (found,), _ = asked(capsys, f"--run={run}", "test:0", f"--layers={layers}", "--readout=mean", "--top=1")
    names = [layer["layer"] for layer in found["layers"]]
    assert names == expected or {"blocks.1", "blocks.0.norm1", LAST, "blocks.1.mlp.fc1"} <= set(names)
    assert all(
        len([u for u in layer["fired"] if u["silenced"] is not None]) == 1 for layer in found["layers"]
    )


def test_a_change_shows_in_the_layers_after_it(run, capsys):
    (plain,), _ = asked(capsys, f"--run={run}", "test:1")
    fired = plain["layers"][0]["fired"]
    silence = ", ".join(f"{FIRST}:{unit['unit']}" for unit in fired)
    (found,), _ = asked(capsys, f"--run={run}", "test:1", f"--silence=[{silence}]")
    change = found.pop("counterfactual")
    plain.pop("counterfactual")
    assert found == plain
    expected = by_call(run, "test:1", change=Change({FIRST: [unit["unit"] for unit in fired]}))
    assert change["score"] == pytest.approx(expected.counterfactual.score, abs=1e-5)
    assert {layer["layer"] for layer in change["layers"]} <= {LAST}
    dissect.main(["explain", f"--run={run}", "test:1", f"--silence={FIRST}:{fired[0]['unit']}"])
    assert f"where unit {fired[0]['unit']} of {FIRST} is silenced:" in capsys.readouterr().out
    page = (run / "explanations" / "test-1.html").read_text(encoding="utf-8")
    assert f"unit {fired[0]['unit']} of {FIRST} is silenced" in page


def test_fired_units_rivals_and_units_gained_are_labelled_on_demand(run, capsys):
    for name in ("labels.parquet", "labels.csv", "exemplars.parquet"):
        (run / name).unlink()
    unit = by_call(run).layers[0].fired[0]
    winner = f"--winner={FIRST}:{unit.unit // 24}={unit.rivals[1].unit}"
    (found,), _ = asked(capsys, f"--run={run}", "test:0", winner, "--samples=20", "--readout=cls")
    words = list(worded(found))
    assert found["counterfactual"]["layers"][0]["gained"]
    assert any(layer["drawn"] for layer in found["layers"])
    labels = pd.read_parquet(run / "labels.parquet").set_index(["layer", "unit"])
    assert set(labels.index) == {(layer, word["unit"]) for layer, word in words}
    for layer, word in words:
        row = labels.loc[(layer, word["unit"])]
        assert word["label"] == (None if pd.isna(row["label"]) else row["label"])
        assert word["reason"] == (None if pd.isna(row["reason"]) else row["reason"])
        assert word["reason"] != "not labelled"


# --- images and pages ----------------------------------------------------------------------------


def test_images_folders_and_indices_are_explained_together_each_with_a_page(run, image_folder, capsys):
    red, green = (image_folder / "test" / colour for colour in ("red", "green"))
    one = sorted(red.iterdir())[0]
    found, told = asked(capsys, f"--run={run}", one, "test:3", green)
    names = [one.name, "test:3", *sorted(path.name for path in green.iterdir())]
    assert [explanation["image"] for explanation in found] == names
    pages = [path for path in (run / "explanations").iterdir() if path.stem != "index"]
    assert len(pages) == len(names) == told.count("page: ")
    for explanation in found:
        alone = next(path for path in pages if f"{explanation['image']}: " in path.read_text())
        assert str(alone) in told


def test_broken_images_of_a_folder_are_left_out_and_named(run, image_folder, tmp_path, capsys):
    folder = Path(shutil.copytree(image_folder / "test" / "red", tmp_path / "some"))
    broken = sorted(folder.iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:50])
    (folder / "notes.txt").write_text("no image")
    found, told = asked(capsys, f"--run={run}", folder)
    assert [explanation["image"] for explanation in found] == sorted(
        path.name for path in folder.iterdir() if path not in (broken, folder / "notes.txt")
    )
    assert f"left out 1 images that do not decode: {broken}" in told


@pytest.mark.parametrize("kept", ["none", "broken"])
def test_a_folder_without_an_image_that_decodes_is_refused(run, tmp_path, kept):
    (tmp_path / "some").mkdir()
    if kept == "broken":
        (tmp_path / "some" / "a.png").write_bytes(b"nothing")
    message = refused(dissect.main, ["explain", f"--run={run}", str(tmp_path / "some")])
    wanted = (
        "no image of the folder .* decodes, such as .*a.png"
        if kept == "broken"
        else "holds no image; they end in"
    )
    assert re.search(wanted, message), message
    assert not (run / "explanations").exists()


def test_a_concept_that_is_a_script_and_a_name_with_quotes_are_text(run, image_folder, tmp_path, capsys):
    words = ["<script>alert(1)</script>", "\"><img src=x onerror='alert(1)'>", "a & b"]
    rows = [f"{int(k == 0)},{int(k == 1)},{int(k == 2)}" for k in range(3) for _ in range(16)]
    head = ",".join('"' + word.replace('"', '""') + '"' for word in words)
    (tmp_path / "concepts.csv").write_text("\n".join([head, *rows]))
    how = ["--readout=mean", "--probe=train"]
    dissect.main(["label", f"--run={run}", f"--concepts={tmp_path / 'concepts.csv'}", *how])
    image = tmp_path / 'my "best" <b>cat\'s<b>.png'
    shutil.copy(sorted((image_folder / "test" / "red").iterdir())[0], image)
    (found,), _ = asked(capsys, f"--run={run}", image, "--readout=mean")
    assert {word["label"] for _, word in worded(found)} & set(words)
    (page,) = (run / "explanations").iterdir()
    html = page.read_text(encoding="utf-8")
    for part in ("<script", "<img src=x", "<b>"):
        assert part not in html
    assert "cat&#39;s" in html


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--layers=nowhere.*"], "layers 'nowhere.*' matches nothing; the layers are"),
        (["--target=yellow"], "there is no class 'yellow'; the network knows 3, such as "),
        (["--target=3"], "there is no class '3'; the network knows 3, such as "),
        (["--target=²"], "there is no class '²'; the network knows 3, such as "),
        (["--against=-1"], "there is no class '-1'; the network knows 3, such as "),
        (
            ["--target=red", "--against=2"],
            "red cannot be set against itself; name another class with --against",
        ),
        (["--top=-1"], "top and samples are at least 0"),
        (["--samples=-3"], "top and samples are at least 0"),
        (["--silence=5"], "--silence takes LAYER:UNIT, such as blocks.0.mlp.act:0, not '5'"),
        (
            [f"--silence={FIRST}:x"],
            f"--silence takes LAYER:UNIT, such as blocks.0.mlp.act:0, not '{FIRST}:x'",
        ),
        ([f"--silence={FIRST}:-1"], "--silence takes LAYER:UNIT"),
        ([f"--silence={FIRST}:96"], f"{FIRST} has the units 0 to 95, and no unit 96"),
        (["--silence=nowhere:1"], "nowhere"),
        (["--silence=blocks.*.mlp.act:1"], "and blocks.*.mlp.act stands for 2 layers; name one"),
        (["--silence=blocks.0.attn.fused_attn:1"], "fused_attn"),
        ([f"--silence=[{FIRST}:1, {FIRST}:y]"], f"such as blocks.0.mlp.act:0, not '{FIRST}:y'"),
        ([f"--winner={FIRST}:5"], "--winner takes LAYER:BLOCK=UNIT, such as blocks.0.mlp.act:0=0, not"),
        ([f"--winner={FIRST}:0=96"], f"{FIRST} has the units 0 to 95, and no unit 96"),
        (
            [f"--winner={FIRST}:0=50"],
            f"unit 50 of {FIRST} competes in block 2, units 48 to 71; write {FIRST}:2=50",
        ),
        ([f"--winner={FIRST}:4=50"], f"write {FIRST}:2=50"),
        (
            [f"--winner=[{FIRST}:0=5, {FIRST}:0=6]"],
            f"block 0 of {FIRST} has one winner, and two were asked for",
        ),
        (["--winner=head:0=1"], "the units of head do not compete, so none can win; --silence one instead"),
        (["--readout=patchy"], "readout is one of cls, mean, max, patches, not 'patchy'"),
        (["--layers=head"], "readout cls needs a class token, and the layer head has none"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_before_anything_is_written(run, options, sentence):
    message = refused(dissect.main, ["explain", f"--run={run}", "test:0", *options])
    assert sentence in message
    assert not (run / "explanations").exists()


def test_the_image_that_is_predicted_as_what_it_is_set_against_is_named(run, capsys):
    (found,), _ = asked(capsys, f"--run={run}", "test:0")
    predicted = found["target"]
    message = refused(dissect.main, ["explain", f"--run={run}", "test:0", f"--against={predicted}"])
    assert f"test:0 is predicted to be {predicted}, which cannot be set against itself" in message


def test_samples_need_noise_to_draw_with(image_folder, tmp_path, toys):
    quiet = TinyRun(image_folder, tmp_path / "quiet")
    quiet.fit(trainer__max_epochs=1, model__noise=0.0)
    message = refused(dissect.main, ["explain", f"--run={quiet.folder}", "test:0", "--samples=5"])
    assert "there is nothing to draw: the network was trained without noise" in message
    probe()[0][0].save(toys / "photo.png")
    message = refused(dissect.main, ["explain", "photo.png", *network_args(), "--layers=act", "--samples=5"])
    assert "there is nothing to draw: the network has no units that compete; leave samples away" in message


MODELS = """
from torch import nn


def maps():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())


def one(classes=1):
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pool, nn.Linear(8, classes))


def two():
    return one(2)
"""


def test_what_is_no_classifier_is_refused_and_two_classes_are_enough(toys, capsys):
    write_module(toys, "odd", MODELS)
    probe()[0][0].save(toys / "photo.png")
    for name in ("maps", "one"):
        args = [f"--model=odd:{name}", "--weights=random", f"--image_size={SIZE}", "--device=cpu"]
        assert "explain needs a classifier" in refused(dissect.main, ["explain", "photo.png", *args])
    args = ["--model=odd:two", "--weights=random", f"--image_size={SIZE}", "--device=cpu", "--out=out"]
    scores = []
    for target in ("0", "1"):
        (found,), _ = asked(capsys, "photo.png", *args, f"--target={target}", "--silence=1:3")
        scores.append(found["score"])
        assert found["target"] == target
        assert found["counterfactual"]["told"] == ["unit 3 of 1 is silenced"]
    assert scores[0] == pytest.approx(-scores[1], abs=1e-6)
    (found,), _ = asked(capsys, "photo.png", *args, "--target=0", "--against=1")
    assert found["score"] == pytest.approx(2 * scores[0], abs=1e-6)


def test_the_picture_of_a_page_is_the_image_as_the_network_saw_it(run, image_folder, capsys):
    asked(capsys, f"--run={run}", "test:0")
    page = Page((run / "explanations" / "test-0.html").read_text(encoding="utf-8"))
    shown = page.picture(PICTURE).convert("RGB")
    original = Image.open(sorted((image_folder / "test" / "blue").iterdir())[0]).convert("RGB")
    assert shown.size == original.size == (16, 16)
    difference = torch.tensor(list(shown.getdata())).float() - torch.tensor(list(original.getdata()))
    assert difference.abs().max() <= 1
