"""The rows of labels made by similarity, and the files they are kept in."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lwta.dissect import labels as labels_module
from lwta.dissect.labelers import LayerData, exemplar_rows
from lwta.dissect.labelers.clip import FEWEST_WINS, SIMILARITIES, ClipLabeler, find_similarity
from lwta.dissect.labels import COLUMNS, EXEMPLARS, Labels, labels_for, read_labels, write_labels
from lwta.dissect.presence import Matrix
from lwta.dissect.record import Exemplars
from lwta.dissect.similarity import soft_wpmi
from lwta.errors import InputError

NAMES = ["cat", "dog", "sky", "tree"]


def layer_data(lists, presence, layer="layer", negative=(), values=None, competitors=2, k=100, key="key"):
    """A layer whose units won on the listed images, strongest first."""
    images, strength = torch.full((k, len(lists)), -1), torch.zeros(k, len(lists))
    for unit, listed in enumerate(lists):
        images[: len(listed), unit] = torch.tensor(list(listed), dtype=torch.long)
        strength[: len(listed), unit] = torch.arange(len(listed), 0, -1).float()
    flags = torch.tensor([unit in negative for unit in range(len(lists))])
    wins = torch.tensor([len(listed) for listed in lists])
    exemplars = Exemplars(images, strength, wins, flags, len(presence), torch.zeros_like(images))
    constant = torch.zeros(len(lists), dtype=torch.bool)
    seen = torch.arange(len(presence))
    return LayerData(layer, exemplars, exemplars, constant, Matrix(presence), competitors, values, seen, key)


def planted(wins=30, **options):
    """Each image shows one concept; units 0 to 3 win on ``wins`` images of concept 2, 0, 3, 1."""
    return layer_data(planted_lists(wins), planted_presence(), k=50, **options)


def planted_lists(wins=30):
    shown = torch.arange(200) % 4
    return [(shown == concept).nonzero()[:wins, 0].tolist() for concept in (2, 0, 3, 1)]


def planted_presence():
    shown = torch.arange(200) % 4
    presence = 0.2 + 0.1 * (shown[:, None] == torch.arange(4)).float()
    for concept, listed in zip((2, 0, 3, 1), planted_lists(50), strict=True):
        presence[listed, concept] += torch.linspace(0.1, 0, 50)  # the stronger the more a unit wins
    return presence + 0.001 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0))


def planted_values():
    """Values (200, 4) of which the same units are the largest on the same images."""
    values = 0.1 * torch.rand(200, 4, generator=torch.Generator().manual_seed(1))
    for unit, listed in enumerate(planted_lists(50)):
        values[listed, unit] += 1
    return values.numpy()


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wins", [10, 30, 50])
def test_a_unit_that_wins_on_the_images_of_one_concept_gets_that_label(wins):
    assert ClipLabeler(NAMES).label(planted(wins))["label"].tolist() == ["sky", "cat", "tree", "dog"]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_similarity_finds_what_was_planted(similarity):
    table = ClipLabeler(NAMES, similarity).label(planted(50, values=planted_values()))
    assert table["label"].tolist() == ["sky", "cat", "tree", "dog"]
    assert (table["labeler"] == f"clip {similarity}").all()
    assert (table["score"] >= table["score_2"]).all()


def test_rows_follow_the_schema_with_a_row_for_every_unit():
    data = layer_data([*planted_lists(), [], [1, 2]], planted_presence(), "blocks.0", negative=[1])
    rows = ClipLabeler(NAMES).label(data)
    assert (
        rows.dtypes.astype(str).to_dict()
        == pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS).dtypes.astype(str).to_dict()
    )
    assert rows["layer"].tolist() == ["blocks.0"] * 6
    assert rows["unit"].tolist() == list(range(6))
    assert rows["block"].tolist() == [0, 0, 1, 1, 2, 2]
    assert rows["alive"].tolist() == [True, True, True, True, False, True]
    assert rows["wins"].tolist() == [30, 30, 30, 30, 0, 2]
    assert rows["win_rate"].tolist() == pytest.approx([0.15, 0.15, 0.15, 0.15, 0, 0.01])
    assert rows["negative"].tolist() == [False, True, False, False, False, False]
    assert rows["labeler"].isna().tolist() == [False] * 4 + [True] * 2


def test_units_that_do_not_compete_have_no_block():
    assert ClipLabeler(NAMES).label(planted(competitors=None))["block"].isna().all()


def test_labels_follow_each_other_by_score():
    data = planted()
    rows, scores = ClipLabeler(NAMES).label(data), soft_wpmi(data.exemplars, data.presence)
    for unit, row in rows.iterrows():
        order = scores[unit].argsort(descending=True).tolist()
        for place, concept in enumerate(order, 1):
            end = "" if place == 1 else f"_{place}"
            assert row[f"label{end}"] == NAMES[concept]
            assert row[f"score{end}"] == pytest.approx(scores[unit, concept].item(), abs=1e-5)
        assert pd.isna(row["label_5"])  # there are but four concepts
        assert pd.isna(row["reason"])


def test_units_that_won_too_rarely_have_a_reason_and_nothing_else():
    lists = planted_lists()
    counts = (FEWEST_WINS, FEWEST_WINS - 1, 1, 0)
    few = [listed[:wins] for listed, wins in zip(lists, counts, strict=True)]
    rows = ClipLabeler(NAMES).label(layer_data([lists[0], *few], planted_presence()))
    assert FEWEST_WINS == 10
    assert rows["label"].notna().tolist() == [True, True, False, False, False]
    assert rows["reason"].tolist()[2:] == [
        "won on 9 images, fewer than 10", "won on 1 images, fewer than 10", "never won",
    ]  # fmt: skip
    assert rows["alive"].tolist() == [True, True, True, True, False]
    assert rows.loc[2:, ["label", "score", "label_2", "score_2"]].isna().all(axis=None)


def test_dead_and_constant_units_are_found_first_and_change_nothing():
    alone = ClipLabeler(NAMES).label(planted())
    data = layer_data(
        [*planted_lists(), [0, 4, 8], [], range(50)], planted_presence(), competitors=None, k=50
    )
    constant = torch.tensor([False] * 6 + [True])
    beside = ClipLabeler(NAMES).label(data._replace(constant=constant))
    columns = ["label", "label_2", "score", "score_2"]
    pd.testing.assert_frame_equal(beside.loc[:3, columns], alone[columns])
    assert beside["reason"].tolist()[4:] == [
        "won on 3 images, fewer than 10", "zero on every image", "the same value on every image",
    ]  # fmt: skip


def test_a_layer_of_dead_units_has_rows_and_no_label():
    rows = ClipLabeler(NAMES).label(layer_data([[], []], planted_presence()))
    assert rows["reason"].tolist() == ["never won", "never won"]
    assert not rows["alive"].any()
    assert rows["label"].isna().all()


def test_a_unit_alone_in_its_layer_gets_no_label_by_a_prior_over_units():
    data = layer_data([[], range(20), [1, 2, 3]], planted_presence(), competitors=3)
    rows = ClipLabeler(NAMES).label(data)
    assert rows["label"].isna().all()
    assert rows["reason"][1] == "the only unit of its layer with enough wins, so nothing to compare it with"
    assert ClipLabeler(NAMES, "rank_reorder").label(data)["label"].notna().tolist() == [False, True, False]


def test_where_the_score_is_saturated_the_likeliest_concept_is_the_label():
    # Unit 0 wins on images that all show both concepts, "often" more strongly; unit 1 on others. Both scores
    # of unit 0 reach log D, and only the likelihood tells them apart.
    presence = torch.zeros(60, 4)
    presence[:30, 2], presence[:30, 1] = 1.0, 0.8
    presence[30:, 3] = 1.0
    data = layer_data([range(30), range(30, 60)], presence, k=60)
    row = ClipLabeler(["a", "weak", "often", "b"]).label(data).iloc[0]
    assert (row["label"], row["label_2"]) == ("often", "weak")
    assert row["score"] == pytest.approx(row["score_2"], abs=0.01) == pytest.approx(math.log(2))


def test_scores_that_hardly_differ_still_come_in_their_order():
    # As a CLIP gives them for images of one kind: all within a hundredth, and far below the highest score.
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(3))
    data = layer_data(planted_lists(), 0.2 + 3e-5 * noise, k=50)
    scores = soft_wpmi(data.exemplars, data.presence)
    assert (scores.amax(1) - scores.amin(1) < 0.01).all()
    table = ClipLabeler(NAMES).label(data)
    assert table["label"].tolist() == [NAMES[k] for k in scores.argmax(1).tolist()]
    assert (table["score"] >= table["score_2"]).all()
    assert (table["score_2"] >= table["score_3"]).all()


def test_a_unit_of_no_fitting_concept_has_the_reason():
    lists = [*planted_lists(), []]
    table = ClipLabeler(NAMES, "rank_reorder").label(layer_data(lists, -planted_presence()))
    assert table["label"].isna().all()
    assert table["score"].isna().all()
    assert table["reason"].tolist() == ["no concept fits its exemplars"] * 4 + ["never won"]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_some_units_are_labelled_as_among_all(similarity, tmp_path):
    data = planted(50, values=planted_values())
    whole = ClipLabeler(NAMES, similarity).label(data)
    labeler = ClipLabeler(NAMES, similarity, cache=tmp_path)
    for _ in range(2):  # the layer's prior made, and then found
        some = labeler.label(data, [3, 1])
        pd.testing.assert_frame_equal(some, whole.iloc[[3, 1]].reset_index(drop=True), rtol=1e-5)
    assert len(list(tmp_path.rglob("*.pt"))) == (SIMILARITIES[similarity].prior is not None)


def test_the_prior_of_a_layer_is_made_once_and_by_what_it_depends_on(tmp_path, monkeypatch):
    asked = []

    def counting(exemplars, presence, **options):
        asked.append(exemplars.images.shape[1])
        return SIMILARITIES["wpmi"].score(exemplars, presence, **options)

    monkeypatch.setitem(SIMILARITIES, "soft_wpmi", SIMILARITIES["soft_wpmi"]._replace(score=counting))
    for key in ("key", "key", "other layer"):
        ClipLabeler(NAMES, cache=tmp_path).label(planted(key=key), [0])
    ClipLabeler(NAMES, cache=tmp_path, identity={"concepts": "others"}).label(planted(), [0])
    assert asked == [4, 1, 4, 4]


def test_images_that_did_not_decode_count_nowhere():
    values, presence = planted_values(), planted_presence()
    whole = planted(50, values=values)
    broken = torch.arange(200) % 7 == 3
    poisoned = np.where(broken[:, None].numpy(), 1e6, values)
    data = whole._replace(values=poisoned, presence=Matrix(presence), seen=(~broken).nonzero()[:, 0])
    kept = whole._replace(
        values=values[~broken.numpy()],
        presence=Matrix(presence[~broken]),
        seen=torch.arange(int((~broken).sum())),
    )
    for similarity in ("cos", "cos_cubed", "jensen_shannon"):
        found, expected = (ClipLabeler(NAMES, similarity).label(d) for d in (data, kept))
        pd.testing.assert_frame_equal(found, expected)


def test_similarities_and_priors_that_cannot_be_are_refused():
    with pytest.raises(
        InputError, match="no similarity 'cosine'; it is one of soft_wpmi, wpmi, rank_reorder, cos"
    ):
        find_similarity("cosine", None)
    with pytest.raises(InputError, match="cos has no prior over units; leave --prior away"):
        find_similarity("cos", 0.5)
    with pytest.raises(InputError, match=r"prior lies in \[0, 1\], and 1.5 does not"):
        find_similarity("soft_wpmi", 1.5)
    assert [find_similarity(name, None)[1] for name in ("soft_wpmi", "wpmi", "cos")] == [1.0, 0.6, None]


def test_exemplars_are_listed_by_rank_with_the_names_of_their_images():
    data = layer_data([[5, 3], [], range(50)], planted_presence(), k=60)
    rows = exemplar_rows(data, [0, 1, 2], [f"{i}.png" if i % 2 else None for i in range(200)])
    assert list(rows.columns) == list(EXEMPLARS)
    assert rows["unit"].tolist() == [0, 0, *[2] * 20]
    assert rows["rank"].tolist() == [0, 1, *range(20)]
    assert rows["image"].tolist()[:3] == [5, 3, 0]
    assert rows["name"].fillna("none").tolist()[:4] == ["5.png", "3.png", "none", "1.png"]
    assert rows["value"].tolist()[:2] == [2.0, 1.0]


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def labels():
    return made(["blocks.0", "blocks.1"])


def made(layers, units=None, weights="w"):
    tables, exemplars = [], []
    for layer in layers:
        data = layer_data([*planted_lists(), [], [1, 2]], planted_presence(), layer, negative=[1])
        tables.append(ClipLabeler(NAMES).label(data, units))
        exemplars.append(exemplar_rows(data, units or range(6), [None] * 200))
    return Labels(
        pd.concat(tables).assign(fingerprint="f").astype(COLUMNS).reset_index(drop=True),
        pd.concat(exemplars).reset_index(drop=True),
        {"weights": weights, "probe": "test"},
        {"prior": 0.5},
        dict.fromkeys(layers, 6),
    )


def same(found, expected):
    pd.testing.assert_frame_equal(found.table, expected.table)
    pd.testing.assert_frame_equal(found.exemplars, expected.exemplars)
    assert found[2:] == expected[2:]


def test_labels_are_read_as_they_were_written(tmp_path, labels):
    paths = write_labels(tmp_path, labels)
    assert [path.name for path in paths] == ["exemplars.parquet", "labels.csv", "labels.parquet"]
    same(labels_for(tmp_path, "w", whole=True), labels)
    assert sorted(tmp_path.iterdir()) == paths


def test_the_csv_holds_the_same_rows_with_a_header(tmp_path, labels):
    path = write_labels(tmp_path, labels)[1]
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    pd.testing.assert_frame_equal(pd.read_csv(path).astype(COLUMNS), labels.table)


def test_the_parquet_file_has_the_types_of_the_schema(tmp_path, labels):
    types = {"int64": pa.types.is_int64, "float64": pa.types.is_float64, "bool": pa.types.is_boolean}
    types["string"] = lambda t: pa.types.is_string(t) or pa.types.is_large_string(t)
    types["Int64"] = pa.types.is_int64
    paths = write_labels(tmp_path, labels)
    for path, columns in ((paths[2], COLUMNS), (paths[0], EXEMPLARS)):
        schema = pq.read_schema(path)
        assert schema.names == list(columns)
        for name, kind in columns.items():
            assert types[kind](schema.field(name).type), name


def test_writing_again_replaces_and_does_not_append(tmp_path, labels):
    write_labels(tmp_path, labels)
    other = made(["blocks.1"], weights="new")
    write_labels(tmp_path, other)
    same(labels_for(tmp_path, "new"), other)


@pytest.mark.parametrize("name", ["write_table", "to_csv"])
def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path, labels, monkeypatch, name):
    write_labels(tmp_path, labels)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    owner = labels_module.pq if name == "write_table" else pd.DataFrame
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(InputError, match="no room left to write"):
        write_labels(tmp_path, labels)
    same(labels_for(tmp_path, "w"), labels)
    assert len(list(tmp_path.iterdir())) == 3


def test_labels_of_other_weights_are_refused(tmp_path, labels):
    write_labels(tmp_path, labels)
    with pytest.raises(InputError, match=r"made from other weights.*dissect\.py label --run"):
        labels_for(tmp_path, "new")


def test_labels_of_unknown_weights_or_beside_foreign_exemplars_are_refused(tmp_path, labels):
    labels.table.to_parquet(tmp_path / "labels.parquet")
    with pytest.raises(InputError, match="cannot be read; remove it and make it anew"):
        read_labels(tmp_path)
    write_labels(tmp_path, labels)
    content = (tmp_path / "labels.parquet").read_bytes()
    write_labels(tmp_path, made(["blocks.0"], weights="other"))
    (tmp_path / "labels.parquet").write_bytes(content)
    with pytest.raises(InputError, match="or its exemplars cannot be read; remove it and make it anew"):
        read_labels(tmp_path)


def test_a_folder_without_labels_has_none(tmp_path):
    assert labels_for(tmp_path, "w") is None


def test_labels_of_some_units_are_told_apart_and_joined_to_the_whole(tmp_path, labels):
    some, rest = made(["blocks.1"], [4, 0]), made(["blocks.1", "blocks.0"], [1, 2, 3, 5, 0])
    assert some.partial == ["blocks.1"]
    write_labels(tmp_path, some)
    with pytest.raises(
        InputError, match="only some units of blocks.1 are labelled, those that explain came upon"
    ):
        labels_for(tmp_path, "w", whole=True)
    joined = rest.joined(labels_for(tmp_path, "w"))
    assert joined.partial == ["blocks.0"]
    whole = made(["blocks.0"]).joined(joined)
    assert whole.partial == []
    expected = labels._replace(units={"blocks.1": 6, "blocks.0": 6})
    for found, wanted in ((whole.table, expected.table), (whole.exemplars, expected.exemplars)):
        key = [c for c in ("layer", "unit", "rank") if c in found]
        pd.testing.assert_frame_equal(
            found.sort_values(key).reset_index(drop=True), wanted.sort_values(key).reset_index(drop=True)
        )


def test_new_labels_take_the_place_of_those_of_the_same_units(labels):
    table = labels.table.assign(label="anew").astype(COLUMNS)
    joined = labels._replace(table=table).joined(labels)
    assert (joined.table["label"] == "anew").all()
    assert len(joined.table) == len(labels.table)


def test_evidence_may_be_numbered_otherwise_than_images():
    data = planted()
    shuffle = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    numbers = shuffle.argsort()  # image -> its row in the presence of the shuffled
    images = torch.where(data.exemplars.images >= 0, numbers[data.exemplars.images.clamp_min(0)], -1)
    other = data._replace(
        evidence=replace(data.exemplars, images=images), presence=Matrix(planted_presence()[shuffle])
    )
    found, expected = (ClipLabeler(NAMES).label(d) for d in (other, data))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
