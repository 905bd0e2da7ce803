"""Images kept back from labelling, and whether two sets of images share some."""

import shutil
import tarfile
from itertools import product

import numpy as np
import pytest

from lwta.errors import InputError
from models.images import image_name, read_image
from models.probes import open_probe, probe_identity, share_images, split_back


@pytest.fixture(params=["folder", "tar", "parquet", "shapes"])
def data(request, image_folder, parquet_folder, tmp_path):
    """24 images of every kind."""
    if request.param == "tar":
        with tarfile.open(tmp_path / "images.tar", "w") as archive:
            archive.add(image_folder / "test", arcname="images")
    specs = {
        "folder": image_folder / "test",
        "tar": tmp_path / "images.tar",
        "parquet": f"{parquet_folder}:test",
    }
    return open_probe(str(specs.get(request.param, "shapes:validation[:24]")), 32)


def pictures(data):
    return [np.asarray(read_image(data, i)[0]).tobytes() for i in range(len(data))]


def test_what_is_kept_back_and_what_stays_are_all_images_once(data):
    stays, kept = split_back(data, 0.25)
    assert (len(stays), len(kept)) == (18, 6)
    assert sorted(pictures(stays) + pictures(kept)) == sorted(pictures(data))
    assert {image_name(stays, i) for i in range(18)} | {image_name(kept, i) for i in range(6)} == {
        image_name(data, i) for i in range(24)
    }
    assert kept.indices != list(range(6))  # from all over: folders are sorted by class
    assert pictures(split_back(data, 0.25)[1]) == pictures(kept)
    assert stays.classes == kept.classes


def test_parts_have_identities_of_their_own(data):
    stays, kept = split_back(data, 0.5)
    parts = [data, stays, kept, split_back(data, 0.25)[0], split_back(stays, 0.5)[0]]
    found = [probe_identity(part) for part in parts]
    assert len(set(found)) == 5
    assert found == [probe_identity(part) for part in parts]


def test_parts_share_images_where_their_numbers_do(data):
    stays, kept = split_back(data, 0.25)
    assert share_images(data, data)
    assert share_images(stays, data)
    assert share_images(data, kept)
    assert not share_images(stays, kept)
    assert not share_images(kept, split_back(stays, 0.5)[1])
    assert share_images(stays, split_back(stays, 0.5)[1])


def test_slices_share_images_where_their_numbers_do(image_folder, parquet_folder):
    spans = [(0, 5), (5, 10), (3, 6), (0, 20)]
    for place in (str(image_folder / "test"), f"{parquet_folder}:test"):
        for (a, b), (c, d) in product(spans, repeat=2):
            one, other = open_probe(f"{place}[{a}:{b}]"), open_probe(f"{place}[{c}:{d}]")
            assert share_images(one, other) == bool(set(range(a, b)) & set(range(c, d)))


def test_folders_share_images_where_their_files_are_the_same(image_folder, parquet_folder, tmp_path):
    test = open_probe(str(image_folder / "test"))
    assert share_images(test, open_probe(str(image_folder / "test" / "red")))
    assert not share_images(test, open_probe(str(image_folder / "train")))
    (tmp_path / "link").symlink_to(image_folder / "test")
    assert share_images(test, open_probe(str(tmp_path / "link")))
    shutil.copytree(image_folder / "test", tmp_path / "copy")
    assert not share_images(test, open_probe(str(tmp_path / "copy")))  # as far as it can be told by paths
    table = open_probe(f"{parquet_folder}:test")
    assert not share_images(table, open_probe(f"{parquet_folder}:train"))
    assert not share_images(table, test)


@pytest.mark.parametrize("share", [0.01, 0.99, 1.0, 1.5, -0.5])
def test_a_part_without_images_is_refused(image_folder, share):
    with pytest.raises(
        InputError, match="keep_back .* of 24 images keeps .* of them back; it lies between 0 and 1"
    ):
        split_back(open_probe(str(image_folder / "test")), share)
