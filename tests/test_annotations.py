"""Tables of annotations, wide and long, as CUB and Broden give them and as people write them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lwta.dissect.annotations import read_annotations
from lwta.errors import InputError

IMAGES = ["a.png", "b.png", "c.png"]
NAN = np.nan


def written(folder, table, suffix=".csv"):
    path = folder / f"table{suffix}"
    frame = pd.DataFrame(table)
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_wide_table_is_matched_by_name_whatever_its_order(tmp_path, suffix):
    table = {"image": ["c.png", "x.png", "a.png"], "red": [1, 0, 0], " big ": [0.25, 1, NAN]}
    found = read_annotations(written(tmp_path, table, suffix), IMAGES)
    assert found.names == ["red", "big"]
    assert found.missing == ["b.png"]
    assert found.presence.dtype == np.float32
    np.testing.assert_array_equal(found.presence, np.array([[0, NAN], [NAN, NAN], [1, 0.25]], np.float32))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_long_table_of_what_is_shown_says_that_the_rest_is_not(tmp_path, suffix):
    table = {"image": ["a.png", "a.png", "c.png", "x.png"], "concept": ["red", "big", "big", "red"]}
    found = read_annotations(written(tmp_path, table, suffix), IMAGES)
    assert sorted(found.names) == ["big", "red"]
    presence = pd.DataFrame(found.presence, IMAGES, found.names)
    assert presence["red"].fillna(-1).tolist() == [1, -1, 0]
    assert presence["big"].fillna(-1).tolist() == [1, -1, 1]
    assert found.missing == ["b.png"]


def test_texts_of_a_csv_are_as_written_and_missing_numbers_missing(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("image,concept,present\n007,None,1\n007,NA,0\n8,nan,NA\n8,None,0\n")
    found = read_annotations(path, ["007", "8"])
    assert sorted(found.names) == ["NA", "None", "nan"]
    presence = pd.DataFrame(found.presence, ["007", "8"], found.names).fillna(-1)
    assert presence.loc["007", ["NA", "None", "nan"]].tolist() == [0, 1, -1]
    assert presence.loc["8", ["NA", "None", "nan"]].tolist() == [-1, 0, -1]


def test_an_image_that_shows_nothing_was_looked_at(tmp_path):
    table = {"image": ["a.png", "b.png", "c.png"], "concept": ["red", None, None]}
    found = read_annotations(written(tmp_path, table), IMAGES)
    assert found.presence[:, 0].tolist() == [1, 0, 0]
    assert found.missing == []


def test_a_long_table_with_presence_leaves_unknown_what_it_does_not_list(tmp_path):
    table = {"image": ["a.png", "a.png", "b.png"], "concept": ["red", "big", "red"], "present": [1, 0, 0.5]}
    found = read_annotations(written(tmp_path, table), IMAGES)
    presence = pd.DataFrame(found.presence, IMAGES, found.names)
    assert presence["red"].fillna(-1).tolist() == [1, 0.5, -1]
    assert presence["big"].fillna(-1).tolist() == [0, -1, -1]


def test_images_without_names_go_by_their_numbers(tmp_path):
    found = read_annotations(written(tmp_path, {"image": [2, 0], "red": [1, 0]}), ["0", "1", "2"])
    assert found.missing == ["1"]
    assert found.presence[[0, 2], 0].tolist() == [0, 1]


def test_cub_and_broden_become_such_tables_by_the_lines_of_the_documentation(tmp_path, monkeypatch):
    """Small files in the form that CUB-200-2011 and Broden have."""
    monkeypatch.chdir(tmp_path)
    for folder in ("CUB_200_2011/attributes", "broden1_224"):
        (tmp_path / folder).mkdir(parents=True)
    files = {
        "CUB_200_2011/images.txt": "1 001.Ibis/one.jpg\n2 001.Ibis/two.jpg\n",
        "attributes.txt": "1 has_bill_shape::hooked\n2 has_wing_color::blue\n",
        # certainty and time follow; one row of the real file has a column too many
        "CUB_200_2011/attributes/image_attribute_labels.txt": (
            "1 1 1 3 27.7\n1 2 0 3 27.7\n2 1 0 4 5.2\n2 2 1 1 0 5.2\n"
        ),
        "broden1_224/index.csv": "image,split,scene,texture\na.jpg,train,2,\nb.jpg,val,,1;2\n",
        "broden1_224/label.csv": "number,name,category\n1,striped,texture(1)\n2,dotted,texture(2)\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    told = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", told, re.DOTALL)
    exec(lines, {})
    found = read_annotations("cub.parquet", ["001.Ibis/one.jpg", "001.Ibis/two.jpg"])
    presence = pd.DataFrame(found.presence, columns=found.names)
    assert presence["has_bill_shape::hooked"].tolist() == [1, 0]
    assert presence["has_wing_color::blue"].fillna(-1).tolist() == [0, 1]
    found = read_annotations("broden-textures.parquet", ["a.jpg", "b.jpg"])
    presence = pd.DataFrame(found.presence, columns=found.names)
    assert presence["striped"].tolist() == presence["dotted"].tolist() == [0, 1]


A = {"image": ["a.png"]}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"red": [1]}, "has no column 'image'; it has red"),
        (
            {"image": ["x.png"], "red": [1]},
            "names none of the 3 images: it tells of 'x.png', and the first image",
        ),
        ({"image": ["a.png", "a.png"], "red": [1, 0]}, "lists the image 'a.png' twice"),
        (A | {"red": ["yes"]}, "the column 'red' of .* is no presence, 0 to 1"),
        ({"image": ["a.png"] * 2, "word": ["red", "big"]}, "'word' of .*; remove it, or call it 'concept'"),
        (A | {"Unnamed: 0": [0], "red": [1]}, "is numbers of rows; write it with index=False"),
        ({"image": ["a.png", None], "red": [1, 0]}, "has 1 rows without an image; remove them"),
        (A | {"concept": ["red"], "presence": [1]}, "'presence' beside .*; call it 'present' where"),
        (A | {"red": [2]}, r"the presence of 'red' in .* is 2; it lies in \[0, 1\]"),
        (A | {"red": [-0.5]}, "is -0.5; it lies in"),
        (A | {"red": [np.inf]}, "is inf; it lies in"),
        (A, "has no column but 'image'"),
        (A | {"red": [1], "Red ": [1]}, "names the concept 'Red' twice"),
        ({"image": ["a.png"] * 2, "concept": ["red"] * 2}, "lists 'red' twice for the image 'a.png'"),
        (A | {"concept": ["red"], "time": [3]}, "the column 'time' beside image, concept and present"),
        (A | {"concept": ["red"], "present": ["y"]}, "holds something else than numbers from 0 to 1"),
        (A | {"concept": ["red"], "present": [3]}, "the presence of 'red' in .* is 3"),
        ({"image": [], "red": []}, "holds no row"),
    ],
)
def test_a_table_that_says_nothing_clear_is_refused_by_one_sentence(tmp_path, table, sentence):
    with pytest.raises(InputError, match=sentence):
        read_annotations(written(tmp_path, table), IMAGES)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no table of annotations"):
        read_annotations(tmp_path / "none.csv", IMAGES)
    with pytest.raises(InputError, match="it ends in .csv or .parquet"):
        read_annotations(tmp_path / "none.txt", IMAGES)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read .*; is it whole"):
        read_annotations(tmp_path / "broken.parquet", IMAGES)
