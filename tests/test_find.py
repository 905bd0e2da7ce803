"""find: units by their score for any text, against scoring the text by hand among the concepts."""

import numpy as np
import pandas as pd
import pytest

import dissect
from tests.conftest import refused
from tests.reference_similarity import less_prior, soft_wpmi_likelihood
from tests.toy import (
    WORDS,
    cosines,
    label_args,
    labelled,
    network,
    network_args,
    outputs,
    passes,
    pixels,
    probe,
    strongest,
    toys,
)

__all__ = ["passes", "toys"]  # fixtures

TEXT = "a striped thing"


def found(capsys, text, *args):
    """What find prints: place, number of words, and a list of (layer, unit, score, place, label)."""
    capsys.readouterr()
    dissect.main(["find", text, "--out=out", *map(str, args)])
    head, _, *rows = capsys.readouterr().out.splitlines()
    told, _, rest = head.partition(": place ")
    assert told == text.strip()
    place, count = (int(word) for word in rest.split() if word.isdigit())
    lines = [row.split(maxsplit=4) for row in rows]
    return place, count, [
        (layer, int(unit), float(score), int(place), *label) for layer, unit, score, place, *label in lines
    ]  # fmt: skip


def by_hand(layer, words):
    """Scores (D, K) of a layer of the toy network."""
    net = network()
    maps = outputs(net.model, layer, pixels(net))
    values = maps.flatten(2).mean(2) if maps.ndim == 4 else maps
    lists = strongest(values, values.isfinite())
    return less_prior(soft_wpmi_likelihood(lists, cosines([image for image, _ in probe()], words)), 1)


def test_units_come_by_their_score_among_the_concepts_and_the_text(toys, passes, capsys):
    table = labelled(*label_args(), "--layers=[act, body.0]")
    place, count, rows = found(capsys, TEXT, *network_args(), "--top=40")
    assert len(passes) == 1
    assert count == len(WORDS) + 1
    assert place == rows[0][3]
    scores = {layer: by_hand(layer, [*WORDS, TEXT]) for layer in ("act", "body.0")}
    assert sorted((layer, unit) for layer, unit, *_ in rows) == sorted(
        (layer, unit) for layer, columns in scores.items() for unit in range(len(columns))
    )
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)
    labels = table.set_index(["layer", "unit"])["label"]
    for layer, unit, score, among, label in rows:
        own = scores[layer][unit]
        assert score == pytest.approx(own[-1], abs=3e-3)
        clear = np.abs(own[:-1] - own[-1]) > 5e-3
        assert among - 1 >= (own[:-1] > own[-1])[clear].sum()
        assert among - 1 <= (own[:-1] > own[-1])[clear].sum() + (~clear).sum()
        assert label == labels[layer, unit]


def test_a_text_that_is_a_concept_has_the_scores_of_the_labels(toys, capsys):
    table = labelled(*label_args(), "--layers=act")
    _, count, rows = found(capsys, " striped ", *network_args(), "--top=16")
    assert count == len(WORDS)
    own = {unit: (score, place) for _, unit, score, place, _ in rows}
    striped = table[table["label"] == "striped"]
    assert len(striped)
    for row in striped.itertuples():
        assert own[row.unit][0] == pytest.approx(row.score, abs=6e-4)


def test_top_and_layers_choose(toys, capsys):
    labelled(*label_args(), "--layers=[act, body.0]")
    every = found(capsys, TEXT, *network_args(), "--layers=act", "--top=16")[2]
    assert {row[0] for row in every} == {"act"}
    assert found(capsys, TEXT, *network_args(), "--layers=act", "--top=3")[2] == every[:3]


def test_without_labels_it_makes_the_pass_and_no_label(toys, passes, capsys):
    _, count, rows = found(capsys, TEXT, *label_args(), "--layers=act")
    assert passes == [["Embeddings", "Activations"]]
    assert count == len(WORDS) + 1
    assert all(len(row) == 4 for row in rows)
    assert not (toys / "out").exists()
    labelled(*label_args(), "--layers=act")
    assert len(passes) == 1
    assert [row[:4] for row in found(capsys, TEXT, *network_args())[2]] == rows


def test_labels_of_a_table_have_no_encoder_for_other_words(toys, passes, capsys):
    shown = probe().presence()[:, [0, 1, 2]].numpy()
    pd.DataFrame(shown, columns=["one", "two", "three"]).to_csv("table.csv", index=False)
    labelled(*label_args(words="table.csv")[:5], "--concepts=table.csv", "--layers=act")
    message = refused(dissect.main, ["find", TEXT, "--out=out", *network_args()])
    assert "these labels were made without an encoder; to find other words, label with --clip" in message
    assert found(capsys, "two", *network_args())[1] == 3


def test_what_cannot_be_looked_for_is_refused(toys):
    assert "there is nothing to look for" in refused(dissect.main, ["find", "  ", *network_args()])
    message = refused(dissect.main, ["find", TEXT, *label_args(), "--devices=2"])
    assert "only label shares a pass out" in message


def test_a_run_is_searched_as_it_was_labelled(shapes_run, tmp_path, capsys):
    args = [f"--run={shapes_run}", f"--out={tmp_path}"]
    dissect.main(["label", *args, "--probe=train[:200]", "--readout=mean"])
    capsys.readouterr()
    dissect.main(["find", "a red thing", *args, "--top=5"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("a red thing: place ")
    assert head.endswith("of 45 among the words of the best unit")
    assert 1 <= len(rows) <= 5
