"""The rows of labels made with soft_wpmi, and their file."""

import json
import math

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lwta.dissect.activations import Exemplars
from lwta.dissect.concepts import Concepts
from lwta.dissect.labelers.clip import FEWEST_WINS, label_layer
from lwta.dissect.labels import COLUMNS, labels_for, write_labels
from lwta.dissect.similarity import soft_wpmi
from lwta.errors import InputError


def as_exemplars(lists, k, count, negative=()):
    """Exemplars of given image lists; values fall with the rank."""
    images, values = torch.full((k, len(lists)), -1), torch.zeros(k, len(lists))
    for unit, listed in enumerate(lists):
        images[: len(listed), unit] = torch.tensor(listed, dtype=torch.long)
        values[: len(listed), unit] = torch.arange(len(listed), 0, -1).float()
    flags = torch.tensor([unit in negative for unit in range(len(lists))])
    return Exemplars(images, values, torch.tensor([len(listed) for listed in lists]), flags, count)


# --- rows of the label table ---------------------------------------------------------------------

NAMES = ["cat", "dog", "sky", "tree"]


def planted(wins=30):
    """Each image shows one concept; units 0 to 3 win on ``wins`` images of concept 2, 0, 3, 1."""
    shown = torch.arange(200) % 4
    presence = 0.2 + 0.1 * (shown[:, None] == torch.arange(4)).float()
    presence += 0.01 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    lists = [(shown == concept).nonzero()[:wins, 0].tolist() for concept in (2, 0, 3, 1)]
    return lists, Concepts(NAMES, presence)


@pytest.mark.parametrize("wins", [10, 30, 50])
def test_a_unit_that_wins_on_the_images_of_one_concept_gets_that_label(wins):
    lists, concepts = planted(wins)
    rows = label_layer("layer", as_exemplars(lists, 50, 200), concepts)
    assert rows["text"].tolist() == ["sky", "cat", "tree", "dog"]


def test_rows_follow_the_schema_with_a_row_for_every_unit():
    lists, concepts = planted()
    rows = label_layer("blocks.0", as_exemplars([*lists, [], [1, 2]], 50, 200, negative=[1]), concepts)
    assert list(rows.columns) == list(COLUMNS)
    assert rows["layer"].tolist() == ["blocks.0"] * 6
    assert rows["unit"].tolist() == list(range(6))
    assert rows["alive"].tolist() == [True, True, True, True, False, True]
    assert rows["wins"].tolist() == [30, 30, 30, 30, 0, 2]
    assert rows["win_rate"].tolist() == pytest.approx([0.15, 0.15, 0.15, 0.15, 0, 0.01])
    assert rows["negative"].tolist() == [False, True, False, False, False, False]


def test_scores_are_the_two_highest_and_the_runner_up_is_another_concept():
    lists, concepts = planted()
    exemplars = as_exemplars(lists, 50, 200)
    rows, scores = label_layer("layer", exemplars, concepts), soft_wpmi(exemplars, concepts.presence)
    for unit, row in rows.iterrows():
        order = sorted(range(4), key=lambda k, unit=unit: -scores[unit, k].item())
        assert (row["text"], row["runner_up"]) == (NAMES[order[0]], NAMES[order[1]])
        assert row["score"] == pytest.approx(scores[unit, order[0]].item())
        assert row["runner_up_score"] == pytest.approx(scores[unit, order[1]].item())
        assert row["runner_up"] != row["text"]
        assert pd.isna(row["reason"])


def test_units_that_won_too_rarely_have_a_reason_and_nothing_else():
    lists, concepts = planted()
    counts = (FEWEST_WINS, FEWEST_WINS - 1, 1, 0)
    few = [listed[:wins] for listed, wins in zip(lists, counts, strict=True)]
    rows = label_layer("layer", as_exemplars([lists[0], *few], 50, 200), concepts)
    assert FEWEST_WINS == 10
    assert rows["text"].notna().tolist() == [True, True, False, False, False]
    assert rows["reason"].tolist()[2:] == [
        "won on 9 images, fewer than 10", "won on 1 images, fewer than 10", "never won",
    ]  # fmt: skip
    assert rows["alive"].tolist() == [True, True, True, True, False]
    assert rows.loc[2:, ["text", "score", "runner_up", "runner_up_score"]].isna().all(axis=None)


def test_units_without_a_label_do_not_change_the_labels_of_the_others():
    lists, concepts = planted()
    alone = label_layer("layer", as_exemplars(lists, 50, 200), concepts)
    beside = label_layer("layer", as_exemplars([*lists, [0, 4, 8], []], 50, 200), concepts)
    columns = ["text", "runner_up", "score", "runner_up_score"]
    pd.testing.assert_frame_equal(beside.loc[:3, columns], alone[columns], check_dtype=False)


def test_a_layer_of_dead_units_has_rows_and_no_label():
    rows = label_layer("layer", as_exemplars([[], []], 50, 200), planted()[1])
    assert rows["reason"].tolist() == ["never won", "never won"]
    assert not rows["alive"].any()
    assert rows["text"].isna().all()


# --- their file ----------------------------------------------------------------------------------


@pytest.fixture
def labels():
    lists, concepts = planted()
    exemplars = as_exemplars([*lists, [], [1, 2]], 50, 200, negative=[1])
    return pd.concat([label_layer(name, exemplars, concepts) for name in ("blocks.0", "blocks.1")])


def same(found, expected):
    found, expected = (table.astype(COLUMNS).reset_index(drop=True) for table in (found, expected))
    assert [list(row) for row in found.pop("exemplars")] == [list(row) for row in expected.pop("exemplars")]
    pd.testing.assert_frame_equal(found, expected)


def test_labels_are_read_as_they_were_written(tmp_path, labels):
    paths = write_labels(tmp_path, labels, {"weights": "w"})
    assert paths == [tmp_path / "labels.parquet", tmp_path / "labels.csv"]
    same(labels_for(tmp_path, "w")[0], labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.csv", "labels.parquet"]


def test_the_csv_holds_the_same_rows_with_a_header(tmp_path, labels):
    path = write_labels(tmp_path, labels, {"weights": "w"})[1]
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    read = pd.read_csv(path)
    read["exemplars"] = read["exemplars"].map(json.loads)
    same(read, labels)


def test_the_parquet_file_has_the_types_of_the_schema(tmp_path, labels):
    schema = pq.read_schema(write_labels(tmp_path, labels, {"weights": "w"})[0])
    assert schema.names == list(COLUMNS)
    types = {"int64": pa.types.is_int64, "float64": pa.types.is_float64, "bool": pa.types.is_boolean}
    types["object"] = lambda t: pa.types.is_list(t) and pa.types.is_int64(t.value_type)
    types["string"] = lambda t: pa.types.is_string(t) or pa.types.is_large_string(t)
    for name, kind in COLUMNS.items():
        assert types[kind](schema.field(name).type), name


def test_labels_of_which_none_has_a_text_keep_their_types(tmp_path):
    rows = label_layer("layer", as_exemplars([[], []], 50, 200), planted()[1])
    write_labels(tmp_path, rows, {"weights": "w"})
    same(labels_for(tmp_path, "w")[0], rows)


def test_writing_again_replaces_and_does_not_append(tmp_path, labels):
    write_labels(tmp_path, labels, {"weights": "old"})
    paths = write_labels(tmp_path, labels[:5], {"weights": "new"})
    same(labels_for(tmp_path, "new")[0], labels[:5])
    assert len(pd.read_csv(paths[1])) == 5


def test_a_write_that_fails_leaves_the_labels_that_were_there(tmp_path, labels, monkeypatch):
    write_labels(tmp_path, labels, {"weights": "old"})

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="No space left"):
        write_labels(tmp_path, labels[:1], {"weights": "new"})
    same(labels_for(tmp_path, "old")[0], labels)


def test_labels_of_other_weights_are_refused(tmp_path, labels):
    write_labels(tmp_path, labels, {"weights": "old", "probe": "test"})
    with pytest.raises(InputError, match=r"made from other weights.*dissect\.py label --run"):
        labels_for(tmp_path, "new")


def test_labels_of_unknown_weights_are_refused(tmp_path, labels):
    labels.astype(COLUMNS).to_parquet(tmp_path / "labels.parquet")
    with pytest.raises(InputError, match="cannot be read; remove it and make it anew"):
        labels_for(tmp_path, "w")


def test_a_run_without_labels_has_none(tmp_path):
    assert labels_for(tmp_path, "w") is None


def test_a_unit_alone_in_its_layer_gets_no_label():
    images = torch.full((100, 3), -1)
    images[:20, 1] = torch.arange(20)
    wins = torch.tensor([0, 20, 3])
    seen = Exemplars(images, torch.zeros(100, 3), wins, torch.zeros(3, dtype=torch.bool), 60)
    rows = label_layer("layer", seen, Concepts(["a", "b"], torch.eye(2).repeat(30, 1)))
    assert rows["text"].isna().all()
    assert rows["reason"][1] == "the only unit of its layer with enough wins, so nothing to compare it with"


# --- equal scores --------------------------------------------------------------------------------


def test_where_the_score_is_saturated_the_likeliest_concept_is_the_label():
    # Unit 0 wins on images that all show both concepts, "often" more strongly; unit 1 on others. Both scores
    # of unit 0 reach log D, and only the likelihood tells them apart.
    presence = torch.zeros(60, 4)
    presence[:30, 2], presence[:30, 1] = 1.0, 0.8
    presence[30:, 3] = 1.0
    exemplars = as_exemplars([range(30), range(30, 60)], 60, 100)
    row = label_layer("layer", exemplars, Concepts(["a", "weak", "often", "b"], presence)).iloc[0]
    assert (row["text"], row["runner_up"]) == ("often", "weak")
    assert row["score"] == pytest.approx(row["runner_up_score"], abs=0.01) == pytest.approx(math.log(2))
