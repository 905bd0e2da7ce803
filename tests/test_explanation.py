"""An explanation as words, JSON, text and a table."""

import json
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest

from lwta.dissect.explanation import FiredUnit, LayerExplanation, Rival, Word
from lwta.dissect.intervene import Change
from lwta.dissect.labels import COLUMNS
from tests.by_hand import CLASSES, FIRST, LAST, MEAN, image, vit, vit_explained
from tests.test_page import everything

__all__ = ["image", "vit"]  # fixtures


def table_of(*rows, layer=LAST):
    """Labels of some units, by the columns given."""
    blank = {"layer": layer, "alive": True, "wins": 20, "win_rate": 0.1, "negative": False}
    return pd.DataFrame([blank | row for row in rows], columns=list(COLUMNS))


@pytest.fixture
def explained(vit, image):
    """Both layers with draws and a change, so that all kinds of units are named."""
    unit = vit_explained(vit, image, [FIRST]).layers[0].fired[0]
    change = Change({FIRST: [unit.unit]}, {LAST: {0: 3}})
    return vit_explained(vit, image, readout=MEAN, samples=8, change=change, name="test:12", top=5)


def rows_of(text, layer):
    """The lines of a layer's table."""
    lines = text.split(f"\n{layer.layer}: ")[1].split("\n\n")[0].splitlines()[3:]
    return [line for line in lines if not line.startswith("   ...") and "when drawn:" not in line]


# --- words ---------------------------------------------------------------------------------------


def test_words_are_all_units_that_are_named_each_with_its_layer(explained):
    expected = []
    for layer in explained.layers:
        for unit in layer.fired:
            expected += [(layer.layer, unit.unit), *((layer.layer, rival.unit) for rival in unit.rivals)]
        expected += [(layer.layer, unit.unit) for unit in layer.drawn]
    for change in explained.counterfactual.layers:
        expected += [(change.layer, word.unit) for word in [*change.gained, *change.lost]]
    assert [(layer, word.unit) for layer, word in explained.words()] == expected
    assert len({type(word) for _, word in explained.words()}) == 4  # fired, rivals, drawn, changed


def test_labels_appear_wherever_a_unit_is_named(explained):
    named = sorted({(layer, word.unit) for layer, word in explained.words()})
    rows = [
        {"layer": layer, "unit": unit, "label": f"{layer} {unit}", "label_2": "sea"} for layer, unit in named
    ]
    assert explained.label(table_of(*rows)) is explained
    for layer, word in explained.words():
        assert (word.label, word.runner_up, word.reason) == (f"{layer} {word.unit}", "sea", None)
        assert str(word) == f"{word.unit} ({layer} {word.unit})"


@pytest.mark.parametrize("typed", [False, True], ids=["as made", "as read"])
def test_a_label_is_of_a_layer_and_a_unit_and_reasons_stand_where_there_is_none(vit, image, typed):
    found = vit_explained(vit, image, [LAST])
    first, second, third, fourth = (u.unit for u in found.layers[0].fired)
    rival = found.layers[0].fired[0].rivals[0].unit
    labels = pd.concat(
        [
            table_of(
                {"unit": first, "label": "grass", "label_2": "forest", "score": 1.0},
                {"unit": rival, "label": "sea", "negative": True},
                {"unit": second, "alive": False, "reason": "never won"},
            ),
            table_of({"unit": third, "label": "of another layer"}, layer=FIRST),
        ]
    )
    found.label(labels.astype(COLUMNS) if typed else labels)
    one, two, three, four = found.layers[0].fired
    assert (one.label, one.runner_up, one.reason) == ("grass", "forest", None)
    assert (one.rivals[0].label, one.rivals[0].negative) == ("sea", True)
    assert (two.label, two.runner_up, two.reason) == (None, None, "never won")
    assert (three.label, three.reason) == (four.label, four.reason) == (None, "not labelled")
    text = found.table()
    for part in ("grass", f"{rival} (sea)", "(never won)", "(not labelled)"):
        assert part in text
    assert "of another layer" not in text
    assert four.unit == fourth


@pytest.mark.parametrize(
    ("value", "negative", "differs"),
    [(1.0, False, False), (1.0, True, True), (-1.0, False, True), (-1.0, True, False), (0.0, False, False),
     (0.0, True, False), (-0.0, False, False)],
)  # fmt: skip
def test_a_value_of_the_other_sign_than_the_label_describes_is_marked(value, negative, differs):
    unit = FiredUnit(3, "grass", reason=None, value=value, negative=negative, silenced=0.0)
    assert unit.sign_differs is differs
    assert FiredUnit(3, None, value=value, negative=negative).sign_differs is False
    found = everything()
    found.layers = [LayerExplanation("act", 8, 2, 0.5, 0.5, 0.0, 0.0, [unit])]
    assert ("other sign" in found.table()) is differs


def test_signs_follow_the_labels_of_a_network_with_negative_winners(vit, image):
    fired = vit_explained(vit, image, [LAST]).layers[0].fired
    assert {u.value < 0 for u in fired} == {True, False}
    for negative in (True, False):
        labels = table_of(*({"unit": u.unit, "label": "grass", "negative": negative} for u in fired))
        for u in vit_explained(vit, image, [LAST]).label(labels).layers[0].fired:
            assert u.sign_differs is ((u.value < 0) != negative)


# --- JSON ----------------------------------------------------------------------------------------


def plain(value):
    """Attributes of dataclasses, arrays as lists, tuples as JSON has them."""
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


def test_an_explanation_is_json_and_loses_nothing_there(explained):
    explained.label(table_of({"unit": explained.layers[1].fired[0].unit, "label": "grass"}))
    found = json.loads(json.dumps(explained.to_dict(), allow_nan=False))
    for layer, there in zip(explained.layers, found["layers"], strict=True):
        for u, row in zip(layer.fired, there["fired"], strict=True):
            assert (row.pop("margin"), row.pop("sign_differs")) == (u.margin, u.sign_differs)
    expected = plain(explained)
    expected.pop("picture")
    assert found == expected
    assert found["image"] == "test:12"
    assert found["layers"][1]["fired"][0]["label"] == "grass"
    assert len(found["layers"][0]["fired"][0]["map"]) == 4
    for part in ("stability", "counterfactual"):
        assert found[part]


def test_a_picture_is_no_json_and_the_rest_is():
    found = everything()
    assert found.picture is not None
    assert "picture" not in found.to_dict()
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_frame_has_a_row_for_each_unit_that_fired(explained):
    frame = explained.frame()
    fired = [(layer.layer, u) for layer in explained.layers for u in layer.fired]
    assert list(frame[["layer", "unit"]].itertuples(index=False, name=None)) == [
        (layer, u.unit) for layer, u in fired
    ]
    np.testing.assert_array_equal(frame["contribution"], [u.contribution for _, u in fired])
    assert frame["silenced"].notna().sum() == 2 * 5


# --- text ----------------------------------------------------------------------------------------


def test_the_table_holds_the_numbers(vit, image):
    found = vit_explained(vit, image, name="test:12")
    lines = found.table().splitlines()
    assert lines[0].startswith(f"test:12: {found.classes[0][0]} {found.classes[0][1]:.2f}")
    assert lines[1] == f"logit of {found.target} above the mean of all: {found.score:+.2f}"
    for layer in found.layers:
        assert f"\n{layer.headline('cls')}\n{layer.completeness('cls')}\n" in found.table()
        shown = rows_of(found.table(), layer)
        assert len(shown) == len(layer.fired) == 4
        for u, line in zip(layer.fired, shown, strict=True):
            words = line.replace("(not labelled)", "").replace("%", "").split()
            unit, value, margin, wins, rival, contribution, silenced, excluded = map(float, words)
            assert (unit, rival) == (u.unit, u.rivals[0].unit)
            assert (value, margin) == pytest.approx((u.value, u.margin), abs=0.0051)
            assert wins == pytest.approx(100 * u.probability, abs=0.51)
            assert contribution == pytest.approx(u.contribution, abs=0.00051)
            assert (silenced, excluded) == pytest.approx((u.silenced, u.excluded), abs=0.00051)


def test_the_table_of_two_classes_names_both(vit, image):
    found = vit_explained(vit, image, target=1, against=2)
    assert f"logit of {CLASSES[1]} above that of {CLASSES[2]}: {found.score:+.2f}" in found.table()


@pytest.mark.parametrize("top", [0, 2])
def test_the_table_says_how_many_it_leaves_out(vit, image, top):
    found = vit_explained(vit, image, [LAST], MEAN, top=top)
    (layer,) = found.layers
    assert len(rows_of(found.table(), layer)) == top
    left = len(layer.fired) - top
    told = f"and {left} that contribute less" if top else f"{left} units"
    assert f"   ... {told}; the page and --json list them" in found.table()
    assert layer.headline("mean") in found.table()
    assert f"{len(layer.fired)} of 96 units fired ({100 * len(layer.fired) / 96:.2f} %)" in found.table()
    assert "4.17 % per position, read as their mean" in found.table()


def test_draws_and_changes_are_told(explained):
    text, drawn, changed = explained.table(), explained.stability, explained.counterfactual
    name, share = drawn.classes[0]
    assert f"winners drawn 8 times: predicted {name} {100 * share:.0f} %" in text
    assert f"score {drawn.score:+.2f}, standard deviation {drawn.deviation:.2f}" in text
    for layer in explained.layers:
        for u, line in zip(layer.measured, rows_of(text, layer), strict=True):
            assert line.endswith(f" {100 * u.stability:.0f} %")
    assert f"where {' and '.join(changed.told)}:" in text
    assert f"{changed.score:+.2f} ({changed.score - explained.score:+.3f})" in text
    for layer in changed.layers:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {layer.layer}: ")]
        assert f"{100 * layer.positions:.1f} % of the winners are others" in line
        for units, told in ((layer.gained, "fire now: "), (layer.lost, "no longer: ")):
            if units:
                first = line.split(told)[1].split(";")[0]
                assert first.startswith(str(units[0]))
                assert (" more" in first) == (len(units) > 8)


def test_an_explanation_shows_itself_in_a_notebook(explained):
    html = explained._repr_html_()
    for text in ("test:12", explained.target, FIRST, LAST, str(explained.layers[0].fired[0].unit)):
        assert text in html
    assert "<html" not in html


def test_a_word_without_a_label_says_why():
    assert str(Word(3)) == "3 (not labelled)"
    assert str(Rival(3, reason=None)) == "3 (no label)"
    assert FiredUnit(3).margin is None
    assert FiredUnit(3, rivals=[Rival(4, margin=0.5), Rival(5, margin=0.75)]).margin == 0.5
