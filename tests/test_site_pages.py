"""The pages of networks, units and classes: the numbers, images and links that they show."""

import re

import numpy as np
import pytest
import torch

from lwta.dissect.evaluation import sentences
from lwta.dissect.explanation import Drawn
from lwta.dissect.report import ClassPage, write_site
from lwta.dissect.report.class_page import most
from lwta.dissect.report.tint import tint
from lwta.dissect.report.unit_page import PLOT, bars, histogram_text
from tests.judgements import WHOLE
from tests.pages import MINUS, dangling
from tests.sites import VALUES, class_units, exemplar, histogram, plain, site, unit_page, written
from tests.test_page import explanation, rival, unit


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return written(tmp_path_factory.mktemp("site") / "report")


# --- the network ---------------------------------------------------------------------------------


def test_the_summary_and_the_score_are_shown_as_they_are(tmp_path, pages):
    summary = [("top-1", "71.0 %"), ("dead units", "3 of 96")]
    text = written(tmp_path / "report", summary=summary, score=WHOLE)["index.html"].text
    assert "top-1 71.0 % dead units 3 of 96" in text
    assert "random over shuffled correlation 9 0.450 ± 0.010 0.350 ± 0.020" in text
    assert "0.300 ± 0.030 0.200 ± 0.040 0.100 ± 0.050 correlation, a 4 0.500" in text
    assert " ".join(sentences(WHOLE)) in text
    assert "Are the labels true?" not in pages["index.html"].text


def test_the_table_of_layers(pages):
    text = pages["index.html"].text
    assert f"act 4 2 50.00 % 1 3 {MINUS}1.500 conv.0 3 none 25.00 % 0 0 none" in text


def test_the_classes_are_linked_with_how_many_of_each_were_right(pages):
    assert "cat 20 of 20 dog 10 of 15 cow 0 of 0" in pages["index.html"].text
    assert [f"classes/{k}.html" for k in range(3)] == [
        link for link in pages["index.html"].links if link.startswith("classes")
    ]


def test_a_site_without_classes_and_inputs_does_not_speak_of_them(tmp_path):
    page = written(tmp_path / "report", classes=[], explained=[])["index.html"]
    assert not {"classes", "inputs"} & page.ids
    assert "Explained inputs" not in page.text


def test_the_data_of_the_table_are_those_of_the_labels(pages):
    data = pages["index.html"].data
    assert data["layers"] == [["act", "act"], ["conv.0", "conv.0"]]
    assert data["rows"][0] == [0, 0, "grass 0.0", "grass second", -0.5, 0.375, 0.125, ""]
    assert data["rows"][1] == [
        0, 1, "grass 0.1", "grass second", -1.5, -0.0625, 0.1375,
        "fires mostly with negative values; label not shown to be better than chance",
    ]  # fmt: skip
    assert data["rows"][2][5:] == [None, 0.15, ""]
    assert data["rows"][3] == [0, 3, None, None, None, None, 0.0, "never won"]
    assert [row[:2] for row in data["rows"][4:]] == [[1, 0], [1, 1], [1, 2]]


def test_without_scripts_a_sentence_names_the_file_with_the_same_rows(tmp_path):
    html = write_site(tmp_path / "report", site()).read_text(encoding="utf-8")
    (told,) = re.findall(r"<noscript>(.*?)</noscript>", html, re.DOTALL)
    assert "labels.csv" in told
    assert re.search(r'<div id="browser" hidden>', html)


def test_the_card_of_an_input_shows_the_units_that_changed_most_as_they_were_explained(tmp_path):
    changes = enumerate([0.1, -0.9, 0.2, 0.3])
    units = [unit(unit=k, label=f"word {k}", silenced=change) for k, change in changes]
    units += [unit(unit=7, label="sky", silenced=0.05), unit(unit=8, silenced=0.5, value=-1.0)]
    units += [unit(unit=9, label=None, reason="rare", silenced=-0.4), unit(unit=10, silenced=None)]
    page = written(tmp_path / "report", explained=[explanation(*units, layer="act")])["index.html"]
    shown = page.text.split("label silenced", 1)[1]
    wanted = f"8 grass (other sign) +0.500 9 rare {MINUS}0.400 3 word 3 +0.300 2 word 2 +0.200 Units"
    assert shown.strip().startswith(f"1 word 1 {MINUS}0.900 {wanted}")
    assert "frog 71.0 % deer 18.0 %" in page.text
    assert "act: 8 of 96 units fired, 4.17 % at each position." in page.text
    assert page.images.keys() == {"the input as the network saw it"}
    assert not [link for link in page.links if link.startswith("units/")]
    assert page.links.count("inputs/test-12.html") == 1


def test_the_last_of_several_layers_is_shown_of_an_input(tmp_path):
    found = explanation(unit(label="early"), layer="act")
    found.layers += explanation(unit(label="late"), layer="conv.0").layers
    text = written(tmp_path / "report", explained=[found])["index.html"].text
    assert "late" in text
    assert "early" not in text


# --- inputs --------------------------------------------------------------------------------------


def test_inputs_of_one_name_have_pages_of_their_own(tmp_path):
    explained = [explanation(unit(label=label)) for label in ("hill", "pond")]
    found = written(tmp_path / "report", explained=explained)
    assert "pond" not in found["inputs/test-12.html"].text
    assert "pond" in found["inputs/test-12-2.html"].text
    assert "inputs/test-12-2.html" in found["index.html"].links


def test_an_input_leads_to_the_network_and_to_all_units_it_names_that_have_a_page(tmp_path):
    shown = unit(unit=2, rivals=[rival(3, "sea", 0.5), rival(9, "sky", 0.75)])
    explained = explanation(
        shown, unit(unit=1, silenced=None, rivals=[]), layer="act", drawn=[Drawn(0, share=0.5)]
    )
    explained.layers += explanation(unit(unit=2, rivals=[]), layer="conv.0").layers
    page = written(tmp_path / "report", explained=[explained])["inputs/test-12.html"]
    # the last layer first; no page of a unit 9
    units = ["conv.0/2", "act/2", "act/3", "act/1", "act/0"]
    assert page.links == ["../index.html", *(f"../units/{name}.html" for name in units)]
    for link in page.links:
        assert (tmp_path / "report" / "inputs" / link).is_file()
    assert page.text.startswith("test:12: frog quick test:12: frog")


# --- units ---------------------------------------------------------------------------------------


def test_a_unit_shows_its_labels_its_wins_and_its_block(pages):
    text = pages["units/act/2.html"].text
    for part in (
        "grass 0.2 or grass second unit 2 of act", "block 1, the units 2 to 3, of which one fires",
        "fired on 12 probe images, 15.00 %", f"score grass 0.2 {MINUS}2.500 grass second {MINUS}9.250 Values",
    ):  # fmt: skip
        assert part in text
    assert "negative values" not in text.split("How to read")[0]
    assert "mostly negative values" in pages["units/act/1.html"].text
    assert "block" not in pages["units/conv.0/1.html"].text.split("How to read")[0]


def test_a_dead_unit_has_a_page_with_the_reason(pages):
    page = pages["units/act/3.html"]
    shown = page.text.split("How to read")[0]
    assert "No label unit 3 of act" in shown
    assert "no label never won" in shown
    assert "It fired on no probe image, so" in shown
    assert not {"img", "svg", "table"} & set(page.tags)


def test_the_exemplars_of_a_unit_in_their_groups_with_values_and_maps(pages):
    page = pages["units/act/0.html"]
    hardest, middle, random = re.split(
        "In the middle|At random", page.text.split("Where it fired hardest")[1]
    )
    assert "1.25 five.png" in hardest
    assert f"{MINUS}0.5 six.png" in middle
    assert "1.25 five.png" in random
    found = [address for address in page.addresses if address.endswith(".jpg")]
    assert found == ["../../images/5.jpg", "../../images/6.jpg", "../../images/5.jpg"]
    shown, values = page.picture("where unit 0 fired on five.png"), np.array(VALUES, dtype=np.float32)
    assert np.array_equal(np.asarray(shown), np.asarray(tint(values)))


def test_maps_beside_a_value_of_the_class_token_are_told_from_it(tmp_path, pages):
    told = "The value is that at the class token"
    assert told in pages["units/conv.0/0.html"].text
    assert told not in pages["units/act/0.html"].text
    bare = {"top": [exemplar(values=None)], "middle": [], "random": []}
    table = site().table
    units = [unit_page(row, **bare) for row in plain(table)]
    assert told not in written(tmp_path / "report", units=units)["units/conv.0/0.html"].text


def test_a_unit_names_its_rivals_classes_and_nearest_units_with_links(tmp_path):
    first = {
        "rivals": [(1, 0.625), (3, 0.25)], "pushes": [("dog", 0.75), ("bird", -0.5)],
        "nearest": [("conv.0", 2, 0.875), ("act", 1, -0.25)],
    }  # fmt: skip
    page = written(tmp_path / "report", first=first)["units/act/0.html"]
    assert "1 grass 0.1 62.5 % 3 never won 25.0 %" in page.text
    assert f"dog +0.750 bird {MINUS}0.500" in page.text
    assert f"conv.0 2 grass 1.2 0.88 act 1 grass 0.1 {MINUS}0.25" in page.text
    for link in ("units/act/1.html", "units/act/3.html", "classes/1.html", "units/conv.0/2.html"):
        assert f"../../{link}" in page.links


def test_a_class_name_that_two_classes_share_is_not_linked(tmp_path):
    first = {"pushes": [("crane", 0.5), ("cow", 0.25)]}
    page = written(tmp_path / "report", names=["crane", "crane", "cow"], first=first)["units/act/0.html"]
    assert "crane +0.500 cow +0.250" in page.text
    assert [link for link in page.links if "classes" in link] == ["../../classes/2.html"]


def test_a_unit_leads_to_those_before_and_after_it_in_its_layer(pages):
    def turns(name):
        return [link for link in pages[name].links if link.startswith("../../units/")]

    assert turns("units/act/0.html") == ["../../units/act/1.html"]
    assert turns("units/act/1.html") == ["../../units/act/0.html", "../../units/act/2.html"]
    assert turns("units/act/3.html") == ["../../units/act/2.html"]
    assert turns("units/conv.0/0.html") == ["../../units/conv.0/1.html"]


# --- histograms ----------------------------------------------------------------------------------


def test_the_bars_of_a_histogram_stand_where_their_values_are():
    found = bars(histogram((2, 0, 8), (-1.0, 0.0, 1.0, 3.0)))
    width, height = PLOT
    assert [tuple(bar) for bar in found] == [
        (0, 0.75 * height, width / 4, 0.25 * height, True), (width / 2, 0, width / 2, height, False),
    ]  # fmt: skip


def test_a_histogram_of_nothing_has_no_bars_and_says_so():
    assert bars(histogram((0, 0, 0))) == []
    assert histogram_text(histogram((0, 0, 0))) == "It fired on none of the images surveyed."


def test_the_text_of_a_histogram_tells_its_range_and_its_peak(pages):
    told = (
        f"Values on the 4 images surveyed on which it fired: from {MINUS}1 to 2, most often between "
        "1 and 2 (3)."
    )
    assert histogram_text(histogram()) == told
    page = pages["units/act/0.html"]
    assert page.all("svg", **{"aria-label": told})
    assert page.tags.count("rect") == 2
    assert f"3 0 images {MINUS}1 2 value where it fired" in page.text
    assert "from 1 to 2" in histogram_text(histogram((0, 0, 3)))
    small = histogram_text(histogram((0, 1), (0.03, 0.0312, 0.0325)))
    assert "on the 1 image surveyed on which it fired: from 0.0312 to 0.0325" in small


# --- classes -------------------------------------------------------------------------------------


def test_a_class_lists_the_units_that_fire_for_it_and_drive_it(pages):
    page = pages["classes/0.html"]
    assert "20 of the 20 surveyed images of this class are predicted as it, 100.0 %." in page.text
    assert "here elsewhere 0 grass 0.0 90.0 % 10.0 % 1 grass 0.1 50.0 % 40.0 % Drive it" in page.text
    assert "contribution 2 grass 0.2 +2.000 1 grass 0.1 +0.250 How to read" in page.text
    assert "../units/act/2.html" in page.links


def test_the_errors_of_a_class_with_what_it_is_mistaken_for(pages):
    page = pages["classes/1.html"]
    assert "10 of the 15 surveyed images of this class are predicted as it, 66.7 %." in page.text
    assert re.search(r"The others are taken for dog ?\(3\), 9 ?\(2\)\.", page.text)
    assert "errors all 2 grass 0.2 80.0 % 20.0 % 1 grass 0.1 60.0 % 50.0 % Drive its errors" in page.text
    assert "contribution 2 grass 0.2 +0.750 0 grass 0.0 +0.500 How to read" in page.text
    assert "errors" not in pages["classes/0.html"].text.split("How to read")[0]


def test_a_class_without_images_says_so(pages):
    page = pages["classes/2.html"]
    assert "None of the surveyed images is of this class" in page.text
    assert "table" not in page.tags


def test_a_class_whose_images_nobody_knows_claims_no_accuracy(tmp_path):
    units = [("act", class_units()), ("conv.0", class_units())]
    classes = [ClassPage(0, "cat", 12, None, units), ClassPage(1, "dog", 0, None, units)]
    found = written(tmp_path / "report", classes=classes)
    assert "Beside each, the surveyed images predicted as it" in found["index.html"].text
    assert "cat 12 dog 0 How to read" in found["index.html"].text
    for k, count in enumerate((12, 0)):
        text = found[f"classes/{k}.html"].text.split("How to read")[0]
        assert f"{count} of the surveyed images are predicted as this class; whether they are" in text
        assert "right" not in text
        assert ("Drive it where it is predicted" in text) == (count > 0)
    assert list(dangling(tmp_path / "report")) == []


def test_classes_lead_to_those_before_and_after(pages):
    assert [link for link in pages["classes/1.html"].links if re.fullmatch(r"\d.html", link)] == [
        "0.html", "2.html",
    ]  # fmt: skip


def test_the_largest_scores_above_nothing_are_chosen_and_at_most_ten():
    scores = torch.tensor([0.5, float("nan"), -1.0, 0.0, 2.0, 0.5])
    assert most(scores) == [4, 0, 5]
    many = torch.randn(200, generator=torch.Generator().manual_seed(0))
    assert most(many) == sorted(range(200), key=lambda k: -many[k])[:10]
