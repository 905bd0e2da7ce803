"""Probe sets of every kind, parts of them, and what tells one from another."""

import os
import pickle
import shutil
import tarfile
import time
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from commands.subject import Subject
from lwta.errors import InputError
from models.data import ImageData
from models.images import IndexedImages, image_name, read_image
from models.probes import open_probe, probe_classes, probe_identity
from tests.conftest import COLOURS, SPLITS


def paint(path, value, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(path)


def targets(data):
    return [read_image(data, i)[1] for i in range(len(data))]


@pytest.fixture
def mixed(tmp_path):
    """Images beside folders, at several depths, of several endings."""
    root = tmp_path / "mixed"
    for i, name in enumerate(("top.png", "a/1.JPG", "a/2.webp", "deep/er/b/3.bmp", "other/a/4.png")):
        paint(root / name, 40 * i)
    (root / "a" / "notes.txt").write_text("no image")
    return root


def table(folder, features, rows=4, **columns):
    """A parquet file of rows with an image column ``picture``."""
    folder.mkdir(parents=True)
    images = [Image.fromarray(np.full((8, 8, 3), 30 * i, np.uint8)) for i in range(rows)]
    kinds = datasets.Features(features | {"picture": datasets.Image()})
    data = datasets.Dataset.from_dict({**columns, "picture": images}, features=kinds)
    data.to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def test_a_folder_is_read_at_any_depth(mixed):
    data = open_probe(str(mixed))
    assert {image_name(data, i) for i in range(len(data))} == {
        "top.png", "a/1.JPG", "a/2.webp", "deep/er/b/3.bmp", "other/a/4.png",
    }  # fmt: skip
    assert probe_classes(data) == ["mixed", "a", "b"]  # folders of the same name are one class
    by_name = {image_name(data, i): target for i, target in enumerate(targets(data))}
    assert by_name == {"top.png": 0, "a/1.JPG": 1, "a/2.webp": 1, "deep/er/b/3.bmp": 2, "other/a/4.png": 1}


def test_a_folder_without_folders_has_no_classes(mixed):
    data = open_probe(str(mixed / "a"))
    assert len(data) == 2
    assert probe_classes(data) is None
    assert targets(data) == [0, 0]


def test_endings_can_be_chosen(mixed):
    assert len(open_probe(str(mixed), args={"input_key": ".webp;.bmp"})) == 2


def test_a_tar_file_is_read(image_folder, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(image_folder / "test", arcname="images")
    data = open_probe(f"{tmp_path}/images.tar")
    assert len(data) == SPLITS["test"]
    assert probe_classes(data) == list(COLOURS)
    folder = open_probe(str(image_folder / "test"))
    assert targets(data) == targets(folder)
    assert read_image(data, 11)[0].tobytes() == read_image(folder, 11)[0].tobytes()


def test_parquet_tells_its_columns_and_splits(parquet_folder):
    data = open_probe(f"{parquet_folder}:test")
    assert len(data) == SPLITS["test"]
    assert probe_classes(data) == list(COLOURS)
    assert targets(data)[:4] == [0, 1, 2, 0]
    assert len(list(parquet_folder.iterdir())) == 2  # nothing is cached there
    with pytest.raises(InputError, match="holds the splits train, test; name one: .*:test$"):
        open_probe(str(parquet_folder))
    with pytest.raises(InputError, match='Unknown split "val"'):
        open_probe(f"{parquet_folder}:val")


def test_columns_are_found_by_what_they_hold(tmp_path):
    names = datasets.ClassLabel(names=["cat", "dog"])
    kinds = {"id": datasets.Value("int64"), "fine": names, "coarse": names}
    folder = table(tmp_path / "t", kinds, id=[9, 9, 9, 9], fine=[0, 1, 0, 1], coarse=[1, 1, 1, 1])
    data = open_probe(str(folder))  # one split needs no name
    assert targets(data) == [0, 1, 0, 1]
    assert probe_classes(data) == ["cat", "dog"]
    assert read_image(data, 2)[0].getpixel((0, 0)) == (60, 60, 60)
    assert targets(open_probe(f"{folder}:test", args={"target_key": "coarse"})) == [1, 1, 1, 1]
    assert probe_classes(open_probe(f"{folder}:test", args={"target_key": "id"})) is None


def test_a_table_without_classes_is_of_one_class(tmp_path):
    folder = table(tmp_path / "t", {"text": datasets.Value("string")}, text=list("abcd"))
    data = open_probe(str(folder))
    assert targets(data) == [0, 0, 0, 0]
    assert probe_classes(data) is None
    for args, message in (
        ({"target_key": "text"}, "the column 'text' .* holds no class numbers; leave target_key away"),
        ({"target_key": "label"}, "has no column 'label'; it has text, picture"),
        ({"input_key": "image"}, "has no column 'image'; it has text, picture"),
    ):
        with pytest.raises(InputError, match=message):
            open_probe(str(folder), args=args)


def test_the_embedded_world_is_a_probe_set():
    data = open_probe("shapes:validation[:3000]", 16)
    assert len(data) == 3000  # more than the split holds by default
    assert data[0][0].size == (16, 16)
    assert len(open_probe("shapes")) == 2000
    assert probe_classes(open_probe("shapes:test[:9]", args={"task": "pairs"}))[0] == "family 1"
    with pytest.raises(InputError, match="shapes has no split 'all'"):
        open_probe("shapes:all")
    with pytest.raises(InputError, match="do not fit shapes"):
        open_probe("shapes:test", args={"colour": "red"})


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    return tmp_path


def test_a_dataset_of_torchvision_is_read(cifar):
    data = open_probe("torch/cifar10:test[1:3]", args={"root": str(cifar)})
    assert targets(data) == [1, 2]
    assert probe_classes(data) == list("abcdefghij")
    assert image_name(data, 0) == "1"  # its number in the whole
    whole = open_probe("torch/cifar10:test", args={"root": str(cifar)})
    assert probe_identity(data) != probe_identity(whole)
    with pytest.raises(InputError, match="needs its split: torch/cifar10:test"):
        open_probe("torch/cifar10", args={"root": str(cifar)})
    with pytest.raises(InputError, match="give root among the arguments"):
        open_probe("torch/cifar10:test")


def test_a_table_of_the_hub_that_cannot_be_reached_is_refused():
    with pytest.raises(InputError, match="cannot read images from hfds/nobody/nothing:test .*nobody/nothing"):
        open_probe("hfds/nobody/nothing:test")
    with pytest.raises(InputError, match="needs its split"):
        open_probe("hfds/nobody/nothing")


@pytest.mark.parametrize("place", ["folder", "tar", "parquet"])
def test_a_slice_is_the_same_images_numbered_anew(image_folder, parquet_folder, tmp_path, place):
    spec = {
        "folder": f"{image_folder}/test",
        "tar": f"{tmp_path}/t.tar",
        "parquet": f"{parquet_folder}:test",
    }[place]
    if place == "tar":
        with tarfile.open(spec, "w") as archive:
            archive.add(image_folder / "test", arcname=".")
    whole, part = open_probe(spec), open_probe(f"{spec}[7:19]")
    assert len(part) == 12
    assert probe_classes(part) == probe_classes(whole) == list(COLOURS)
    indexed = IndexedImages(part, to_tensor)
    index, pixels, target = indexed[4]
    image, expected = read_image(whole, 11)
    assert (index, target) == (4, expected)
    assert torch.equal(pixels, to_tensor(image))
    assert image_name(part, 4) == image_name(whole, 11)
    assert [len(open_probe(f"{spec}{end}")) for end in ("[:5]", "[20:]", "[:900]", "[:]")] == [5, 4, 24, 24]
    with pytest.raises(InputError, match=r"\[24:\] holds no image; .* holds 24$"):
        open_probe(f"{spec}[24:]")
    with pytest.raises(IndexError):
        part[12]


def test_a_folder_whose_name_looks_like_a_slice_is_a_folder(tmp_path):
    for i in range(3):
        paint(tmp_path / "x[0:2]" / f"{i}.png", i)
    assert len(open_probe(f"{tmp_path}/x[0:2]")) == 3
    assert len(open_probe(f"{tmp_path}/x[0:2][:1]")) == 1


def test_what_holds_no_images_is_refused(tmp_path, mixed):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.zip").write_bytes(b"PK")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    for spec, message in (
        (f"{tmp_path}/none", "there are no images at .*/none; give a folder, a .tar file"),
        (f"{tmp_path}/none:test", "there are no images at .*/none:test;"),
        (f"{tmp_path}/empty", "cannot read images from .*Found 0 images"),
        (f"{tmp_path}/empty.tar", "cannot read images from .*/empty.tar"),
        (f"{tmp_path}/file.zip", "is a file; give the folder it lies in, or a .tar file"),
        (f"{mixed}:test", "holds no parquet files, so it has no split 'test'"),
        ("wds/shards:test", "is streamed, and its images have no numbers"),
        ("hfids/owner/name:test", "is streamed"),
    ):
        with pytest.raises(InputError, match=message) as refusal:
            open_probe(spec)
        assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="unexpected keyword"):
        open_probe(str(mixed), args={"colour": "red"})


def test_the_identity_of_a_folder_follows_its_images(mixed, tmp_path):
    def identity(spec=mixed):
        return probe_identity(open_probe(str(spec)))

    known = [identity()]
    assert identity() == known[0]
    moved = mixed.rename(tmp_path / "elsewhere")
    assert identity(f"{tmp_path}/./elsewhere/") == known[0]
    moved.rename(mixed)
    known += [identity(f"{mixed}[:3]"), identity(f"{mixed}[1:4]"), identity(mixed / "a")]

    def changed(change):
        before = os.stat(mixed / "a" / "1.JPG")
        change(mixed / "a" / "1.JPG")
        if (mixed / "a" / "1.JPG").exists():  # its times tell nothing any more
            os.utime(mixed / "a" / "1.JPG", ns=(before.st_atime_ns, before.st_mtime_ns))
        known.append(identity())

    changed(lambda path: path.write_bytes(path.read_bytes() + b"\0"))
    changed(lambda path: paint(path, 200))
    changed(lambda path: path.write_bytes(b"broken"))
    changed(lambda path: path.rename(path.with_name("0.jpg")))
    os.utime(mixed / "a" / "2.webp", ns=(1, 1))
    known.append(identity())
    (mixed / "top.png").unlink()
    known.append(identity())
    assert len(set(known)) == len(known) == 10


def test_the_identity_does_not_depend_on_the_place(image_folder, tmp_path):
    for name in ("one", "two/deeper"):
        shutil.copytree(image_folder / "test", tmp_path / name)  # with its times
        with tarfile.open(tmp_path / name / "images.tar", "w") as archive:
            archive.add(image_folder / "test", arcname=".")
        table(tmp_path / name / "table", {"id": datasets.Value("int64")}, id=[0, 1, 2, 3])
    for inside in ("", "/images.tar", "/table", "[3:9]", "/table[1:3]"):
        one, two = (
            probe_identity(open_probe(f"{tmp_path}/{name}{inside}")) for name in ("one", "two/deeper")
        )
        assert one == two, inside


def test_the_identity_of_tables_and_tars_follows_their_images(tmp_path):
    kinds, known = {"id": datasets.Value("int64")}, []
    for rows in (3, 4):
        data = open_probe(str(table(tmp_path / f"{rows}", kinds, rows, id=list(range(rows)))))
        known.append(probe_identity(data))
    known.append(probe_identity(open_probe(f"{tmp_path}/4[1:]")))
    for name in ("a/0.png", "b/0.png"):
        paint(tmp_path / "x.png", 9)
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.add(tmp_path / "x.png", arcname=name)
        known.append(probe_identity(open_probe(f"{tmp_path}/x.tar")))
    assert len(set(known)) == 5


def test_the_identity_of_the_embedded_world_follows_its_parameters():
    options = [
        ("shapes:validation[:40]", 16, {}), ("shapes:validation[:40]", 20, {}), ("shapes:test[:40]", 16, {}),
        ("shapes:validation[:41]", 16, {}), ("shapes:validation[1:41]", 16, {}),
        ("shapes:validation[:40]", 16, {"seed": 1}), ("shapes:validation[:40]", 16, {"task": "pairs"}),
    ]  # fmt: skip
    known = [probe_identity(open_probe(*option)) for option in options]
    assert len(set(known)) == len(known)
    assert probe_identity(open_probe(*options[0])) == known[0]


def test_many_files_are_told_apart_in_two_seconds(tmp_path):
    paint(tmp_path / "first.png", 3)
    for k in range(50):
        (tmp_path / "many" / f"{k}").mkdir(parents=True)
        for i in range(1000):
            os.link(tmp_path / "first.png", tmp_path / "many" / f"{k}" / f"{i}.png")
    data = open_probe(str(tmp_path / "many"))
    assert len(data) == 50_000
    start = time.process_time()  # not slowed by others on the machine
    known = probe_identity(data)
    assert time.process_time() - start < 2
    (tmp_path / "many" / "31" / "777.png").unlink()
    paint(tmp_path / "many" / "31" / "777.png", 4)
    assert probe_identity(data) != known


def test_a_part_of_the_validation_images_of_a_run_is_a_part_of_what_it_validated_on(image_folder):
    data = ImageData(root=str(image_folder), val_split="validation", image_size=16)
    others = dict.fromkeys(Subject._fields)
    subject = Subject(**others | {"run": SimpleNamespace(data=data)})
    whole, part = subject.probe("validate"), subject.probe("validate[2:5]")
    assert len(part) == 3
    for index in range(3):
        assert read_image(part, index)[0].tobytes() == read_image(whole, index + 2)[0].tobytes()
    with pytest.raises(InputError, match=r"validate\[99:\] holds no image; validate holds 24"):
        subject.probe("validate[99:]")
