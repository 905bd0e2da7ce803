"""The page of one input: self-contained, escaped, and the numbers and pixels that it shows."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lwta.dissect.explanation import (
    Counterfactual,
    Drawn,
    Explanation,
    FiredUnit,
    LayerChange,
    LayerExplanation,
    Rival,
    Stability,
    Word,
)
from lwta.dissect.report import render_input
from lwta.dissect.report.page import render_explanation
from lwta.dissect.report.tint import tint
from tests.pages import MINUS, NAUGHTY, Page, check_alone

PICTURE = "the input as the network saw it"


def unit(**changes):
    """A unit that fired, all numbers made up."""
    fields = {
        "unit": 17, "label": "grass", "runner_up": "forest", "reason": None, "value": 1.37, "win_rate": 0.625,
        "contribution": 0.283, "silenced": -0.319, "excluded": 0.127, "probability": 0.62,
        "rivals": [rival(19, "sea", 0.46), rival(20, "moor", 2.5)],
        "map": np.array([[0.0, 1.5], [-0.75, 0.0]]),
    }  # fmt: skip
    return FiredUnit(**(fields | changes))


def rival(number, label, margin):
    return Rival(number, label, None, None, margin=margin, probability=0.25)


def picture(width=24, height=16, level=100):
    return Image.new("RGB", (width, height), (level,) * 3)


def explanation(*units, readout="mean", image="test:12", classes=(("frog", 0.71), ("deer", 0.18)), **layer):
    """Of one layer."""
    fields = {
        "layer": "blocks.1.mlp.act", "units": 96, "competitors": 24, "fired_per_position": 1 / 24,
        "fired_ever": 50 / 96, "contribution": 0.62, "silenced": -0.587, "noise": 0.5,
    }  # fmt: skip
    explained = LayerExplanation(**(fields | layer), fired=list(units))
    return Explanation(
        image, list(classes), classes[0][0], None, 2.5, readout, [explained], picture=picture()
    )


def everything(text="zzzz", **changes):
    """An explanation that holds all there can be, each text of it the same."""
    word = unit(label=text, runner_up=text, rivals=[rival(19, text, 0.46)], stability=0.75)
    nameless = unit(unit=18, label=None, reason=text, map=None, rivals=[])
    unmeasured = unit(unit=21, label=text, silenced=None, excluded=None, map=None, rivals=[])
    found = explanation(
        word, nameless, unmeasured, image=text, classes=((text, 0.71), (text, 0.18)), layer=text,
        drawn=[Drawn(33, text, reason=None, share=0.125)],
    )  # fmt: skip
    found.against = text
    found.stability = Stability(20, [(text, 0.85), ("deer", 0.15)], 0.66, 2.25, 0.375)
    change = LayerChange(text, [Word(44, text)], [Word(45, None, reason=text)], 0.25)
    found.counterfactual = Counterfactual(
        [f"unit 3 of {text} is silenced"], [(text, 0.71, 0.5)], 1.25, [change]
    )
    return replace(found, **changes)


def page(*args, **options):
    return Page(render_input(explanation(*args, **options)))


def told(*args, **options):
    """The text of a page before the words on how to read it."""
    return page(*args, **options).text.split("How to read this")[0]


# --- safe and self-contained ---------------------------------------------------------------------


@pytest.mark.parametrize("render", [render_input, render_explanation])
def test_a_page_and_a_fragment_ask_nothing_of_any_server_and_run_nothing(render):
    html = render(everything())
    check_alone(html)
    pictures = Page(html).addresses
    assert len(pictures) == 3  # the input, and again below the one map
    assert all(address.startswith("data:image/png;base64,") for address in pictures)
    assert len(set(pictures)) == 2


def test_a_fragment_is_the_page_without_its_frame():
    html = render_explanation(everything())
    assert not {"html", "head", "body", "title"} & set(Page(html).tags)
    assert html.strip().startswith("<style>")
    shown = re.search(r"<article.*</article>", html, re.DOTALL)
    assert shown
    assert shown.group() in render_input(everything())


@pytest.mark.parametrize("text", NAUGHTY)
@pytest.mark.parametrize("render", [render_input, render_explanation])
def test_untrusted_text_appears_as_text_wherever_it_is_shown(render, text):
    plain, found = Page(render(everything())), Page(render(everything(text)))
    assert found.shape == plain.shape
    count = " ".join(plain.texts).count("zzzz")
    assert count >= 18  # image, classes, target, against, draws, change, layer, each unit's words
    assert " ".join(found.texts).count(text) == count
    labels = [[meter["aria-label"] for meter in one.all("meter")] for one in (plain, found)]
    assert labels[1] == [value.replace("zzzz", text) for value in labels[0]]


def test_a_concept_that_is_a_script_stands_escaped_in_the_source():
    html = render_input(explanation(unit(label="<script>alert(1)</script>")))
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_an_image_name_with_quotes_and_brackets_is_escaped():
    name = 'my "best" <b>cat\'s</b>.png'
    html = render_input(explanation(unit(), image=name))
    assert name not in html
    assert "<b>" not in html
    assert name in Page(html).text


# --- numbers -------------------------------------------------------------------------------------


def test_the_numbers_of_a_unit_are_shown():
    text = told(unit())
    for part in (
        "grass", "forest", "17", "+1.37", "62.5 %", "62 %", "+0.46 over 19 (sea)", "+2.50 over 20 (moor)",
        "+0.283", f"{MINUS}0.319", "+0.127",
    ):  # fmt: skip
        assert part in text, part
    assert "None" not in text


def test_every_unit_that_fired_is_shown_with_its_own_numbers_measured_or_not():
    units = [
        unit(
            unit=40 + k, label=f"word {k}", value=k + 0.25, contribution=(9 - k) / 1000,
            silenced=None if k > 2 else -k / 1000, rivals=[], map=None,
        )
        for k in range(6)
    ]  # fmt: skip
    text = told(*units)
    places = [text.index(f"word {k}") for k in range(6)]
    assert places == sorted(places)
    for k in range(6):
        part = text[places[k] - 10 : places[k + 1] if k < 5 else None]
        for number in (f"{40 + k}", f"+{k}.25", f"+0.00{9 - k}"):
            assert number in part
    assert "other 3 units that fired" in text


def test_what_is_not_known_of_a_unit_is_left_out():
    bare = FiredUnit(17, reason=None, value=1.37, contribution=0.283, silenced=0.25)
    found = page(bare, readout="cls", competitors=None, noise=None)
    listed = found.text.split("How to read this")[0]
    for part in ("no label", "17", "+1.37", "+0.283", "+0.250"):
        assert part in listed
    for word in ("won at", "margin", "probability", "excluded", "again", "None", "competitors"):
        assert word not in listed
    assert list(found.images) == [PICTURE]


def test_a_unit_without_a_label_shows_the_reason():
    assert "never won" in told(unit(label=None, runner_up=None, reason="never won"))


@pytest.mark.parametrize("silenced", [0.5, None], ids=["measured", "not measured"])
@pytest.mark.parametrize(
    ("value", "negative", "marked"), [(1, False, 0), (1, True, 1), (-1, False, 1), (-1, True, 0)]
)
def test_a_value_of_the_other_sign_than_its_label_describes_is_marked(value, negative, marked, silenced):
    text = told(unit(value=value, negative=negative, silenced=silenced))
    assert len(re.findall("other sign", text)) == marked
    unlabelled = told(unit(value=value, negative=negative, silenced=silenced, label=None, reason="rare"))
    assert "other sign" not in unlabelled


def test_classes_target_and_completeness_are_shown():
    found = page(unit())
    for part in ("frog", "71.0 %", "deer", "18.0 %", "+2.50 above the mean", "+0.620", f"{MINUS}0.587"):
        assert part in found.text, part
    assert [meter["value"] for meter in found.all("meter")] == ["0.71", "0.18"]


def test_the_class_it_is_set_against_is_named():
    found = Page(render_input(replace(explanation(unit()), against="toad")))
    assert re.search(r"logit of frog ?, \+2\.50 above that of toad", found.text)


def test_a_pooled_readout_states_both_fractions_and_a_class_token_one():
    text = told(unit())
    for part in ("1 of 96 units fired", "52.08 %", "4.17 %", "mean over positions"):
        assert part in text, part
    text = told(unit(), readout="cls", fired_ever=4 / 96)
    assert "class token" in text
    assert "4.17 %" in text
    assert "at each position" not in text


def test_draws_are_told():
    text = Page(render_input(everything("toad"))).text
    for part in (
        "20 times", "toad in 85 %", "deer in 15 %", "66.0 %", "+2.25", "0.38", "again", "75 %", "33 (toad)",
    ):  # fmt: skip
        assert part in text, part
    assert "drawn" not in told(unit())


def test_a_change_is_told_with_what_it_changed():
    text = Page(render_input(everything("toad"))).text
    for part in (
        "unit 3 of toad is silenced", "71.0 %", "50.0 %", "+1.250", f"{MINUS}1.250", "25.0 % of the winners",
        "44 (toad)", "45 (toad)",
    ):  # fmt: skip
        assert part in text, part
    nothing = Counterfactual(["unit 3 of act is silenced"], [("frog", 0.71, 0.71)], 2.5, [])
    text = Page(render_input(everything(counterfactual=nothing))).text
    assert "the same units fire" in text


def test_all_layers_are_shown():
    found = explanation(unit(label="early"), layer="blocks.0.mlp.act")
    found.layers += explanation(unit(label="late")).layers
    text = Page(render_input(found)).text
    for part in ("blocks.0.mlp.act", "early", "blocks.1.mlp.act", "late"):
        assert part in text


def test_units_lead_to_their_pages_where_there_are_some():
    def links(layer, unit):
        return f"units/{layer}/{unit}.html" if unit != 20 else None

    found = Page(render_input(explanation(unit(), unit(unit=18, silenced=None)), links))
    assert {f"units/blocks.1.mlp.act/{k}.html" for k in (17, 18, 19)} == set(found.links)


# --- pictures ------------------------------------------------------------------------------------


def test_the_shown_map_is_that_of_the_unit():
    values = np.array([[0.0, 1.5, 0.5], [-0.75, 0.0, -2.0]])
    shown = page(unit(map=values)).picture("where unit 17 fired")
    assert np.array_equal(np.asarray(shown), np.asarray(tint(values)))


def test_maps_of_one_unit_number_in_two_layers_are_kept_apart():
    found = explanation(unit(map=np.ones((1, 1))))
    found.layers += explanation(unit(map=-np.ones((1, 1))), layer="blocks.0.mlp.act").layers
    sources = [image["src"] for image in Page(render_input(found)).all("img")]
    assert len(set(sources[1:])) == 2


def test_the_shown_input_keeps_the_pixels_of_a_small_image():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = explanation(unit())
    found.picture = Image.fromarray(pixels)
    shown = Page(render_input(found)).picture(PICTURE)
    assert np.array_equal(np.asarray(shown), pixels)


def test_without_a_picture_the_maps_are_shown_alone():
    found = Page(render_input(replace(explanation(unit()), picture=None)))
    assert list(found.images) == ["where unit 17 fired"]
    assert "url(" not in render_input(replace(explanation(unit()), picture=None))


# --- tint ----------------------------------------------------------------------------------------

VALUES = np.array([[0.0, 0.0, 0.0, 2.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, -2.0]])


def test_a_map_is_orange_for_positive_values_blue_for_negative_ones_and_dark_where_silent():
    shown = tint(VALUES)
    assert (shown.mode, shown.size) == ("RGBA", (4, 3))
    red, green, blue, opacity = np.asarray(shown).astype(int).transpose(2, 0, 1)
    assert np.array_equal((red > green) & (green > blue), VALUES > 0)
    assert np.array_equal((blue > green) & (green > red), VALUES < 0)
    silent = VALUES == 0
    assert not (red + green + blue)[silent].any()
    assert set(opacity[silent]) == {round(0.65 * 255)}


def test_the_larger_a_value_the_deeper_its_colour_against_the_maps_own_peak():
    opacity = np.asarray(tint(VALUES))[..., 3].astype(int)
    assert opacity[0, 3] == opacity[2, 3] == round(0.7 * 255)
    assert opacity[2, 1] == opacity[1, 0] == round(0.475 * 255)
    for scale in (1e-30, 1e-3, 1e30):
        assert np.array_equal(np.asarray(tint(VALUES * scale)), np.asarray(tint(VALUES)))
    faint = np.asarray(tint(np.array([[1.0, 1e-4, 0.0]])))[0]
    assert faint[1, 0] > 0 == faint[2, 0]


def test_a_map_of_nothing_is_dark_everywhere():
    assert not np.asarray(tint(np.zeros((3, 4))))[..., :3].any()


def test_the_colours_and_opacities_of_a_map():
    found = np.asarray(tint(np.array([[0.0, 2.0], [-1.0, 1e-6]])))
    assert found[0, 0].tolist() == [0, 0, 0, round(255 * 0.65)]
    assert found[0, 1].tolist() == [255, 140, 0, round(255 * 0.7)]
    assert found[1, 0].tolist() == [40, 120, 255, round(255 * (0.25 + 0.45 / 2))]
    assert found[1, 1].tolist() == [255, 140, 0, round(255 * 0.25)]
