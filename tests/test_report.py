"""The page of a run: escaped, its links and numbers right, and opened by a browser without complaint."""

import contextlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

import commands.report
import dissect
from lwta.dissect.evaluate import read_evaluation
from lwta.dissect.labels import read_labels
from models.run import load_run
from tests.conftest import TinyRun, refused
from tests.test_page import Page

MINUS = "\N{MINUS SIGN}"


def links(page):
    return [value for name, value in page.attributes if name == "href"]


# --- from the command line -----------------------------------------------------------------------


class Reported(NamedTuple):
    run: Path
    said: str
    page: Page


@pytest.fixture(scope="module")
def reported(shapes_run, tmp_path_factory):
    """A labelled and judged run with its page, and what report printed."""
    run = Path(shutil.copytree(shapes_run, tmp_path_factory.mktemp("runs") / "a & b"))
    with contextlib.redirect_stdout(io.StringIO()):
        dissect.main(["label", f"--run={run}", "--probe=train"])
        dissect.main(["evaluate", f"--run={run}", "--split=validation[500:700]"])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        dissect.main(["report", f"--run={run}", "--units=3"])
    html = (run / "report" / "index.html").read_text(encoding="utf-8")
    return Reported(run, said.getvalue(), Page(html))


def test_the_page_shows_what_the_table_says(reported):
    lines = [line for line in reported.said.splitlines()[1:] if "  " in line]
    assert len(lines) > 15
    for line in lines:
        title, value = re.split(r"\s{2,}", line.strip())
        assert f"{title} {value}" in reported.page.text
    score = read_evaluation(reported.run, read_labels(reported.run).identity)
    assert f"Labels against the truth: {score}." in reported.page.text
    assert f"true labels, of selective units {100 * score.true_share:.2f} %" in reported.page.text
    assert str(reported.run / "report" / "index.html") in reported.said
    assert reported.page.text.startswith("a & b a & b backbone")


def test_the_best_labels_are_shown_with_the_images_on_which_their_units_won(reported):
    labels, exemplars, *_ = read_labels(reported.run)
    page = reported.page
    assert f"{labels['label'].notna().sum()} of 96 units carry a label; the 3 with" in page.text
    shown = [int(number) for number in re.findall(r"unit (\d+), won on", page.text)]
    scores = labels.set_index("unit")["score"]
    assert scores[shown].tolist() == scores.dropna().nlargest(3).tolist()
    images = load_run(reported.run).data.dataset("train")
    for number, row in zip(shown, labels.set_index("unit").loc[shown].to_dict("records"), strict=True):
        said = f"{row['label']} or {row['label_2']} unit {number}, won on {100 * row['win_rate']:.2f} % of"
        assert said in page.text
        tiles = np.asarray(page.images[f"images on which unit {number} won hardest"]).astype(int)
        side = len(tiles)
        hardest = exemplars.query("unit == @number and rank < 6")["image"].tolist()
        assert tiles.shape[1] == side * len(hardest) > 0
        for place, index in enumerate(hardest):
            tile = tiles[:, place * side : (place + 1) * side]
            wanted = np.asarray(images[index][0].resize((side, side), Image.Resampling.NEAREST)).astype(int)
            assert np.abs(tile - wanted).mean() < 8  # what JPEG loses; another image is far away


def test_every_link_of_the_page_leads_to_a_file(reported):
    found = {(reported.run / "report" / unquote(link)).resolve() for link in links(reported.page)}
    assert found == {(reported.run / "explanations" / f"test-{k}.html").resolve() for k in range(8)}
    assert all("<h1>" in path.read_text() for path in found)


def test_the_inputs_are_those_that_explain_explains(reported, capsys):
    dissect.main(["explain", f"--run={reported.run}", "test:0", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    name, share = found["classes"][0]
    strongest = sorted(found["layers"][-1]["fired"], key=lambda u: -abs(u["change"]))[0]
    change = f"{strongest['change']:+.3f}".replace("-", MINUS)
    assert (
        f"test:0 : {name} {100 * share:.1f} % unit label silenced {strongest['unit']} " in reported.page.text
    )
    assert change in reported.page.text
    shown = np.asarray(reported.page.images["test:0 as the network saw it"])
    image = np.asarray(load_run(reported.run).data.dataset("test")[0][0])
    assert np.abs(shown[3::7, 3::7].astype(int) - image).max() <= 1


def test_images_of_ones_own_are_explained_and_a_judgement_of_other_labels_is_not_shown(
    reported, tmp_path, capsys
):
    run = Path(shutil.copytree(reported.run, tmp_path / "run"))
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "50% #1.png")
    dissect.main(["label", f"--run={run}", "--probe=test"])
    shutil.rmtree(run / "explanations")
    dissect.main(["report", f"--run={run}", str(tmp_path / "50% #1.png"), "test:3"])
    page = Page((run / "report" / "index.html").read_text(encoding="utf-8"))
    found = {(run / "report" / unquote(link)).resolve() for link in links(page)}
    assert found == set((run / "explanations").resolve().iterdir())
    assert len(found) == 2
    assert "against the truth" not in page.text
    assert "selective" not in page.text


def test_a_split_of_few_images_is_shown_whole(reported, tmp_path):
    run = Path(shutil.copytree(reported.run, tmp_path / "run"))
    dissect.main(["report", f"--run={run}", "--split=test[:5]"])
    assert len(set(links(Page((run / "report" / "index.html").read_text())))) == 5


def test_a_broken_image_is_left_out_of_the_page(image_folder, tmp_path, capsys):
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (data / "test" / "blue" / "003.png").write_bytes(b"no image")
    tiny = TinyRun(data, tmp_path / "run")
    tiny.fit(trainer__max_epochs=1)
    dissect.main(["label", f"--run={tiny.folder}"])
    dissect.main(["report", f"--run={tiny.folder}"])
    assert "left out 1 images that do not decode: blue/003.png" in capsys.readouterr().err
    page = Page((tiny.folder / "report" / "index.html").read_text())
    assert set(links(page)) == {f"../explanations/test-{k}.html" for k in range(8) if k != 3}


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--units=0"], "units is at least 1, not 0"),
        (["nowhere.png"], "there is no image nowhere.png"),
        (["test:24"], "the split has 24 images"),
        (["--split=holdout"], "shapes has no split 'holdout'"),
    ],
)
def test_bad_input_is_one_sentence(reported, args, sentence):
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


# --- in a browser --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report/index.html", "explanations/test-0.html"])
def test_a_browser_opens_the_page_without_complaint(reported, tmp_path, name):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium at hand")
    quiet = ("quic", "background-networking", "component-update", "sync")
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            *(f"--disable-{what}" for what in quiet), f"--user-data-dir={tmp_path}",
            "--enable-logging=stderr", "--v=0", "--dump-dom", (reported.run / name).resolve().as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    opened = Page(done.stdout)
    assert opened.text == Page((reported.run / name).read_text(encoding="utf-8")).text
    if name.startswith("report"):
        assert "a & b" in opened.text
