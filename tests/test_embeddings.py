"""Embeddings from file: every format, every way in which a file can be wrong, and whether two files match."""

import json
import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from lwta.dissect.embeddings import check_match, image_rows, read_embeddings, sanity
from lwta.dissect.encoder import load_encoder
from lwta.dissect.presence import Cosines
from lwta.errors import InputError
from models.shapes import CONCEPTS, Shapes
from models.shapes_clip import FOLDER

ROWS = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
TEXTS = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
NAMES = ["red", "a dog, running", "blé"]


def npy(path, rows=ROWS):
    np.save(path, rows)
    return path


def npz(path, **arrays):
    np.savez(path, **(arrays or {"image": ROWS, "text": TEXTS, "concepts": np.array(NAMES)}))
    return path


def tensors(path, metadata=None, **arrays):
    save_file(arrays or {"image": ROWS, "text": TEXTS}, path, metadata)
    return path


def parquet(path, rows=ROWS, name="embedding", kind=None, **columns):
    kind = pa.list_(pa.float32()) if kind is None else kind
    columns = {
        "id": list(range(len(rows))),
        name: pa.array([None if r is None else list(r) for r in rows], kind),
    } | columns
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


def refusal(path, what="image", **options):
    with pytest.raises(InputError) as refused:
        read_embeddings(path, what, **options)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def holds(found, rows):
    assert found.dtype == np.asarray(rows).dtype
    np.testing.assert_array_equal(found, rows)
    return True


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, ">f4", np.int8])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_npy_matrix_is_mapped_and_not_read(tmp_path, kind, order):
    rows = np.array(ROWS * 9, dtype=kind, order=order)
    rows[rows.any(1) == 0] = 1
    found = read_embeddings(npy(tmp_path / "e.npy", rows), "image")
    assert isinstance(found.vectors, np.memmap)
    assert holds(found.vectors, rows)
    assert found.names is None


def test_an_npz_gives_each_kind_by_its_name_and_the_texts_theirs(tmp_path):
    path = npz(tmp_path / "e.npz")
    image, text = read_embeddings(str(path), "image"), read_embeddings(path, "text")
    assert holds(image.vectors, ROWS)
    assert holds(text.vectors, TEXTS)
    assert (image.names, text.names) == (None, NAMES)


@pytest.mark.parametrize("write", [npz, tensors, None])
@pytest.mark.parametrize("name", ["images", "img_emb", "embedding", "whatever"])
def test_an_array_may_have_other_names_and_any_where_it_is_alone(tmp_path, write, name):
    if write is None:
        path = parquet(tmp_path / "e.parquet", name=name)
    else:
        path = write(tmp_path / f"e.{'npz' if write is npz else 'safetensors'}", **{name: ROWS})
    assert holds(read_embeddings(path, "image").vectors, ROWS)
    if name in ("images", "img_emb"):
        assert "holds no text embeddings, only " in refusal(path, "text")
        assert holds(read_embeddings(path, "image", named=True).vectors, ROWS)
    else:
        assert holds(read_embeddings(path, "text").vectors, ROWS)
        assert f"holds no image embeddings, only {name}; call them 'image'" in refusal(path, named=True)


def test_of_several_arrays_none_is_guessed(tmp_path):
    path = npz(tmp_path / "e.npz", a=ROWS, b=TEXTS)
    assert "holds no image embeddings, only a, b; call them 'image'" in refusal(path)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, np.int16])
def test_a_safetensors_array_is_mapped_where_it_lies(tmp_path, kind):
    image, text = (ROWS * 9).astype(kind), (TEXTS * 9).astype(kind)
    path = tensors(
        tmp_path / "e.safetensors", {"concepts": json.dumps(NAMES)}, image=image, text=text, odd=text[:1]
    )
    for what, rows, names in (("image", image, None), ("text", text, NAMES)):
        found = read_embeddings(path, what)
        assert isinstance(found.vectors, np.memmap)
        assert holds(found.vectors, rows)
        assert found.names == names


def test_bfloat16_is_read_as_float32(tmp_path):
    rows = torch.from_numpy(ROWS).bfloat16()
    save_tensors({"image": rows}, tmp_path / "e.safetensors")
    assert holds(read_embeddings(tmp_path / "e.safetensors", "image").vectors, rows.float().numpy())


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.list_(pa.float32(), 5), pa.large_list(pa.float32()), pa.list_(pa.float64()),
     pa.list_(pa.float16())],
)  # fmt: skip
def test_a_parquet_column_of_lists_is_read_whatever_lists(tmp_path, kind):
    rows = ROWS.astype(kind.value_type.to_pandas_dtype())
    path = parquet(tmp_path / "e.parquet", rows, kind=kind, url=["x"] * 7)
    assert holds(read_embeddings(path, "image").vectors, rows)


def test_a_parquet_table_gives_each_kind_and_the_captions(tmp_path):
    texts = pa.array(list(-ROWS), pa.list_(pa.float32()))
    words = ["a", "b", None, "d", "e", "f", "g"]
    path = parquet(tmp_path / "e.parquet", name="image_embedding", text_embedding=texts, caption=words)
    assert holds(read_embeddings(path, "image").vectors, ROWS)
    found = read_embeddings(path, "text")
    assert holds(found.vectors, -ROWS)
    assert found.names == ["a", "b", "", "d", "e", "f", "g"]
    assert read_embeddings(path, "image").names is None


def test_many_rows_of_a_parquet_file_come_in_order(tmp_path):
    rows = np.random.default_rng(0).normal(size=(9_000, 2)).astype(np.float32)
    pq.write_table(pa.table({"embedding": pa.array(list(rows))}), tmp_path / "e.parquet")
    assert holds(read_embeddings(tmp_path / "e.parquet", "image").vectors, rows)


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [("2", "10"), ("02", "10"), ("1", "2")])
def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path, numbers):
    for write, suffix in ((npy, "npy"), (parquet, "parquet")):
        folder = tmp_path / suffix
        folder.mkdir()
        write(folder / f"part_{numbers[1]}.{suffix}", ROWS[4:])
        write(folder / f"part_{numbers[0]}.{suffix}", ROWS[:4])
        assert holds(read_embeddings(folder, "image").vectors, ROWS)


def test_the_folder_that_clip_retrieval_writes_is_read(tmp_path):
    for part, rows in (("img_emb", ROWS), ("text_emb", -ROWS)):
        (tmp_path / part).mkdir()
        npy(tmp_path / part / f"{part}_0.npy", rows[:4].astype(np.float16))
        npy(tmp_path / part / f"{part}_1.npy", rows[4:].astype(np.float16))
    (tmp_path / "metadata").mkdir()
    for part, captions in enumerate((["a", "b", "c", "d"], ["e", "f", "g"])):
        table = pa.table({"image_path": captions, "caption": captions})
        pq.write_table(table, tmp_path / "metadata" / f"metadata_{part}.parquet")
    image, text = read_embeddings(tmp_path, "image"), read_embeddings(tmp_path, "text")
    assert holds(image.vectors, ROWS.astype(np.float16))
    assert holds(text.vectors, -ROWS.astype(np.float16))
    assert (image.names, text.names) == (None, list("abcdefg"))
    assert holds(read_embeddings(tmp_path / "text_emb", "text").vectors, -ROWS.astype(np.float16))
    (tmp_path / "metadata" / "metadata_1.parquet").unlink()
    assert "has 4 names and 7 embeddings" in refusal(tmp_path, "text")


def test_a_folder_of_one_file_is_mapped(tmp_path):
    npy(tmp_path / "0.npy")
    assert isinstance(read_embeddings(tmp_path, "image").vectors, np.memmap)


def test_a_folder_of_two_kinds_or_none_or_two_widths_is_refused(tmp_path):
    assert "holds neither .npy nor .parquet files; it needs image embeddings" in refusal(tmp_path)
    npy(tmp_path / "0.npy")
    npy(tmp_path / "1.npy", ROWS[:, :4])
    with pytest.raises(
        InputError, match=r"1\.npy is \(7, 4\) and 0\.npy \(7, 5\); one folder needs one width"
    ):
        read_embeddings(tmp_path, "image")
    parquet(tmp_path / "0.parquet")
    assert "holds both .npy and .parquet" in refusal(tmp_path)


# --- size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_a_large_file_is_read_without_loading_it(tmp_path, suffix):
    rows, width = 600, 2**18  # 600 MiB, of which a page per row is on disk
    path = tmp_path / f"e.{suffix}"
    if suffix == "npy":
        written = np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))
    else:
        size = rows * width * 4
        header = json.dumps(
            {"image": {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, size]}}
        ).encode()
        header += b" " * (-len(header) % 8)
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        with path.open("r+b") as file:
            file.truncate(8 + len(header) + size)
        written = np.memmap(path, np.float32, "r+", 8 + len(header), (rows, width))
    written[:, 0] = np.arange(1, rows + 1)
    del written
    tracemalloc.start()
    found = read_embeddings(path, "image").vectors
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found, np.memmap)
    assert found[:, 0].tolist() == list(range(1, rows + 1))
    assert peak < 100e6


# --- rows ----------------------------------------------------------------------------------------

WRITERS = {
    "npy": npy,
    "npz": lambda path, rows: npz(path, image=rows),
    "safetensors": lambda path, rows: tensors(path, image=rows),
    "parquet": parquet,
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "is not finite"),
        (np.inf, "is not finite"),
        (0, "is all zeros"),
        (1e-30, "is all zeros"),
        (1e30, "is not finite"),
    ],
)
def test_a_row_without_direction_is_refused_by_its_number(tmp_path, suffix, value, said):
    rows = ROWS.copy()
    rows[5] = value
    path = WRITERS[suffix](tmp_path / f"e.{suffix}", rows)
    assert refusal(path) == f"row 6 of the image embeddings in {path} {said}; embed it anew"


def test_rows_are_numbered_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("lwta.dissect.embeddings._BLOCK", 10)
    rows = ROWS.copy()
    rows[6, 4] = np.nan
    assert "row 7 of the image" in refusal(npy(tmp_path / "e.npy", rows))


def test_a_number_beyond_float32_is_refused(tmp_path):
    rows = ROWS.astype(np.float64)
    rows[1, 1] = 1e300
    assert "row 2 of the image embeddings" in refusal(npy(tmp_path / "e.npy", rows))


@pytest.mark.parametrize(("row", "said"), [(None, "nothing"), ([1.0] * 4, "4 numbers"), ([], "0 numbers")])
def test_a_missing_or_shorter_row_of_a_parquet_file_is_refused(tmp_path, row, said):
    path = parquet(tmp_path / "e.parquet", [*ROWS[:4].tolist(), row, ROWS[5].tolist()])
    assert f"row 5 of 'embedding' in {path} holds {said}; all embeddings need one width" in refusal(path)
    parquet(path, [row, row])
    first = "row 1 of 'embedding'" if row is None else "need to be rows x width" if not row else None
    if first:
        assert first in refusal(path)
    parquet(path, [*ROWS[:4].tolist(), [1.0, None, 2.0, 3.0, 4.0]])
    assert "row 5 of the image embeddings" in refusal(path)


def test_parquet_files_of_two_widths_are_refused(tmp_path):
    parquet(tmp_path / "0.parquet")
    parquet(tmp_path / "1.parquet", ROWS[:, :3])
    assert f"row 8 in {tmp_path} is 3 wide and row 1 5" in refusal(tmp_path)


@pytest.mark.parametrize("shape", [(5,), (2, 5, 1), (0, 5), (5, 0), ()])
def test_what_is_no_matrix_is_refused_with_its_shape(tmp_path, shape):
    for path in (npz(tmp_path / "e.npz", image=np.ones(shape)), npy(tmp_path / "e.npy", np.ones(shape))):
        message = refusal(path)
        assert str(shape) in message or (0 in shape and "cannot be read" in message)


@pytest.mark.parametrize("rows", [np.array([["a", "b"]]), np.ones((2, 2), bool), np.ones((2, 2), complex),
                                  np.zeros((2, 2), "f4,f4")])  # fmt: skip
def test_what_is_no_number_is_refused_with_its_type(tmp_path, rows):
    for path in (npz(tmp_path / "e.npz", image=rows), npy(tmp_path / "e.npy", rows)):
        assert f"are of type {rows.dtype}, which is no number" in refusal(path)


def test_a_parquet_file_without_lists_of_numbers_is_refused(tmp_path):
    pq.write_table(pa.table({"embedding": [1.0, 2.0], "words": [["a"], ["b"]]}), tmp_path / "e.parquet")
    assert "holds no image embeddings, only nothing of the kind" in refusal(tmp_path / "e.parquet")
    empty = parquet(tmp_path / "f.parquet", ROWS[:0])
    assert "need to be rows x width" in refusal(empty)


@pytest.mark.parametrize("names", ["a, b", '"red"', "[1, 2, 3]", '{"a": 1}'])
def test_names_that_are_no_list_are_refused(tmp_path, names):
    message = refusal(tensors(tmp_path / "e.safetensors", {"concepts": names}), "text")
    assert "is no JSON list of names" in message or "cannot be read" in message
    assert "concepts is (1, 3) and no list" in refusal(
        npz(tmp_path / "e.npz", text=TEXTS, concepts=np.array([NAMES])), "text"
    )


def test_a_wrong_number_of_names_is_refused(tmp_path):
    path = npz(tmp_path / "e.npz", text=TEXTS, concepts=np.array(NAMES[:2]))
    assert refusal(path, "text") == f"{path} has 2 names and 3 embeddings; give a name to each"


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".pt", ".pkl", ""])
def test_another_suffix_is_refused_with_those_that_are_read(tmp_path, suffix):
    path = tmp_path / f"e{suffix}"
    path.write_bytes(b"x")
    assert "it ends in one of .npy, .npz, .safetensors, .parquet" in refusal(path)


def test_a_missing_file_is_named(tmp_path):
    assert refusal(tmp_path / "no.npy") == f"there is no file or folder {tmp_path / 'no.npy'}"


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("kept", [0, 0.1, 0.5, 0.98])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    path = WRITERS[suffix](tmp_path / f"e.{suffix}", np.tile(ROWS, (9, 3)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    message = refusal(path)
    assert message.startswith(f"{path} cannot be read (")
    assert message.endswith("); is it whole? write it anew")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_pickle_is_refused_and_never_run(tmp_path, suffix):
    fuse, path = tmp_path / "went-off", tmp_path / f"e.{suffix}"
    path.write_bytes(pickle.dumps(Bomb(fuse)))
    assert "cannot be read" in refusal(path)
    if suffix in ("npy", "npz"):
        bombs = np.array([[Bomb(fuse)]], dtype=object)
        np.save(path, bombs) if suffix == "npy" else npz(path, image=bombs)
        assert "cannot be read" in refusal(path)
        npz(tmp_path / "n.npz", text=TEXTS, concepts=bombs[0])
        assert "cannot be read" in refusal(tmp_path / "n.npz", "text")
    assert not fuse.exists()
    pickle.loads(pickle.dumps(Bomb(fuse))).close()
    assert fuse.exists()  # so the bomb was live


# --- whether they match --------------------------------------------------------------------------


def test_other_widths_are_refused_with_both():
    check_match(ROWS, torch.from_numpy(TEXTS))
    with pytest.raises(InputError) as refused:
        check_match(ROWS, TEXTS[:, :4])
    assert str(refused.value).startswith("image embeddings are 5 wide and text embeddings 4: they come from")


@pytest.mark.parametrize("count", [6, 8])
def test_another_number_of_rows_than_images_is_refused_with_both(count):
    image_rows(ROWS, 7)
    with pytest.raises(InputError, match=f"there are 7 image embeddings and {count} probe images"):
        image_rows(ROWS, count)


@pytest.fixture(scope="module")
def shipped():
    """Embeddings of 200 images and of the words, by the CLIP that ships."""
    encoder, data = load_encoder(str(FOLDER)), Shapes("validation[:200]")
    images = torch.cat(
        [
            encoder.images(torch.stack([encoder.transform(data[i][0]) for i in range(k, k + 50)]))
            for k in range(0, 200, 50)
        ]
    )
    return images, encoder.texts(CONCEPTS, ["{}"])


def rotation(seed, width):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def figure(warning):
    return float(warning.split(" standard")[0].rsplit(" ", 1)[1])


def naive(images, texts):
    """The statistic, entry by entry, from the definition."""

    def traceless(rows):
        rows = [row / np.linalg.norm(row) for row in rows]
        mean = sum(rows) / len(rows)
        covariance = sum(np.outer(row - mean, row - mean) for row in rows) / len(rows)
        return covariance - np.eye(len(mean)) * np.trace(covariance) / len(mean)

    a, b = traceless(np.float64(images)), traceless(np.float64(texts))
    width = len(a)
    return (
        np.trace(a @ b) / np.sqrt(np.trace(a @ a) * np.trace(b @ b)) * np.sqrt((width - 1) * (width + 2) / 2)
    )


def test_embeddings_of_one_clip_pass_and_its_rotated_twin_is_warned_of(shipped):
    images, texts = (part.numpy() for part in shipped)
    assert sanity(*shipped) is None
    assert sanity(images[:20], texts[:5]) is None
    assert sanity((images * 7).astype(np.float16), texts) is None
    values = []
    for seed in range(20):
        turned = images @ rotation(seed, images.shape[1])
        warning = sanity(turned, texts)
        assert warning is not None
        assert "\n" not in warning
        values.append(figure(warning))
        assert values[-1] == pytest.approx(naive(turned, texts), abs=0.051)
    assert abs(np.mean(values)) < 0.7
    assert 0.6 < np.std(values) < 1.5
    assert naive(images, texts) > 15


def test_the_statistic_has_the_spread_that_it_claims_for_other_spectra():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(80, 64)) * np.linspace(2, 0.1, 64)
    texts = rng.normal(size=(30, 64)) * np.logspace(0, -2, 64)
    values = [naive(images @ rotation(seed, 64), texts) for seed in range(100)]
    assert abs(np.mean(values)) < 0.4
    assert 0.8 < np.std(values) < 1.2
    assert sanity(images, texts) is None


def test_what_gives_no_direction_to_compare_is_not_judged(shipped):
    images, texts = (part.numpy() for part in shipped)
    assert sanity(images[:1], texts) is None
    assert sanity(images, texts[[3, 3, 3]]) is None
    assert sanity(ROWS, TEXTS) is None


def test_a_sample_of_rows_is_enough(shipped):
    images, texts = shipped
    many = np.tile(images.numpy(), (30, 1))
    many[2_500:] = many[2_500:] @ rotation(0, images.shape[1])
    assert sanity(many, texts) is None
    many[100:] = images.numpy()[np.arange(5_900) % 200] @ rotation(0, images.shape[1])
    assert sanity(many, texts) is not None


def test_embeddings_from_file_are_what_the_cosines_take(tmp_path, shipped):
    images, texts = shipped
    found = read_embeddings(npy(tmp_path / "e.npy", images.numpy()), "image").vectors
    torch.testing.assert_close(Cosines(found, texts).part(slice(5, 20)), images[5:20] @ texts.T)
