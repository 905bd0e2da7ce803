"""Concepts from tables and from pairs of embeddings, and every way in which such a file can be wrong."""

import json
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from commands.options import LabelOptions
from commands.sources import open_source
from lwta.dissect.concepts import read_concepts, read_pair
from lwta.dissect.presence import Cosines
from lwta.errors import InputError

NAMES = ["red", "a dog, running", "blé"]
PAIRS = [".npz", ".safetensors"]
MATRIX = np.array([[0.0, 1.0, 0.25], [1.0, 0.0, -0.5], [0.125, 1.0, 1.0], [0.0, 0.0, 0.75]])


def write_csv(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def write_table(path, names=NAMES, columns=None):
    """A parquet file whose columns may repeat."""
    columns = list(MATRIX.T) if columns is None else columns
    pq.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], names=names), path)
    return path


def embeddings():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(4, 5)).astype(np.float32),
        "text": rng.normal(size=(3, 5)).astype(np.float32),
        "concepts": np.array(NAMES),
    }


def save(path, **changes):
    """An npz or safetensors of embeddings with changed arrays; None leaves one out."""
    arrays = {name: array for name, array in (embeddings() | changes).items() if array is not None}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    names = arrays.pop("concepts", None)
    metadata = None if names is None else {"concepts": json.dumps(names.tolist())}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, metadata)
    return path


def cosines(path):
    """P of a pair."""
    _, images, texts = read_pair(path)
    return Cosines(images, torch.from_numpy(np.array(texts))).part(slice(None))


class Probe:
    """Images of which nothing but the number is asked, and none kept back."""

    own = False

    def __init__(self, images):
        self.whole = images

    def __len__(self):
        return self.whole

    def rows(self, values):
        return values


def source_of(path, images):
    """The file as ``--concepts`` takes it; neither network nor probe images are asked for anything else."""
    options = LabelOptions(concepts=str(path))
    return open_source(None, Probe(images), options, path.parent)


# --- what is read --------------------------------------------------------------------------------


def test_a_csv_table_is_read_as_it_stands(tmp_path):
    path = tmp_path / "concepts.csv"
    pd.DataFrame(MATRIX, columns=NAMES).to_csv(path, index=False)
    names, presence = read_concepts(path, 4)
    assert names == NAMES
    assert presence.dtype == torch.float32
    assert torch.equal(presence, torch.from_numpy(MATRIX).float())


def test_a_csv_of_whole_numbers_or_truth_values_is_read_as_numbers(tmp_path):
    whole = read_concepts(write_csv(tmp_path / "a.csv", "a,b\n1,0\n0,1\n"), 2).presence
    truth = read_concepts(write_csv(tmp_path / "b.csv", "a,b\nTrue,False\nFalse,True\n"), 2).presence
    assert whole.tolist() == truth.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_a_parquet_table_is_read_as_it_stands(tmp_path):
    names, presence = read_concepts(write_table(tmp_path / "concepts.parquet"), 4)
    assert names == NAMES
    assert presence.dtype == torch.float32
    assert torch.equal(presence, torch.from_numpy(MATRIX).float())


def test_the_index_of_a_parquet_table_is_no_concept(tmp_path):
    path = tmp_path / "concepts.parquet"
    pd.DataFrame(MATRIX, columns=NAMES, index=list("wxyz")).to_parquet(path)
    assert read_concepts(path, 4).names == NAMES


@pytest.mark.parametrize("suffix", PAIRS)
def test_a_pair_of_embeddings_is_read_with_its_names(tmp_path, suffix):
    arrays = embeddings()
    path = save(tmp_path / f"concepts{suffix}")
    names, images, texts = read_pair(str(path))
    assert names == NAMES
    np.testing.assert_array_equal(images, arrays["image"])
    np.testing.assert_array_equal(texts, arrays["text"])
    assert isinstance(images, np.memmap) == (suffix == ".safetensors")
    presence = cosines(path)
    for i in range(4):
        for k in range(3):
            image, text = arrays["image"][i].tolist(), arrays["text"][k].tolist()
            dot = sum(a * b for a, b in zip(image, text, strict=True))
            norms = sum(a * a for a in image) ** 0.5 * sum(b * b for b in text) ** 0.5
            assert presence[i, k].item() == pytest.approx(dot / norms, abs=1e-6)


@pytest.mark.parametrize("suffix", PAIRS)
def test_embeddings_of_half_precision_lose_nothing_more(tmp_path, suffix):
    half = {name: embeddings()[name].astype(np.float16) for name in ("image", "text")}
    wide = {name: array.astype(np.float64) for name, array in half.items()}
    narrow, other = save(tmp_path / f"half{suffix}", **half), save(tmp_path / f"wide{suffix}", **wide)
    assert read_pair(narrow).images.dtype == np.float16
    assert torch.equal(cosines(narrow), cosines(other))


def test_a_pair_as_a_source_is_its_cosines(tmp_path):
    found = source_of(save(tmp_path / "c.npz"), images=4)
    assert (found.names, found.encoder, found.encodes) == (NAMES, None, False)
    presence = found.presence(None, torch.zeros(4, dtype=torch.long))
    assert torch.equal(presence.part(slice(None)), cosines(tmp_path / "c.npz"))
    with pytest.raises(InputError, match="there are 4 image embeddings and 5 probe images"):
        source_of(tmp_path / "c.npz", images=5)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_as_a_source_is_its_numbers(tmp_path, suffix):
    table, path = pd.DataFrame(MATRIX, columns=NAMES), tmp_path / f"c{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    found = source_of(path, images=4)
    assert (found.names, found.encoder, found.texts, found.encodes) == (NAMES, None, None, False)
    presence = found.presence(None, torch.zeros(4, dtype=torch.long))
    assert torch.equal(presence.part(slice(None)), torch.from_numpy(MATRIX).float())
    with pytest.raises(InputError, match="has 4 rows and the probe set 5 images"):
        source_of(path, images=5)


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_what_labels_depend_on_changes_with_the_numbers_and_the_names(tmp_path, suffix):
    def identity(place, names=NAMES, shift=0.0):
        (folder := tmp_path / place).mkdir()
        if suffix == ".parquet":
            path = write_table(folder / "c.parquet", names, list(MATRIX.T + shift))
        else:
            path = save(folder / "c.npz", concepts=np.array(names), image=embeddings()["image"] + shift)
        return source_of(path, images=4).identity

    assert identity("here") == identity("there")
    assert identity("names", names=["red", "a dog", "blé"]) != identity("first")
    assert identity("numbers", shift=0.25) != identity("second")


def test_a_path_may_be_text(tmp_path):
    assert read_concepts(str(write_table(tmp_path / "concepts.parquet")), 4).names == NAMES


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_concept_is_refused_by_its_place(tmp_path, blank):
    files = [
        write_csv(tmp_path / "c.csv", f"a,{blank},b\n1,2,3\n"),
        write_table(tmp_path / "c.parquet", ["a", blank, "b"], [[1.0], [2.0], [3.0]]),
    ]
    for path in files:
        with pytest.raises(InputError, match=r"concept 2 of .* is blank"):
            read_concepts(path, 1)
    for suffix in PAIRS:
        with pytest.raises(InputError, match=r"concept 2 of .* is blank"):
            read_pair(save(tmp_path / f"c{suffix}", concepts=np.array(["a", blank, "b"])))


def test_a_repeated_concept_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="names the concept 'dog' twice"):
        read_concepts(write_csv(tmp_path / "c.csv", "dog,cat,dog\n1,2,3\n"), 1)
    for suffix in PAIRS:
        with pytest.raises(InputError, match="names the concept 'dog' twice"):
            read_pair(save(tmp_path / f"c{suffix}", concepts=np.array(["dog", "cat", " dog"])))


def test_a_repeated_column_of_a_parquet_table_is_refused_by_name(tmp_path):
    path = write_table(tmp_path / "c.parquet", ["dog", "cat", "dog"], [[1.0], [2.0], [3.0]])
    with pytest.raises(InputError, match="names the concept 'dog' twice"):
        read_concepts(path, 1)


def test_a_single_concept_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds 1 concepts; labels need at least two"):
        read_concepts(write_csv(tmp_path / "c.csv", "a\n1\n"), 1)
    with pytest.raises(InputError, match="holds 1 concepts; labels need at least two"):
        read_pair(save(tmp_path / "c.npz", concepts=np.array(["a"]), text=np.ones((1, 5))))


def test_the_byte_order_mark_of_a_spreadsheet_is_no_part_of_a_name(tmp_path):
    assert read_concepts(write_csv(tmp_path / "c.csv", "a,b\n1,2\n", "utf-8-sig"), 1).names == ["a", "b"]


def test_names_stored_as_bytes_are_read_as_text(tmp_path):
    concepts = np.array([b"red", b"green", b"blue"])
    assert read_pair(save(tmp_path / "c.npz", concepts=concepts)).names == ["red", "green", "blue"]


def test_twenty_thousand_concepts_are_checked_in_no_time(tmp_path):
    words = np.array([f"word {k}" for k in range(20_000)])
    path = save(tmp_path / "c.npz", concepts=words, text=np.ones((20_000, 2)), image=np.ones((1, 2)))
    start = time.process_time()
    assert len(read_pair(path).names) == 20_000
    assert time.process_time() - start < 1


# --- cells ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [3, 5])
def test_a_wrong_number_of_rows_is_refused_with_both_numbers(tmp_path, images):
    files = [write_table(tmp_path / "c.parquet"), tmp_path / "c.csv"]
    pd.DataFrame(MATRIX, columns=NAMES).to_csv(files[1], index=False)
    for path in files:
        with pytest.raises(InputError, match=f"has 4 rows and the probe set {images} images"):
            read_concepts(path, images)


@pytest.mark.parametrize("cell", ["", "nan", "NA", "inf", "-inf"])
def test_a_cell_without_a_finite_number_is_refused_by_row_and_concept(tmp_path, cell):
    path = write_csv(tmp_path / "c.csv", f"a,b\n1,2\n3,{cell}\n")
    with pytest.raises(InputError, match="no number in row 2 of concept 'b'"):
        read_concepts(path, 2)


@pytest.mark.parametrize("cell", [None, float("nan"), float("inf")])
def test_a_missing_value_of_a_parquet_table_is_refused_by_row_and_concept(tmp_path, cell):
    path = write_table(tmp_path / "c.parquet", ["a", "b"], [[1.0, 2.0], [3.0, cell]])
    with pytest.raises(InputError, match="no number in row 2 of concept 'b'"):
        read_concepts(path, 2)


def test_a_text_cell_is_refused_with_what_it_says(tmp_path):
    csv = write_csv(tmp_path / "c.csv", "a,b\n1,2\n3,often\n")
    parquet = write_table(tmp_path / "c.parquet", ["a", "b"], [[1.0, 2.0], ["3", "often"]])
    with pytest.raises(InputError, match=r"c\.csv cannot be read.*'often'"):
        read_concepts(csv, 2)
    with pytest.raises(InputError, match=r"concept 'b' of .*c\.parquet is not a column of numbers"):
        read_concepts(parquet, 2)


def test_dates_are_no_presence(tmp_path):
    path = tmp_path / "c.parquet"
    pd.DataFrame({"a": [1.0, 0.0], "b": pd.to_datetime(["2020-01-01", "2021-01-01"])}).to_parquet(path)
    with pytest.raises(InputError, match="concept 'b' of .* is not a column of numbers"):
        read_concepts(path, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2,9\n3,4,9\n", "names 2 concepts and has 3 columns"),
        ("a,b,c\n1,2\n3,4\n", "names 3 concepts and has 2 columns"),
        ("a,b\n1,2\n3,4,5\n", "cannot be read"),
        ("a,b\n1,2\n3\n", "no number in row 2 of concept 'b'"),
    ],
)
def test_rows_that_do_not_match_the_header_are_refused(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        read_concepts(write_csv(tmp_path / "c.csv", text), 2)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".txt", ".npy", ".npz", ".CSV", ""])
def test_another_suffix_is_refused_with_those_that_are_read(tmp_path, suffix):
    path = write_csv(tmp_path / f"concepts{suffix}", "a,b\n1,2\n")
    with pytest.raises(
        InputError, match=r"ends in one of \.csv, \.parquet, or, with embeddings, in one of \.npz"
    ):
        read_concepts(path, 1)
    if suffix not in PAIRS:
        with pytest.raises(
            InputError, match=r"no pair of embeddings; it ends in one of \.npz, \.safetensors"
        ):
            read_pair(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_missing_file_is_named(tmp_path, suffix):
    with pytest.raises(InputError, match=rf"there is no concept file .*nothing\{suffix}"):
        read_concepts(tmp_path / f"nothing{suffix}", 1)


def test_a_folder_is_no_concept_file(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="there is no concept file"):
        read_concepts(tmp_path / "folder.csv", 1)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"concepts{suffix}"
    path.touch()
    with pytest.raises(InputError, match=rf"concepts\{suffix} cannot be read"):
        read_concepts(path, 1)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.98])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = write_table(tmp_path / "concepts.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match=r"concepts\.parquet cannot be read"):
        read_concepts(path, 4)


def test_a_csv_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read.*utf-8"):
        read_concepts(write_csv(tmp_path / "c.csv", "caf\xe9,b\n1,2\n", "latin-1"), 1)


# --- pairs of embeddings; what read_embeddings refuses of a file is tested with it ----------------


@pytest.mark.parametrize("suffix", PAIRS)
@pytest.mark.parametrize("name", ["image", "text", "concepts"])
def test_a_missing_part_is_named(tmp_path, suffix, name):
    said = (
        f"no {name} embeddings, only .*; call them '{name}'" if name != "concepts" else "no 'concepts'; they"
    )
    with pytest.raises(InputError, match=rf"c\{suffix} (holds|has) {said}"):
        read_pair(save(tmp_path / f"c{suffix}", **{name: None}))


def test_an_array_of_another_name_is_neither_part(tmp_path):
    with pytest.raises(InputError, match="holds no image embeddings, only embedding; call them 'image'"):
        read_pair(save(tmp_path / "c.npz", image=None, text=None, embedding=np.ones((3, 5))))


@pytest.mark.parametrize("suffix", PAIRS)
def test_parts_that_do_not_fit_are_refused_with_their_sizes(tmp_path, suffix):
    with pytest.raises(InputError, match="image embeddings are 5 wide and text embeddings 4: they come from"):
        read_pair(save(tmp_path / f"a{suffix}", text=np.ones((3, 4))))
    with pytest.raises(InputError, match="has 2 names and 3 embeddings"):
        read_pair(save(tmp_path / f"b{suffix}", concepts=np.array(["a", "b"])))


@pytest.mark.parametrize("suffix", PAIRS)
@pytest.mark.parametrize("name", ["image", "text"])
def test_a_row_without_direction_is_refused_by_its_number(tmp_path, suffix, name):
    for value, said in ((0, "is all zeros"), (np.nan, "is not finite")):
        array = embeddings()[name]
        array[1] = value
        with pytest.raises(InputError, match=f"row 2 of the {name} embeddings in .* {said}"):
            read_pair(save(tmp_path / f"c{suffix}", **{name: array}))
