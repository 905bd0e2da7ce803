"""The page of a comparison: its plot, its table, the same images through every run, where its links lead."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import commands.subject
import dissect
from lwta.dissect.explanation import Explanation
from lwta.dissect.report import ComparedImage, write_comparison_page
from lwta.dissect.report.comparison import comparison_frame, summaries, write_comparison
from lwta.dissect.report.pareto import marker_path, pareto
from tests.comparing import compare_args, explanation, fired, row, set_data
from tests.conftest import refused
from tests.pages import MINUS, NAUGHTY, Page, check_alone, check_links


def written(folder: Path, rows, images=(), said=()) -> str:
    """The page of a comparison of which nothing was run."""
    return write_comparison_page(folder, comparison_frame(rows), said, images).read_text(encoding="utf-8")


def image(*explanations: Explanation, name="test:0", truth: str | None = "frog") -> ComparedImage:
    return ComparedImage(name, truth, list(explanations))


ROWS = [row("sparse", 1 / 24, 0.9), row("dense", 1.0, 0.95)]


# --- the plot ---------------------------------------------------------------------------------


def test_a_run_stands_where_its_numbers_say_on_a_logarithmic_axis(tmp_path):
    plot = pareto([row("a", 0.02, 0.5), row("b", 0.2, 0.7)])
    low, high = (math.log(value) for value in (plot.x.low, plot.x.high))
    assert low < math.log(2)
    assert high > math.log(20)
    assert plot.x.place(2) == pytest.approx(100 * (math.log(2) - low) / (high - low))
    assert plot.x.place(plot.x.low) == 0
    assert plot.x.place(plot.x.high) == 100
    assert plot.y.place(60) == pytest.approx(50)  # between intervals from 49 to 71 %
    shown = Page(written(tmp_path, [row("a", 0.02, 0.5), row("b", 0.2, 0.7)]))
    marks = [own for own in shown.all("svg") if "x" in own]
    assert len(marks) == 2 * 3  # each with the two ends of its interval
    best = (f"{plot.x.place(20):.2f}%", f"{100 - plot.y.place(70):.2f}%")
    other = (f"{plot.x.place(2):.2f}%", f"{100 - plot.y.place(50):.2f}%")
    assert [(own["x"], own["y"]) for own in marks[2::3]] == [best, other]
    ends = [own["y"] for own in marks if (own["x"], own["y"]) not in (best, other)]
    assert ends == [f"{100 - plot.y.place(value):.2f}%" for value in (69, 71, 49, 51)]


def test_runs_of_the_same_active_fraction_stand_side_by_side(tmp_path):
    rows = [row("a", 0.0417, 0.9), row("b", 0.0416, 0.8), row("c", 0.0418, 0.7), row("d", 0.5, 0.6)]
    assert [point.aside for point in pareto(rows).points] == [-10, 0, 10, 0]
    groups = [own["transform"] for own in Page(written(tmp_path, rows)).all("g")]
    assert groups == ["translate(-13.3 0)", "translate(0.0 0)", "translate(13.3 0)", "translate(0.0 0)"]


@pytest.mark.parametrize("nothing", [0.0, math.nan])
def test_a_run_without_a_place_on_the_axis_is_named_below_it(tmp_path, nothing):
    html = written(tmp_path, [row("silent", nothing, 0.1), row("loud", 0.5, 0.9)])
    assert [point.run for point in pareto([row("silent", nothing, 0.1), row("loud", 0.5, 0.9)]).points] == [
        "loud"
    ]
    assert "Not in the plot: silent; of it no unit fires, or nobody knows" in Page(html).text
    write_comparison(tmp_path, comparison_frame([row("silent", nothing, 0.1)]))  # an empty plot, no error
    alone = pareto([row("silent", nothing, 0.1)])
    assert alone.points == []
    assert alone.x.low < 100 < alone.x.high


@pytest.mark.parametrize(
    ("active", "low", "high", "ticks"),
    [
        ([4.17], 2, 10, [2, 5, 10]),
        ([4.17, 50.2], 2, 100, [2, 5, 10, 20, 50, 100]),
        ([100.0], 50, 130, [50, 100]),
        ([0.1, 100.0], 0.05, 130, [0.1, 1, 10, 100]),
        ([5.0, 10.0], 2, 20, [2, 5, 10, 20]),
    ],
)
def test_ticks_are_round_few_and_reach_beyond_the_runs_but_not_beyond_the_whole(active, low, high, ticks):
    axis = pareto([row(str(x), x / 100, 0.5) for x in active]).x
    assert (axis.low, axis.high, axis.ticks) == (low, high, ticks)


def test_intervals_lie_within_the_axis_and_its_ticks_are_shares():
    axis = pareto([row("a", 0.04, 0.995), row("b", 0.5, 0.9)]).y
    assert axis.low < 89
    assert axis.high > 100
    assert len(axis.ticks) >= 3
    assert all(axis.low <= tick <= 100 for tick in axis.ticks)


def test_every_one_of_many_runs_has_a_look_of_its_own():
    plot = pareto([row(f"run {k}", 0.04 * 1.2**k, 0.5) for k in range(20)])
    assert len({(point.marker, point.colour) for point in plot.points}) == 20


def test_markers_are_closed_outlines_of_one_size():
    for marker in "osD^vPX*<>":
        path = marker_path(marker, radius=5)
        assert path.startswith("M")
        assert path.endswith("Z")
        corners = np.array([float(value) for value in re.findall(r"-?\d+\.\d+", path)]).reshape(-1, 2)
        assert np.hypot(*corners.T).max() == pytest.approx(5, abs=0.01)
    up = np.array([float(value) for value in re.findall(r"-?\d+\.\d+", marker_path("^"))]).reshape(-1, 2)
    assert (up[:, 1] < 0).sum() == 1  # one corner above, as y goes down


def test_the_plot_says_in_words_what_it_shows(tmp_path):
    (plot,) = Page(written(tmp_path, ROWS)).all("svg", role="img")
    assert "sparse: 90.00 % right, 4.17 % of the units fire." in plot["aria-label"]
    assert "dense: 95.00 % right, 100 % of the units fire." in plot["aria-label"]


# --- the table --------------------------------------------------------------------------------


def test_the_table_holds_every_line_of_every_run_as_it_is_printed(tmp_path):
    html = written(tmp_path, ROWS)
    found = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", html)
    told = summaries(comparison_frame(ROWS))
    assert [(title, re.findall("<td>(.*?)</td>", cells)) for title, cells in found] == [
        (title, [value, other]) for (title, value), (_, other) in zip(*told, strict=True)
    ]
    assert len(found) > 10
    heads = [Page(head).text for head in re.findall('<th scope="col">.*?</th>', html)]
    assert heads == ["sparse", "dense"]


def test_wide_tables_scroll_in_a_box_that_the_keyboard_reaches(tmp_path):
    (box,) = Page(written(tmp_path, ROWS)).all("div", **{"class": "wide"})
    assert box["tabindex"] == "0"


def test_what_is_printed_below_the_table_stands_on_the_page(tmp_path):
    said = ["label scores do not compare: other <words>", "dense against sparse: +5.00 points"]
    text = Page(written(tmp_path, ROWS, said=said)).text
    assert all(sentence in text for sentence in said)


def test_one_run_alone_is_compared_with_nobody(tmp_path):
    text = Page(written(tmp_path, ROWS[:1], [image(explanation())])).text
    assert "tested against" not in text
    assert "McNemar" not in text
    assert "through the network" in text


# --- images side by side ----------------------------------------------------------------------


def test_an_image_has_a_column_of_each_run_with_its_own_numbers(tmp_path):
    first = explanation(fired(1, -0.5, "pond"), classes=(("frog", 0.9), ("deer", 0.1)))
    other = explanation(fired(2, 0.25, "hoof"), classes=(("deer", 0.6), ("frog", 0.4)), layer="layer4.act")
    text = Page(written(tmp_path, ROWS, [image(first, other)])).text
    assert "test:0 in truth frog" in text
    sparse, dense = text.split("in truth frog")[1].split("How to read this")[0].split("dense wrong")
    assert sparse.startswith(
        " sparse right frog 90.0 % deer 10.0 % blocks.1.mlp.act: 1 of 96 units fired, 4.17 %"
    )
    assert sparse.endswith(f"1 pond {MINUS}0.500 ")
    assert dense.startswith(" deer 60.0 % frog 40.0 % layer4.act:")
    assert "2 hoof +0.250" in dense


def test_of_a_file_nobody_knows_the_truth(tmp_path):
    text = Page(written(tmp_path, ROWS, [image(explanation(), explanation(), truth=None)])).text
    assert "in truth" not in text
    assert "right frog" not in text


def test_what_all_networks_saw_is_shown_once_and_what_they_saw_differently_for_each(tmp_path):
    alike = [explanation(), explanation()]
    assert len(Page(written(tmp_path / "a", ROWS, [image(*alike)])).all("img")) == 1
    smaller = replace(explanation(), picture=Image.new("RGB", (16, 16)))
    found = Page(written(tmp_path / "b", ROWS, [image(explanation(), smaller)])).all("img")
    assert len({own["src"] for own in found}) == len(found) == 2
    unseen = replace(explanation(), picture=None)
    assert not Page(written(tmp_path / "c", ROWS, [image(unseen, unseen)])).all("img")


def test_each_column_leads_to_a_page_of_its_own_that_names_image_and_run(tmp_path):
    images = [image(explanation(), explanation(), name=name) for name in ("test:0", "a/photo.png")]
    html = written(tmp_path, ROWS, images)
    assert Page(html).links == [
        "inputs/sparse-test-0.html", "inputs/dense-test-0.html",
        "inputs/sparse-a-photo.png.html", "inputs/dense-a-photo.png.html",
    ]  # fmt: skip
    pages = check_links(tmp_path / "index.html")
    own = Page(pages[1].read_text())
    assert "test:0 in dense: frog" in own.text
    assert own.links == ["../index.html"]
    assert images[0].explanations[1].image == "test:12"  # what was explained is left as it was


@pytest.mark.parametrize("text", [*NAUGHTY, "x" * 300])
def test_untrusted_text_appears_as_text_and_leads_nowhere(tmp_path, text):
    def page(folder, text, other):
        rows = [row(text, 1 / 24, 0.9), row(other, 0.0, 0.8)]
        e = explanation(fired(label=text), image=text, classes=((text, 0.7), (other, 0.3)), layer=text)
        return written(folder, rows, [image(e, e, name=text, truth=text), image(e, e, name=text)], [text])

    plain, html = page(tmp_path / "plain", "qq", "qq2"), page(tmp_path / "odd", text, f"{text}2")
    check_alone(html)
    found, wanted = Page(html), Page(plain)
    assert found.shape == wanted.shape
    assert " ".join(found.texts).count(text) == " ".join(wanted.texts).count("qq") > 30
    pages = check_links(tmp_path / "odd" / "index.html")
    assert len(set(pages)) == 4
    for one in pages:
        assert text in Page(one.read_text()).text


# --- the command ------------------------------------------------------------------------------


def test_the_first_four_images_are_explained_by_every_run_as_explain_does(compared, runs, capsys):
    index = compared.sparse.parent / "comparison" / "index.html"
    check_alone(index.read_text())
    assert len(check_links(index)) == 4 * 2
    text = Page(index.read_text()).text
    sections = re.split(r"test:(\d) in truth (\w+) ", text.split("The same image through each network")[1])
    assert sections[1::3] == ["0", "1", "2", "3"]
    assert set(sections[2::3]) == {"blue"}  # the folders come by name
    for place, name in enumerate(("sparse", "dense")):
        dissect.main(["explain", f"--run={runs[place]}", *(f"test:{k}" for k in range(4)), "--json"])
        for found, section in zip(json.loads(capsys.readouterr().out), sections[3::3], strict=True):
            column = re.split("(?:sparse|dense) (?:right|wrong) ", section)[1 + place]
            classes = " ".join(f"{label} {100 * p:.1f} %" for label, p in found["classes"][:3])
            assert column.startswith(classes), (name, column)
            fired = found["layers"][-1]["fired"]
            assert f"{found['layers'][-1]['layer']}: {len(fired)} of 96 units fired" in column
            changes = sorted(
                (u["silenced"] for u in fired if u["silenced"] is not None), key=lambda v: -abs(v)
            )
            shown = re.findall(rf"[+{MINUS}]\d\.\d{{3}}", column.split("How to read")[0])
            assert shown == [f"{v:+.3f}".replace("-", MINUS) for v in changes[:5]]


def test_the_table_that_is_printed_stands_on_the_page(compared):
    text = Page((compared.sparse.parent / "comparison" / "index.html").read_text()).text
    table, _, said = compared.said.partition("\n\n")
    for printed in table.splitlines()[1:]:
        assert " ".join(printed.split()) in text
    (test,) = [sentence for sentence in said.splitlines() if "McNemar" in sentence]
    assert test in text


def test_named_images_are_shown_and_each_run_is_opened_once(runs, image_folder, tmp_path, monkeypatch):
    photo = shutil.copy(next((image_folder / "test" / "red").iterdir()), tmp_path / "a photo.png")
    opened, load = [], commands.subject.load_run
    monkeypatch.setattr(commands.subject, "load_run", lambda run, *own: opened.append(run) or load(run, *own))
    dissect.main(compare_args(runs, "--images", "train:5", str(photo), "test:23"))
    assert opened == [str(run) for run in runs]
    index = runs[0].parent / "comparison" / "index.html"
    assert [path.name for path in check_links(index)] == [
        f"{run}-{name}.html" for name in ("train-5", "a-photo.png", "test-23") for run in ("sparse", "dense")
    ]
    text = Page(index.read_text()).text
    assert "train:5 in truth blue" in text
    assert "test:23 in truth red" in text
    assert "a photo.png sparse" in text


def test_an_image_that_does_not_decode_is_not_among_the_first(runs, image_folder, tmp_path):
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    (data / "test" / "blue" / "001.png").write_bytes(b"no image")
    dissect.main(compare_args(runs, f"--root={data}"))
    text = Page((runs[0].parent / "comparison" / "index.html").read_text()).text
    assert re.findall(r"test:(\d) in truth", text) == ["0", "2", "3", "4"]


def test_a_named_image_that_is_another_in_another_runs_data_is_refused(runs, image_folder, tmp_path):
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    Image.new("RGB", (16, 16)).save(data / "train" / "blue" / "002.png")
    set_data(runs[1], root=str(data))
    message = refused(dissect.main, compare_args(runs, "--images", "train:1", "train:2"))
    assert "the image train:2 is not the same in the data of" in message
    assert not (runs[0].parent / "comparison").exists()


def test_an_image_that_is_not_there_is_refused_before_any_work(runs, monkeypatch):
    monkeypatch.setattr("commands.compare.judge_all", lambda *_: pytest.fail("judged"))
    assert "test:99" in refused(dissect.main, compare_args(runs, "--images", "test:99"))
    assert "nowhere.png" in refused(dissect.main, compare_args(runs, "--images", "test:0", "nowhere.png"))
