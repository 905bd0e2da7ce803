"""The page of one input: self-contained, escaped, and the numbers and pixels that it shows."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from lwta.dissect.explain import Explanation, FiredUnit, LayerExplanation
from lwta.dissect.report import render_input
from lwta.dissect.report.page import position_map


def unit(**changes):
    fields = {
        "unit": 17, "label": "grass", "runner_up": "forest", "reason": None, "value": 1.37, "margin": 0.46,
        "rival": 19, "rival_label": "sea", "win_rate": 0.625, "contribution": 0.283, "change": -0.319,
        "sign_differs": False, "map": [[0.0, 1.5], [-0.75, 0.0]],
    }  # fmt: skip
    return FiredUnit(**(fields | changes))


def explanation(*units, readout="mean", image="test:12", classes=(("frog", 0.71), ("deer", 0.18)), **layer):
    fields = {
        "layer": "blocks.1.mlp.act", "units": 96, "competitors": 24,
        "fired_per_position": 1 / 24, "fired_ever": 50 / 96, "contribution": 0.62,
    }  # fmt: skip
    explained = LayerExplanation(**(fields | layer), fired=list(units))
    return Explanation(image, list(classes), classes[0][0], 2.5, readout, [explained])


class Page(HTMLParser):
    """Tags, attributes and text of a page; ``images`` are its pictures by their alternative text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.texts, self.images = [], [], [], {}
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "img":
            found = dict(attrs)
            data = base64.b64decode(found["src"].partition(";base64,")[2])
            self.images[found["alt"]] = Image.open(io.BytesIO(data))

    def handle_data(self, data):
        if self.cdata_elem != "style":
            self.texts.append(data)


def picture(width=24, height=16, level=100):
    return Image.new("RGB", (width, height), (level,) * 3)


def page(*args, **options):
    return Page(render_input(explanation(*args, **options), picture()))


# --- render_input --------------------------------------------------------------------------------


def test_a_page_asks_nothing_of_any_server_and_runs_nothing():
    html = render_input(explanation(unit()), picture())
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html
    found = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(found.tags)
    links = [value for name, value in found.attributes if name in ("src", "href", "srcset", "action")]
    assert len(links) == 2  # the input and one map
    assert all(value.startswith("data:image/png;base64,") for value in links)
    assert not [name for name, _ in found.attributes if name.startswith("on")]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "\"><img src=x onerror='alert(1)'>", "a & b"])
def test_untrusted_text_appears_as_text_wherever_it_is_shown(text):
    plain = page(unit(), unit(unit=18, label=None, reason="rare", map=None))
    found = page(
        unit(label=text, runner_up=text, rival_label=text),
        unit(unit=18, label=None, reason=text, map=None),
        image=text,
        classes=((text, 0.71), (text, 0.18)),
        layer=text,
    )
    assert found.tags == plain.tags
    assert [name for name, _ in found.attributes] == [name for name, _ in plain.attributes]
    # title and heading (image and class each), two classes, target, layer, four of the units
    assert " ".join(found.texts).count(text) == 12
    assert [value for name, value in found.attributes if name == "aria-label"] == [text, text]


def test_an_escaped_script_stands_in_the_source():
    html = render_input(explanation(unit(label="<script>alert(1)</script>")), picture())
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_an_image_name_with_quotes_and_brackets_is_escaped():
    name = 'my "best" <b>cat\'s</b>.png'
    html = render_input(explanation(unit(), image=name), picture())
    assert name not in html
    assert "<b>" not in html
    assert f"{name}: frog" in Page(html).text


def test_the_numbers_of_a_unit_are_shown():
    text = page(unit()).text
    for part in (
        "grass or forest unit 17 value +1.37", "won at 62.50 % of positions", "margin +0.46 over 19 (sea)",
        "contribution +0.283 silenced \N{MINUS SIGN}0.319",
    ):  # fmt: skip
        assert part in text


def test_every_listed_unit_is_shown_with_its_own_numbers():
    units = [unit(unit=k, label=f"word {k}", value=k + 0.25, contribution=k / 10, map=None) for k in range(3)]
    text = page(*units).text
    for k in range(3):
        assert f"word {k} or forest unit {k} value +{k}.25" in text
        assert f"contribution +0.{k}0" in text


def test_what_is_not_known_of_a_unit_is_left_out():
    bare = unit(
        label=None, runner_up=None, reason=None, margin=None, rival=None, rival_label=None,
        change=None, map=None,
    )  # fmt: skip
    found = page(bare, readout="cls", competitors=None)
    listed = found.text.split("How to read this")[0]
    assert "no label unit 17 value +1.37 contribution +0.283" in listed
    for word in (" or ", "won at", "margin", "silenced", "None", "competitors"):
        assert word not in listed
    assert list(found.images) == ["the input as the network saw it"]


def test_a_unit_without_a_label_shows_the_reason():
    assert "never won unit 17" in page(unit(label=None, reason="never won")).text


def test_a_value_of_the_other_sign_is_marked():
    assert "its label describes values of the other sign" in page(unit(sign_differs=True)).text
    assert "its label describes values of the other sign" not in page(unit()).text


def test_classes_and_target_are_shown():
    found = page(unit())
    assert "frog 71.0 %" in found.text
    assert "deer 18.0 %" in found.text
    assert "units together contribute +0.62 of the logit, to first order" in found.text
    assert "the logit of frog , +2.50 above the mean over classes" in found.text
    assert [value for name, value in found.attributes if name == "value"] == ["0.71", "0.18"]


def test_a_pooled_readout_states_both_fractions():
    text = page(unit()).text
    assert "50 of 96 units fired somewhere in the image (52.08 %); at each position 4.17 %." in text
    assert "Values are the mean over positions" in text
    assert "One of every 24 competitors wins" in text


def test_a_class_token_states_one_fraction():
    text = page(unit(), readout="cls", fired_ever=4 / 96).text
    assert "4 of 96 units fired at the class token (4.17 %)." in text
    assert "at each position" not in text


def test_a_shortened_list_says_so():
    assert "The 1 with the largest contributions are shown" in page(unit()).text
    assert "largest contributions are shown" not in page(unit(), fired_ever=1 / 96).text


def test_maps_of_one_unit_number_in_two_layers_are_kept_apart():
    found = explanation(unit(map=[[1.0]]))
    found.layers += explanation(unit(map=[[-1.0]]), layer="blocks.0.mlp.act").layers
    html = render_input(found, picture())
    sources = [value for name, value in Page(html).attributes if name == "src"]
    assert len(set(sources[1:])) == 2


def test_the_shown_map_is_that_of_the_unit():
    found = page(unit())
    shown = np.asarray(found.images["where unit 17 fired"])
    assert np.array_equal(shown, np.asarray(position_map(picture(), np.array(unit().map))))


def test_the_shown_input_keeps_the_pixels_of_a_small_image():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = Page(render_input(explanation(unit()), Image.fromarray(pixels)))
    shown = np.asarray(found.images["the input as the network saw it"])
    assert np.array_equal(shown[7::14, 7::14], pixels)


# --- position_map --------------------------------------------------------------------------------


def cells(image, rows, columns):
    """The pixel in the middle of each cell of a grid over an image."""
    pixels = np.asarray(image).astype(int)
    height, width = pixels.shape[:2]
    ys = [(2 * r + 1) * height // (2 * rows) for r in range(rows)]
    xs = [(2 * c + 1) * width // (2 * columns) for c in range(columns)]
    return pixels[np.ix_(ys, xs)]


VALUES = np.array([[0.0, 0.0, 0.0, 2.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, -2.0]])


def test_where_a_unit_did_not_fire_the_image_is_dark():
    found = cells(position_map(picture(level=100), VALUES), 3, 4)
    assert (found[VALUES == 0] == 35).all()


def test_positive_values_are_orange_and_negative_ones_blue_on_rows_and_columns_of_the_grid():
    found = cells(position_map(picture(level=100), VALUES), 3, 4)
    red, green, blue = found[..., 0], found[..., 1], found[..., 2]
    assert np.array_equal((red > green) & (green > blue), VALUES > 0)
    assert np.array_equal((blue > green) & (green > red), VALUES < 0)


def test_the_stronger_a_value_the_deeper_its_colour():
    found = cells(position_map(picture(level=100), VALUES), 3, 4)
    for strong, weak in (((0, 3), (2, 1)), ((2, 3), (1, 0))):
        assert np.ptp(found[strong]) > np.ptp(found[weak]) > 20
    # .25 of the tint at nothing, .7 at the peak
    assert found[0, 3].tolist() == [round(0.3 * 100 + 0.7 * 255), round(0.3 * 100 + 0.7 * 140), 30]
    assert found[2, 1].tolist() == [
        pytest.approx(0.525 * 100 + 0.475 * tint, abs=0.51) for tint in (255, 140, 0)
    ]


def test_the_scale_of_a_map_is_its_own_peak():
    one, other = (np.asarray(position_map(picture(), VALUES * scale)) for scale in (1.0, 1e-3))
    assert np.array_equal(one, other)


def test_a_faint_value_is_still_told_from_silence():
    found = cells(position_map(picture(level=100), np.array([[1.0, 1e-4, 0.0]])), 1, 3)
    assert found[0, 1].tolist() == [139, 110, 75]
    assert found[0, 2].tolist() == [35, 35, 35]


def test_a_map_of_nothing_is_dark_everywhere():
    assert (np.asarray(position_map(picture(level=200), np.zeros((3, 4)))) == 70).all()


def test_a_map_lies_over_the_image_beneath_it():
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[0, 3] = 200  # top right
    dark = cells(position_map(Image.fromarray(pixels), np.zeros((4, 4))), 4, 4)
    assert dark[0, 3].tolist() == [70, 70, 70]
    assert dark.sum() == 210


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_modes_are_mapped_as_rgb(mode):
    image = picture(level=100).convert(mode)
    found = np.asarray(position_map(image, VALUES))
    assert np.array_equal(found, np.asarray(position_map(image.convert("RGB"), VALUES)))
