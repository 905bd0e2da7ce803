"""What an evaluation found, as written, read again and told."""

import json
import math

import pandas as pd
import pytest

from lwta.dissect.evaluation import Evaluation, overview, read_evaluation, sentences, write_evaluation
from lwta.dissect.judged_layer import CONTROLS
from lwta.dissect.metrics import REPORTED
from lwta.errors import InputError
from tests.judgements import FOUND, LABELS, WHOLE, means_of


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
    assert told.columns.tolist() == ["metric", "units", "label", *CONTROLS, "over shuffled"]
    assert told["metric"].tolist() == [*REPORTED, "correlation, a", "correlation, b"]
    assert told.iloc[0].tolist() == [
        "correlation",
        "9",
        "0.450 ± 0.010",
        "0.350 ± 0.020",
        "0.250 ± 0.030",
        "0.150 ± 0.040",
        "0.050 ± 0.050",
    ]
    assert told.iloc[6].tolist()[:3] == ["correlation, a", "4", "0.500 ± 0.010"]
    assert len(overview(FOUND._replace(means=means_of("a")))) == len(REPORTED)


def test_what_was_found_is_told_in_sentences():
    said = sentences(WHOLE)
    assert said[0] == (
        "9 of 12 units have a label that the factors of the embedded world can judge on 4,000 images of "
        "validation[5:9], from which no label was chosen"
    )
    assert said[1] == (
        "7 of those labels are better than chance, at a false discovery rate of 0.05; so are 2 with one "
        "label for all, 1 shuffled, 0 of random concepts"
    )
    assert said[2] == "not judged: 2 units, no label; 1 units, too few images show it, fewer than 10"
    assert said[3] == (
        "a label stays the same in 75.0 % ± 5.0 of draws of other images (a shuffled one in 10.0 % ± 2.0) "
        "and in 90.0 % ± 5.0 of draws of other concepts that hold it (a shuffled one in 10.0 % ± 2.0)"
    )
    assert [s.split(" ")[0] for s in said[4:]] == ["5", "0", "head:"]
    assert len(sentences(FOUND)) == 3
    images = [row for row in WHOLE.means if row["metric"] != "kept_concepts"]  # no draw held a label
    told = sentences(WHOLE._replace(means=images))[3]
    assert (
        told
        == "a label stays the same in 75.0 % ± 5.0 of draws of other images (a shuffled one in 10.0 % ± 2.0)"
    )
    assert "(circular: it also chose the labels)" in sentences(FOUND._replace(circular=True))[0]
