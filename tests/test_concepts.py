"""Concept matrices from csv, parquet and npz, and every way in which such a file can be wrong."""

import pickle
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lwta.dissect.concepts import read_concepts
from lwta.errors import InputError

NAMES = ["red", "a dog, running", "blé"]
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
    """An npz of embeddings with changed arrays; None leaves one out."""
    arrays = {name: array for name, array in (embeddings() | changes).items() if array is not None}
    np.savez(path, **arrays)
    return path


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


def test_embeddings_become_cosines(tmp_path):
    arrays = embeddings()
    names, presence = read_concepts(save(tmp_path / "concepts.npz"), 4)
    assert names == NAMES
    assert presence.shape == (4, 3)
    assert presence.dtype == torch.float32
    for i in range(4):
        for k in range(3):
            image, text = arrays["image"][i].tolist(), arrays["text"][k].tolist()
            dot = sum(a * b for a, b in zip(image, text, strict=True))
            norms = sum(a * a for a in image) ** 0.5 * sum(b * b for b in text) ** 0.5
            assert presence[i, k].item() == pytest.approx(dot / norms, abs=1e-6)


def test_embeddings_of_half_precision_lose_nothing_more(tmp_path):
    half = {name: embeddings()[name].astype(np.float16) for name in ("image", "text")}
    found = read_concepts(save(tmp_path / "half.npz", **half), 4).presence
    wide = {name: array.astype(np.float64) for name, array in half.items()}
    assert torch.equal(found, read_concepts(save(tmp_path / "wide.npz", **wide), 4).presence)


def test_a_path_may_be_text(tmp_path):
    assert read_concepts(str(write_table(tmp_path / "concepts.parquet")), 4).names == NAMES


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_concept_is_refused_by_its_place(tmp_path, blank):
    files = [
        write_csv(tmp_path / "c.csv", f"a,{blank},b\n1,2,3\n"),
        write_table(tmp_path / "c.parquet", ["a", blank, "b"], [[1.0], [2.0], [3.0]]),
        save(tmp_path / "c.npz", concepts=np.array(["a", blank, "b"]), image=np.ones((1, 5))),
    ]
    for path in files:
        with pytest.raises(InputError, match=r"concept 2 of .* is blank"):
            read_concepts(path, 1)


def test_a_repeated_concept_is_refused_by_name(tmp_path):
    files = [
        write_csv(tmp_path / "c.csv", "dog,cat,dog\n1,2,3\n"),
        save(tmp_path / "c.npz", concepts=np.array(["dog", "cat", "dog"]), image=np.ones((1, 5))),
    ]
    for path in files:
        with pytest.raises(InputError, match="names the concept 'dog' twice"):
            read_concepts(path, 1)


def test_a_repeated_column_of_a_parquet_table_is_refused_by_name(tmp_path):
    path = write_table(tmp_path / "c.parquet", ["dog", "cat", "dog"], [[1.0], [2.0], [3.0]])
    with pytest.raises(InputError, match="names the concept 'dog' twice"):
        read_concepts(path, 1)


def test_a_single_concept_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds 1 concepts; labels need at least two"):
        read_concepts(write_csv(tmp_path / "c.csv", "a\n1\n"), 1)


def test_the_byte_order_mark_of_a_spreadsheet_is_no_part_of_a_name(tmp_path):
    assert read_concepts(write_csv(tmp_path / "c.csv", "a,b\n1,2\n", "utf-8-sig"), 1).names == ["a", "b"]


def test_names_stored_as_bytes_are_read_as_text(tmp_path):
    concepts = np.array([b"red", b"green", b"blue"])
    assert read_concepts(save(tmp_path / "c.npz", concepts=concepts), 4).names == ["red", "green", "blue"]


def test_twenty_thousand_concepts_are_checked_in_no_time(tmp_path):
    words = np.array([f"word {k}" for k in range(20_000)])
    path = save(tmp_path / "c.npz", concepts=words, text=np.ones((20_000, 2)), image=np.ones((1, 2)))
    start = time.process_time()
    assert len(read_concepts(path, 1).names) == 20_000
    assert time.process_time() - start < 1


# --- cells ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [3, 5])
def test_a_wrong_number_of_rows_is_refused_with_both_numbers(tmp_path, images):
    files = [write_table(tmp_path / "c.parquet"), save(tmp_path / "c.npz"), tmp_path / "c.csv"]
    pd.DataFrame(MATRIX, columns=NAMES).to_csv(files[2], index=False)
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


@pytest.mark.parametrize("suffix", [".txt", ".npy", ".CSV", ""])
def test_another_suffix_is_refused_with_those_that_are_read(tmp_path, suffix):
    path = write_csv(tmp_path / f"concepts{suffix}", "a,b\n1,2\n")
    with pytest.raises(InputError, match=r"ends in one of \.csv, \.parquet, \.npz"):
        read_concepts(path, 1)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
def test_a_missing_file_is_named(tmp_path, suffix):
    with pytest.raises(InputError, match=rf"there is no concept file .*nothing\{suffix}"):
        read_concepts(tmp_path / f"nothing{suffix}", 1)


def test_a_folder_is_no_concept_file(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="there is no concept file"):
        read_concepts(tmp_path / "folder.csv", 1)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"concepts{suffix}"
    path.touch()
    with pytest.raises(InputError, match=rf"concepts\{suffix} cannot be read"):
        read_concepts(path, 1)


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.98])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    path = tmp_path / f"concepts{suffix}"
    (write_table if suffix == ".parquet" else save)(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match=rf"concepts\{suffix} cannot be read"):
        read_concepts(path, 4)


def test_a_csv_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read.*utf-8"):
        read_concepts(write_csv(tmp_path / "c.csv", "caf\xe9,b\n1,2\n", "latin-1"), 1)


@pytest.mark.parametrize("name", ["image", "text", "concepts"])
def test_a_missing_array_is_named(tmp_path, name):
    with pytest.raises(InputError, match=f"lacks the array '{name}'"):
        read_concepts(save(tmp_path / "c.npz", **{name: None}), 4)


def test_embeddings_of_another_size_are_refused_with_the_shapes(tmp_path):
    path = save(tmp_path / "c.npz", text=np.ones((3, 4)))
    with pytest.raises(InputError, match=r"image \(4, 5\), text \(3, 4\) and 3 concepts do not fit"):
        read_concepts(path, 4)


def test_a_wrong_number_of_names_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"text \(3, 5\) and 2 concepts do not fit"):
        read_concepts(save(tmp_path / "c.npz", concepts=np.array(["a", "b"])), 4)


@pytest.mark.parametrize("name", ["image", "text"])
def test_a_zero_embedding_is_refused(tmp_path, name):
    array = embeddings()[name]
    array[1] = 0
    with pytest.raises(InputError, match=f"{name} embedding is all zeros"):
        read_concepts(save(tmp_path / "c.npz", **{name: array}), 4)


def test_an_embedding_with_a_missing_number_is_refused(tmp_path):
    array = embeddings()["image"]
    array[2, 1] = np.nan
    with pytest.raises(InputError, match="no number in row 3"):
        read_concepts(save(tmp_path / "c.npz", image=array), 4)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("name", ["image", "text", "concepts"])
def test_a_pickled_array_is_refused_and_never_run(tmp_path, name):
    bomb = np.array([Bomb(tmp_path / "went-off")], dtype=object)
    path = save(tmp_path / "c.npz", **{name: bomb})
    with pytest.raises(InputError, match="Object arrays cannot be loaded"):
        read_concepts(path, 4)
    assert not (tmp_path / "went-off").exists()


def test_a_pickle_under_the_name_of_an_npz_is_refused_and_never_run(tmp_path):
    path = tmp_path / "c.npz"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "went-off")))
    with pytest.raises(InputError, match="cannot be read"):
        read_concepts(path, 4)
    assert not (tmp_path / "went-off").exists()
    pickle.loads(path.read_bytes()).close()
    assert (tmp_path / "went-off").exists()  # so the bomb was live
