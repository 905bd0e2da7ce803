"""The gallery of explained images: cards that say what was found, and links that lead to their pages."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import dissect
from lwta.dissect.report import render_gallery
from lwta.dissect.report.names import file_stem, numbered
from tests.comparing import explanation, fired
from tests.pages import MINUS, NAUGHTY, Page, check_alone, check_links


def gallery(*explained, name="run", page="page.html"):
    return render_gallery(name, [(e, page) for e in explained or [explanation()]])


# --- cards ------------------------------------------------------------------------------------


def test_a_gallery_asks_nothing_of_any_server_and_runs_nothing():
    check_alone(gallery())


def test_a_card_shows_the_picture_the_classes_and_how_much_fired():
    html = gallery(explanation(fired(), fired(18), image="cat.png"))
    found = Page(html)
    assert "run: 1 explained image " in found.text
    assert found.links == ["page.html"]
    assert "cat.png frog 71.0 % deer 18.0 %" in found.text
    assert [meter["value"] for meter in found.all("meter")] == ["0.71", "0.18"]
    assert "blocks.1.mlp.act: 2 of 96 units fired, 4.17 % at each position." in found.text
    (image,) = found.all("img")
    assert image["src"].startswith("data:image/png;base64,")
    assert image["class"] == "small"


def test_a_large_picture_is_not_drawn_pixel_by_pixel():
    e = explanation()
    e.picture = Image.new("RGB", (224, 224))
    (image,) = Page(gallery(e)).all("img")
    assert image["src"].startswith("data:image/jpeg;base64,")
    assert "class" not in image


def test_at_a_class_token_one_fraction_is_told():
    e = explanation(fired_ever=4 / 96)
    e.readout = "cls"
    text = Page(gallery(e)).text
    assert "1 of 96 units fired, 4.17 % at the class token." in text
    assert "at each position" not in text


def test_the_five_units_of_the_last_layer_that_changed_most_are_named_the_largest_first():
    changes = {0: 0.1, 1: -0.7, 2: 0.3, 3: None, 4: -0.2, 5: 0.05, 6: -0.4}
    e = explanation(*(fired(unit, change, f"word {unit}") for unit, change in changes.items()))
    e.layers.insert(0, explanation(fired(90, 9.0, "of an earlier layer"), layer="blocks.0.mlp.act").layers[0])
    shown = Page(gallery(e)).text.split("silenced", 1)[1].split("How to read")[0]
    assert (
        shown.split()
        == (
            f"1 word 1 {MINUS}0.700 6 word 6 {MINUS}0.400 2 word 2 +0.300 4 word 4 {MINUS}0.200 "
            "0 word 0 +0.100"
        ).split()
    )


def test_units_without_a_label_say_why_and_where_none_was_measured_the_card_says_so():
    bare = fired(label=None)
    bare.reason = "never won"
    assert "17 never won" in Page(gallery(explanation(bare))).text
    assert "no unit's silencing was measured" in Page(gallery(explanation(fired(silenced=None)))).text


def test_a_value_of_the_other_sign_is_marked():
    unit = fired()
    unit.value = -1.0
    assert "grass (other sign)" in Page(gallery(explanation(unit))).text


@pytest.mark.parametrize("text", NAUGHTY)
def test_untrusted_text_appears_as_text_wherever_it_is_shown(text):
    plain = Page(gallery(explanation(image="i"), name="n"))
    html = gallery(
        explanation(fired(label=text), image=text, classes=((text, 0.71), (text, 0.18)), layer=text),
        name=text,
        page=f"{text}.html",
    )
    check_alone(html)
    found = Page(html)
    assert found.shape == plain.shape
    # title and heading, the card's heading, two classes, layer, label
    assert " ".join(found.texts).count(text) == 7


# --- names of files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        ("test:12", "test-12"),
        ("../../etc/passwd", "etc-passwd"),
        ('my "best" cat\'s.png', "my-best-cat-s.png"),
        ("<script>", "script"),
        ("Käse", "K-se"),
        ("..", "unnamed"),
        ("x" * 300, "x" * 60),
    ],
)
def test_a_name_becomes_one_that_every_system_takes(text, stem):
    assert file_stem(text) == stem


def test_names_that_come_again_are_numbered_and_never_meet():
    found = numbered(["a", "b", "a", "A", "a-2", "index"], ["index"])
    assert found == ["a", "b", "a-2", "A-3", "a-2-2", "index-2"]


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def run(compared, tmp_path) -> Path:
    """A labelled run without pages."""
    return Path(
        shutil.copytree(compared.sparse, tmp_path / "run", ignore=shutil.ignore_patterns("explanations"))
    )


def test_several_images_make_a_gallery_of_what_was_explained(run, capsys):
    dissect.main(["explain", f"--run={run}", "test:0", "test:20", "--json"])
    captured = capsys.readouterr()
    index = run / "explanations" / "index.html"
    assert f"gallery: {index}" in captured.err
    pages = check_links(index)
    assert [path.name for path in pages] == ["test-0.html", "test-20.html"]
    assert [Page(path.read_text()).links for path in pages] == [["index.html"]] * 2
    text = Page(index.read_text()).text
    assert "run: 2 explained images" in text
    for found in json.loads(captured.out):
        name, probability = found["classes"][0]
        told = "right" if found["truth"] == name else f"wrong: in truth {found['truth']}"
        assert f"{found['image']} {told} {name} {100 * probability:.1f} %" in text
        measured = [unit for unit in found["layers"][-1]["fired"] if unit["silenced"] is not None]
        best = max(measured, key=lambda unit: abs(unit["silenced"]))
        change = f"{best['silenced']:+.3f}".replace("-", MINUS)
        assert f"unit label silenced {best['unit']} {best['label'] or best['reason']} {change}" in text


def test_one_image_makes_no_gallery(run):
    dissect.main(["explain", f"--run={run}", "test:0"])
    (page,) = (run / "explanations").iterdir()
    assert page.name == "test-0.html"
    assert Page(page.read_text()).links == []


def test_a_folder_makes_a_gallery_whatever_its_images_are_called(run, image_folder, tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    image = next((image_folder / "test" / "red").iterdir())
    names = ["index.png", 'it\'s #1 <b>"best"100%.png', "more/index.png"]
    for name in names:
        shutil.copy(image, folder / name)
    dissect.main(["explain", f"--run={run}", str(folder)])
    index = run / "explanations" / "index.html"
    check_alone(index.read_text())
    assert len(set(check_links(index))) == 3
    assert {path.name for path in (run / "explanations").iterdir()} == {
        "index.html", "index-2.html", "index-3.html", f"{Path(names[1]).stem}.html",
    }  # fmt: skip
    assert Path(names[1]).name in Page(index.read_text()).text


def test_a_folder_of_one_image_has_its_gallery_too(run, image_folder, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(next((image_folder / "test" / "red").iterdir()), folder / "red.png")
    dissect.main(["explain", f"--run={run}", str(folder)])
    assert [path.name for path in check_links(run / "explanations" / "index.html")] == ["red.html"]
