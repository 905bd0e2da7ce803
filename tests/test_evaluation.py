"""What an evaluation found, as written, read again and told."""

import json
import math

import pandas as pd
import pytest

from lwta.dissect.evaluate import CONTROLS
from lwta.dissect.evaluation import Evaluation, overview, read_evaluation, sentences, write_evaluation
from lwta.dissect.final_layer import ClassScore
from lwta.dissect.metrics import REPORTED
from lwta.dissect.truth import PairScore, TruthScore
from lwta.errors import InputError

LABELS = {"weights": "w", "probe": "validate"}


def means_of(layer, start=0.5, units=9):
    """Rows as :func:`lwta.dissect.evaluate.means` gives them."""
    rows = []
    for k, metric in enumerate(REPORTED):
        row = {"layer": layer, "metric": metric, "units": units}
        for n, name in enumerate(("label", *CONTROLS, "ahead")):
            row |= {name: start + k / 100 - n / 10, f"{name}_error": 0.01 * (n + 1)}
        rows.append(row)
    return rows


FOUND = Evaluation(
    labels=LABELS,
    judge="the factors of the embedded world",
    circular=False,
    probe="validation[5:9]",
    images=4_000,
    units=12,
    scored=9,
    unscored={"no label": 2, "too few images show it, fewer than 10": 1},
    discoveries=7,
    means=[*means_of("a", units=4), *means_of("b", 0.4, 5), *means_of("all", 0.45)],
)
WHOLE = FOUND._replace(
    kept_images=0.75,
    kept_concepts=0.9,
    truth=TruthScore(5, 7, 0.8, 0.1, 0.85),
    pairs=PairScore(0, math.nan, math.nan, math.nan),
    classes=ClassScore("head", 4, 0.5, 0.75, 0.1, 0.2, math.nan, math.nan, math.nan),
)


@pytest.mark.parametrize("found", [FOUND, WHOLE])
def test_an_evaluation_is_read_as_written_and_only_beside_its_labels(tmp_path, found):
    assert read_evaluation(tmp_path, LABELS) is None
    paths = write_evaluation(tmp_path, found, pd.DataFrame({"unit": [0]}))
    assert [path.name for path in paths] == ["evaluation.csv", "evaluation.json"]
    again = read_evaluation(tmp_path, LABELS)
    assert str(again) == str(found)  # NaN is not equal to itself
    assert isinstance(again, Evaluation)
    assert type(again.truth) is type(found.truth)
    json.loads(paths[1].read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    for other in ({}, LABELS | {"weights": "v"}):
        assert read_evaluation(tmp_path, other) is None


def test_layers_without_a_score_are_missing_and_not_0(tmp_path):
    rows = [row | {"units": 0, **dict.fromkeys([*row][3:], math.nan)} for row in means_of("a")]
    write_evaluation(tmp_path, FOUND._replace(means=rows), pd.DataFrame({"unit": [0]}))
    again = read_evaluation(tmp_path, LABELS)
    assert again is not None
    assert math.isnan(again.mean("correlation")["label"])
    assert overview(again)["label"].tolist() == ["none"] * len(REPORTED)


@pytest.mark.parametrize(
    "change",
    [
        None, {}, [], {"means": []}, {"truth": {"selective": 1}}, {"judge": None}, {"more": 1},
        {"means": [{"metric": "correlation"}]}, {"truth": 3},
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path, change):
    write_evaluation(tmp_path, WHOLE, pd.DataFrame({"unit": [0]}))
    path = tmp_path / "evaluation.json"
    held = json.loads(path.read_text())
    content = json.dumps(held | change if isinstance(change, dict) and change else change)
    path.write_text(content)
    with pytest.raises(
        InputError, match="evaluation.json cannot be read; make it anew with dissect.py evaluate"
    ):
        read_evaluation(tmp_path, LABELS)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="cannot be read"):
        read_evaluation(tmp_path, LABELS)


def test_every_mean_stands_beside_its_controls(tmp_path):
    told = overview(FOUND)
    assert told.columns.tolist() == ["metric", "units", "label", *CONTROLS]
    assert told["metric"].tolist() == [*REPORTED, "correlation, a", "correlation, b"]
    assert told.iloc[0].tolist() == [
        "correlation",
        "9",
        "0.450 ± 0.010",
        "0.350 ± 0.020",
        "0.250 ± 0.030",
        "0.150 ± 0.040",
    ]
    assert told.iloc[6].tolist()[:3] == ["correlation, a", "4", "0.500 ± 0.010"]
    assert len(overview(FOUND._replace(means=means_of("a")))) == len(REPORTED)


def test_what_was_found_is_told_in_sentences():
    said = sentences(WHOLE)
    assert said[0] == (
        "9 of 12 units have a label that the factors of the embedded world can judge on the 4,000 images of "
        "validation[5:9], from which no label was chosen"
    )
    assert said[1] == "7 of those labels are better than chance, at a false discovery rate of 0.05"
    assert said[2] == "not judged: 2 units, no label; 1 units, too few images show it, fewer than 10"
    assert "75 % of draws of other images, and in 90 % of draws of other concepts" in said[3]
    assert [s.split(" ")[0] for s in said[4:]] == ["5", "0", "head:"]
    assert len(sentences(FOUND)) == 3
    assert "(circular: it also chose the labels)" in sentences(FOUND._replace(circular=True))[0]
