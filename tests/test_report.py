"""The pages that report writes: what they show of a run or a model, their links, and what is refused."""

import contextlib
import errno
import io
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import commands.report
import dissect
from lwta.dissect.evaluation import read_evaluation, sentences
from lwta.dissect.labels import Labels, read_labels
from lwta.dissect.report import site
from models.run import load_run
from tests.conftest import TinyRun, refused
from tests.pages import MINUS, Page, dangling, read_page
from tests.toy import label_args, network_args, of_folder, toys

__all__ = ["toys"]  # a fixture


class Reported(NamedTuple):
    run: Path
    said: str
    pages: dict[str, Page]
    labels: Labels


def pages_of(run):
    """Pages of a report by their place in its folder."""
    folder = run / "report"
    return {path.relative_to(folder).as_posix(): read_page(path) for path in sorted(folder.rglob("*.html"))}


@pytest.fixture(scope="module")
def reported(shapes_run, tmp_path_factory):
    """A labelled and judged run with its pages, and what report printed."""
    run = Path(shutil.copytree(shapes_run, tmp_path_factory.mktemp("runs") / "a & b"))
    with contextlib.redirect_stdout(io.StringIO()):
        dissect.main(["label", f"--run={run}", "--probe=train"])
        dissect.main(["evaluate", f"--run={run}", "--probe=validation[500:700]", "--resamples=1"])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        dissect.main(["report", f"--run={run}"])
    labels = read_labels(run)
    assert labels is not None
    return Reported(run, said.getvalue(), pages_of(run), labels)


@pytest.fixture
def copy(reported, tmp_path):
    """A copy of the reported run that a test may change."""
    return Path(shutil.copytree(reported.run, tmp_path / "run"))


def inputs(run):
    return {path.name for path in (run / "report" / "inputs").iterdir()}


# --- of a run ------------------------------------------------------------------------------------


def test_the_page_shows_what_the_table_says(reported):
    page = reported.pages["index.html"]
    lines = [line for line in reported.said.splitlines()[1:] if "  " in line]
    assert len(lines) > 15
    for line in lines:
        title, value = re.split(r"\s{2,}", line.strip())
        assert f"{title} {value}" in page.text
    score = read_evaluation(reported.run, reported.labels.identity)
    assert score is not None
    assert score.truth is not None
    assert " ".join(sentences(score)).replace("-", MINUS) in page.text.replace("-", MINUS)
    told = f"{100 * score.truth.true_share:.1f} % ± {100 * score.truth.true_error:.1f}"
    assert f"true labels, of selective units {told}" in page.text
    assert reported.said.endswith(f"page: {reported.run / 'report' / 'index.html'}\n")
    assert page.text.startswith("a & b a & b Layers")


def test_the_numbers_of_the_table_lie_beside_the_pages(reported):
    (row,) = pd.read_csv(reported.run / "report" / "summary.csv").to_dict("records")
    assert (row["run"], row["split"]) == ("a & b", "test")
    shown = reported.pages["index.html"].text
    assert f"top-1, argmax {100 * row['top1_argmax']:.2f} % [" in shown
    assert f"dead units, competing {row['dead_units']} of {row['units']} " in shown
    told = f"{100 * row['true_share']:.1f} % ± {100 * row['true_error']:.1f}"
    assert f"true labels, of selective units {told}" in shown


def test_the_layer_and_all_rows_of_the_label_table_are_on_the_page(reported):
    page, table = reported.pages["index.html"], reported.labels.table
    labelled, dead = table["label"].notna(), (~table["alive"]).sum()
    score = f"{table.loc[labelled, 'score'].mean():.3f}".replace("-", MINUS)
    assert re.search(rf"blocks\.0\.mlp\.act 96 24 4\.17 % {dead} {labelled.sum()} {score} ", page.text)
    shown = [(row[1], row[2], row[3]) for row in page.data["rows"]]
    plain = table[["unit", "label", "label_2"]].astype(object)
    assert shown == list(plain.where(plain.notna(), None).itertuples(index=False, name=None))


def test_each_unit_is_shown_with_the_images_on_which_it_won_hardest(reported):
    table, exemplars = reported.labels.table, reported.labels.exemplars
    images = load_run(reported.run).data.dataset("train")
    best = table.nlargest(3, "score").to_dict("records")
    for row in best:
        page = reported.pages[f"units/blocks.0.mlp.act/{row['unit']}.html"]
        shown = page.text.split(" Images on")[0].split(" on other images its label")[0]
        assert shown.endswith(
            f"{row['label']} or {row['label_2']} unit {row['unit']} of blocks.0.mlp.act "
            f"block {row['block']}, the units {24 * row['block']} to {24 * row['block'] + 23}, "
            f"of which one fires at a position fired on {row['wins']} probe images, "
            f"{100 * row['win_rate']:.2f} %, at the class token"
        )
        judged = f"its label correlates with it by {row['held_out_correlation']:.3f} and has an AUROC of"
        told = f"{judged} {row['held_out_auroc']:.3f} on images that it was not chosen from; "
        assert (told.replace("-", MINUS) in page.text) == (row["held_out_auroc"] > 0)
        assert ("; not shown to be better than chance (" in page.text) == (row["held_out_q_value"] > 0.05)
        wanted = exemplars[exemplars["unit"] == row["unit"]].nsmallest(8, "rank")
        hardest = page.text.split("Where it fired hardest")[1].split("In the middle")[0]
        shown = re.findall(r"(\S+) train:(\d+)", hardest)
        values = [f"{value:.3g}".replace("-", MINUS) for value in wanted["value"]]
        assert shown == list(zip(values, map(str, wanted["image"]), strict=True))
        for index in wanted["image"]:
            assert f"../../images/{index}.jpg" in page.addresses
            tile = np.asarray(Image.open(reported.run / "report" / "images" / f"{index}.jpg")).astype(int)
            side = len(tile)
            seen = np.asarray(images[index][0].resize((side, side), Image.Resampling.NEAREST)).astype(int)
            assert np.abs(tile - seen).mean() < 8  # what JPEG loses; another image is far away


def test_every_link_of_every_page_leads_to_a_file(reported):
    classes = load_run(reported.run).data.class_names
    assert classes
    places = [place.partition("/")[0] for place in reported.pages]
    assert {place: places.count(place) for place in places} == {
        "index.html": 1, "units": 96, "classes": len(classes), "inputs": 8,
    }  # fmt: skip
    assert inputs(reported.run) == {f"test-{k}.html" for k in range(8)}
    assert list(dangling(reported.run / "report")) == []
    assert not (reported.run / "explanations").exists()


def test_the_inputs_are_those_that_explain_explains(reported, copy, capsys):
    dissect.main(["explain", f"--run={copy}", "test:0", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    name, share = found["classes"][0]
    measured = [unit for unit in found["layers"][-1]["fired"] if unit["silenced"] is not None]
    strongest = max(measured, key=lambda unit: abs(unit["silenced"]))
    change = f"{strongest['silenced']:+.3f}".replace("-", MINUS)
    index, page = reported.pages["index.html"].text, reported.pages["inputs/test-0.html"]
    card = index.split("Explained inputs")[2].split(" test:1 ")[0]
    told = "right" if found["truth"] == name else f"wrong: in truth {found['truth']}"
    assert f"test:0 {told} {name} {100 * share:.1f} % " in card
    assert re.search(rf"unit label silenced {strongest['unit']} {re.escape(strongest['label'])} .*?", card)
    assert change in card
    own = read_page(copy / "explanations" / "test-0.html")
    assert set(own.links) == {link.replace("../units", "../report/units") for link in page.links[1:]}
    assert page.text == f"test:0: {name} a & b {own.text.partition(f'test:0: {name} ')[2]}"
    shown = np.asarray(page.picture("the input as the network saw it"))
    image = np.asarray(load_run(reported.run).data.dataset("test")[0][0])
    assert np.abs(shown.astype(int) - image).max() <= 1


def test_images_of_ones_own_are_explained_and_a_judgement_of_other_labels_is_not_shown(copy, tmp_path):
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "50% #1.png")
    dissect.main(["label", f"--run={copy}", "--probe=test"])
    dissect.main(["report", f"--run={copy}", str(tmp_path / "50% #1.png"), "test:3"])
    assert inputs(copy) == {"50-1.png.html", "test-3.html"}
    page = read_page(copy / "report" / "index.html")
    assert "50% #1.png" in page.text
    assert "Are the labels true?" not in page.text
    assert "selective" not in page.text
    assert list(dangling(copy / "report")) == []


def test_a_split_of_few_images_is_shown_whole(copy):
    dissect.main(["report", f"--run={copy}", "--split=test[:5]", "--sample=20"])
    assert inputs(copy) == {f"test-5-{k}.html" for k in range(5)}
    classes = read_page(copy / "report" / "index.html").text.split("of all.")[1].split("How to read")[0]
    assert sum(int(count) for count in re.findall(r"\d+ of (\d+)", classes)) == 20


def test_a_broken_image_is_left_out_of_the_page(image_folder, tmp_path, capsys):
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (data / "test" / "blue" / "003.png").write_bytes(b"no image")
    tiny = TinyRun(data, tmp_path / "run")
    tiny.fit(trainer__max_epochs=1)
    dissect.main(["label", f"--run={tiny.folder}"])
    dissect.main(["report", f"--run={tiny.folder}"])
    assert "left out 1 images that do not decode: blue/003.png" in capsys.readouterr().err
    assert inputs(tiny.folder) == {f"test-{k}.html" for k in range(9) if k != 3}  # eight that decode
    assert list(dangling(tiny.folder / "report")) == []


# --- of any model --------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "layers"), [("net", {"act": 16, "body.1": 24}), ("vit", None)])
def test_any_labelled_model_has_its_pages(toys, capsys, function, layers):
    dissect.main(["label", *label_args(function), "--out=out"])
    dissect.main(["report", *network_args(function), "--out=out", "--sample=30", "shapes:test:4"])
    assert capsys.readouterr().out.endswith(f"page: {Path('out/report/index.html')}\n")
    found, known = pages_of(Path("out")), of_folder("out")
    assert layers is None or known.units == layers
    units = [f"units/{layer}/{k}.html" for layer, count in known.units.items() for k in range(count)]
    classes = {"net": 10, "vit": 5}[function]
    others = [f"classes/{k}.html" for k in range(classes)]
    assert found.keys() == {"index.html", "inputs/shapes-test-4.html", *others, *units}
    assert list(dangling(Path("out/report"))) == []
    assert not Path("out/report/summary.csv").exists()
    for row in known.table.dropna(subset="label").to_dict("records"):
        assert found[f"units/{row['layer']}/{row['unit']}.html"].text.split(": unit")[0] == row["label"]
    # The probe has classes, of a data set that need not be the network's.
    told = r"(\d+) of the surveyed images are predicted as this class; whether they are of it is not known"
    counts = [int(number) for name in others for number in re.findall(told, found[name].text)]
    assert len(counts) == classes
    assert sum(counts) == 30
    listed = found["index.html"].text.split("is not known.")[1]
    assert listed.startswith("".join(f" {k} {count}" for k, count in enumerate(counts)))


def test_a_concept_that_is_a_script_and_a_file_name_with_quotes_are_text_on_every_page(toys):
    script, name = "<script>alert(1)</script>", """it's "7" <b>.png"""
    (toys / "words.txt").write_text(f"{script}\nred\n")
    (toys / "probe" / "a").mkdir(parents=True)
    colours = np.random.default_rng(0).integers(0, 256, (24, 3)).tolist()
    for k, colour in enumerate(colours):
        Image.new("RGB", (32, 32), tuple(colour)).save(toys / "probe" / "a" / f"{k} {name}")
    Image.new("RGB", (32, 32), (200, 30, 30)).save(name)
    probe = [arg for arg in label_args() if not arg.startswith("--probe")]
    dissect.main(["label", *probe, "--probe=probe", "--out=out"])
    dissect.main(["report", *network_args(), "--out=out", name])
    labelled = of_folder("out").table.dropna(subset="label")
    labelled = labelled[labelled["label"] == script]
    found = pages_of(Path("out"))
    (page,) = [place for place in found if place.startswith("inputs/")]
    unit = f"units/act/{labelled.loc[labelled['layer'] == 'act', 'unit'].iloc[0]}.html"
    for place, scripts in {"index.html": 2, unit: 0, page: 0}.items():
        assert script in found[place].text
        assert name in found[place].text
        assert found[place].tags.count("script") == scripts
        assert "b" not in found[place].tags
    assert {row[2] for row in found["index.html"].data["rows"]} >= {script}
    assert re.search(rf"where unit \d+ fired on a/\d+ {re.escape(name)}", "\n".join(found[unit].images))
    assert list(dangling(Path("out/report"))) == []


# --- refused or failed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--sample=0"], "batch_size and sample are at least 1"),
        (["--batch_size=0"], "batch_size and sample are at least 1"),
        (["--num_workers=-1"], "num_workers at least 0"),
        (["nowhere.png"], "there is no image nowhere.png"),
        (["test:24"], "the split has 24 images"),
        (["--split=holdout"], "shapes has no split 'holdout'"),
    ],
)
def test_bad_input_is_one_sentence_and_no_work(reported, monkeypatch, args, sentence):
    for work in ("compare_runs", "gather", "explained"):
        monkeypatch.setattr(commands.report, work, lambda *_, **__: pytest.fail("worked"))
    assert sentence in refused(dissect.main, ["report", f"--run={reported.run}", *args])


def test_labels_of_some_units_make_no_page_and_no_work(shapes_run, tmp_path, monkeypatch):
    run = Path(shutil.copytree(shapes_run, tmp_path / "run"))
    dissect.main(["explain", f"--run={run}", "test:0"])
    monkeypatch.setattr(commands.report, "compare_runs", lambda *_: pytest.fail("judged"))
    message = refused(dissect.main, ["report", f"--run={run}"])
    assert "only some units of blocks.0.mlp.act are labelled, those that explain came upon" in message
    assert not (run / "report").exists()


def test_a_run_without_labels_has_no_page(shapes_run):
    assert f"make them with dissect.py label --run {shapes_run}" in refused(
        dissect.main, ["report", f"--run={shapes_run}"]
    )
    assert not (shapes_run / "report").exists()


def test_a_model_without_labels_has_no_page(toys):
    message = refused(dissect.main, ["report", *network_args()])
    assert "make them with dissect.py label --model toys:net" in message
    assert not Path("dissections").exists()


def test_a_report_that_fails_midway_leaves_the_old_one_whole(copy, monkeypatch):
    def contents(folder):
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before, left, render = contents(copy), iter(range(10)), site.render_unit

    def until_the_disk_is_full(*args):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return render(*args)

    monkeypatch.setattr(site, "render_unit", until_the_disk_is_full)
    message = refused(dissect.main, ["report", f"--run={copy}", "test:5"])
    assert f"no room left to write {copy / 'report'}" in message
    assert next(left, None) is None
    assert contents(copy) == before


def test_a_look_at_some_units_of_another_layer_spoils_no_report(copy):
    before = read_page(copy / "report" / "index.html").data
    dissect.main(["explain", f"--run={copy}", "test:0", "--layers=blocks.0.mlp.drop1"])
    known = read_labels(copy)
    assert known is not None
    assert known.partial == ["blocks.0.mlp.drop1"]
    dissect.main(["report", f"--run={copy}", "test:0"])
    assert read_page(copy / "report" / "index.html").data == before


def test_the_first_images_that_the_network_gets_wrong_are_among_those_explained(reported, capsys):
    shown = sorted(int(name.split("-")[1].split(".")[0]) for name in inputs(reported.run))
    judged = {}
    for index in range(shown[-1] + 1):
        dissect.main(["explain", f"--run={reported.run}", f"test:{index}", "--json", "--top=0"])
        (found,) = json.loads(capsys.readouterr().out)
        judged[index] = found["classes"][0][0] == found["truth"]
    wrong = [index for index, right in judged.items() if not right]
    assert wrong[:4] == [index for index in shown if not judged[index]][:4]
    assert 0 in judged
