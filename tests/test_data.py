"""Datasets by timm's factory, and augmentation that is a function of seed, epoch and image."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_tensor

from commands.subject import subject_of
from lwta.errors import InputError
from models.augment import Augmented, EpochSampler
from models.data import ImageData
from tests.conftest import SPLITS


def data(root, **options):
    return ImageData(
        **{"root": str(root), "image_size": 16, "crop_pct": 1.0, "batch_size": 12, "num_workers": 0} | options
    )


def test_a_folder_tells_its_classes(image_folder):
    images = data(image_folder)
    assert images.class_names == ["blue", "green", "red"]
    assert images.num_classes == 3
    assert [len(images.dataset(stage)) for stage in ("train", "validate", "test")] == list(SPLITS.values())


def test_parquet_tells_its_classes_and_takes_slices(parquet_folder):
    images = data(
        parquet_folder, name="hfds", train_split="train[:20]", val_split="train[40:]",
        dataset_args={"input_key": "img", "target_key": "label"},
    )  # fmt: skip
    assert images.class_names == ["blue", "green", "red"]
    assert [len(images.dataset(stage)) for stage in ("train", "validate", "test")] == [20, 8, 24]
    # A second load reads the same files again, not also what the first one cached.
    assert len(images.dataset("test")) == 24
    assert len(list(parquet_folder.iterdir())) == 2


def test_tar_files_are_read(image_folder, tmp_path):
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for folder in (image_folder / split).iterdir():
                archive.add(folder, arcname=folder.name)
    images = data(tmp_path, train_split="train.tar", val_split="validation.tar")
    assert images.class_names == ["blue", "green", "red"]
    assert [len(images.dataset(stage)) for stage in ("train", "validate")] == [48, 24]


def test_a_torchvision_dataset_is_read(tmp_path):
    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in names:
        pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
        images = data(tmp_path, name="torch/cifar10", image_size=32)
        assert images.num_classes == 10
        assert len(images.dataset("train")) == 20
        assert next(iter(images.train_dataloader()))[0].shape == (12, 3, 32, 32)
        (batch,) = list(images.val_dataloader())
        assert batch[0].shape == (4, 3, 32, 32)


def test_shards_are_streamed(image_folder, tmp_path):
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / f"shapes-{split}-0000.tar", "w") as archive:
            for label, folder in enumerate(sorted((image_folder / split).iterdir())):
                for path in sorted(folder.iterdir()):
                    archive.add(path, arcname=f"{label}{path.stem}.png")
                    text = tmp_path / f"{label}{path.stem}.cls"
                    text.write_text(str(label))
                    archive.add(text, arcname=text.name)
    images = data(
        tmp_path, name="wds/shapes", num_classes=3,
        train_split="shapes-train-{0000..0000}.tar|48", val_split="shapes-validation-{0000..0000}.tar|24",
    )  # fmt: skip
    batch, labels = next(iter(images.train_dataloader()))
    assert batch.shape == (12, 3, 16, 16)
    assert set(labels.tolist()) <= {0, 1, 2}
    assert sum(len(y) for _, y in images.val_dataloader()) == 24


def augmented(folder, seed=0, **options):
    images = data(folder, shift=3, color_jitter=0.2, random_erasing=0.5, **options)
    return Augmented(images.dataset("train", images.train_transform()), seed)


def test_augmentation_is_a_function_of_seed_epoch_and_image(image_folder):
    images = augmented(image_folder)
    first, _ = images[0, 7]
    torch.manual_seed(123)
    assert torch.equal(images[0, 7][0], first)
    assert not torch.equal(images[1, 7][0], first)
    assert not torch.equal(augmented(image_folder, seed=1)[0, 7][0], first)


def test_augmentation_leaves_the_callers_random_state_alone(image_folder):
    images = augmented(image_folder)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    images[0, 0]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_number_of_workers(image_folder, workers):
    def batches(n):
        images = data(image_folder, shift=2, num_workers=n)
        return torch.cat([x for x, _ in images.train_dataloader()])

    assert torch.equal(batches(workers), batches(1))


def test_ranks_share_an_epoch_without_overlap():
    items = list(range(20))
    keys = [list(EpochSampler(items, 2, rank, seed=3)) for rank in (0, 1)]
    assert sorted(index for part in keys for _, index in part) == items
    assert {epoch for part in keys for epoch, _ in part} == {0}


def test_epochs_are_shuffled_differently():
    sampler = EpochSampler(list(range(50)), 1, 0, seed=0)
    first = [index for _, index in sampler]
    sampler.set_epoch(4)
    later = list(sampler)
    assert [index for _, index in later] != first
    assert {epoch for epoch, _ in later} == {4}


def test_a_shift_moves_the_image_and_fills_with_black(image_folder):
    images = data(image_folder, shift=4, hflip=0.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    raw = images.dataset("train")
    moved = Augmented(images.dataset("train", images.train_transform()), seed=0)
    offsets = set()
    for epoch in range(20):
        x, y = moved[epoch, 0][0], to_tensor(raw[0][0])
        padded = torch.nn.functional.pad(y, (4, 4, 4, 4))
        hits = [
            (i, j) for i in range(9) for j in range(9)
            if torch.allclose(padded[:, i : i + 16, j : j + 16], x, atol=1e-6)
        ]  # fmt: skip
        assert len(hits) == 1
        offsets |= set(hits)
    assert len(offsets) > 5


def test_denormalise_undoes_the_transform(image_folder):
    images = data(image_folder)
    raw, _ = images.dataset("test")[0]
    transform = images.eval_transform()
    restored = subject_of(torch.nn.Flatten(), transform).denormalise(transform(raw))
    torch.testing.assert_close(restored, to_tensor(raw), atol=1e-5, rtol=0)


def test_mixing_makes_soft_targets_only_in_training(image_folder):
    images = data(image_folder, mixup=0.5, cutmix=1.0)

    class Trainer:
        training = True

    images.trainer = Trainer()
    x, y = next(iter(data(image_folder).val_dataloader()))
    _, soft = images.on_after_batch_transfer([x.clone(), y], 0)
    assert soft.shape == (12, 3)
    torch.testing.assert_close(soft.sum(1), torch.ones(12))
    Trainer.training = False
    same, hard = images.on_after_batch_transfer([x, y], 0)
    assert torch.equal(hard, y)
    assert torch.equal(same, x)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"root": "/nowhere"}, "there is no data at /nowhere; set data.root"),
        ({"train_split": "training-set[:3", "name": "hfds"}, "cannot read split"),
    ],
)
def test_data_that_cannot_be_read_is_named(parquet_folder, options, sentence):
    arguments = {"root": str(parquet_folder)} | options
    with pytest.raises(InputError, match=sentence):
        data(arguments.pop("root"), **arguments).dataset("train")


def test_classes_that_the_data_does_not_tell_are_asked_for(tmp_path, image_folder):
    images = data(image_folder)
    images._names = None
    images.dataset = lambda stage: torch.utils.data.TensorDataset(torch.zeros(1))
    with pytest.raises(InputError, match="set data.num_classes"):
        _ = images.num_classes


def test_a_split_without_a_class_keeps_the_numbers_of_training(image_folder, tmp_path):
    root = Path(shutil.copytree(image_folder, tmp_path / "images"))
    shutil.rmtree(root / "validation" / "green")
    images = data(root)
    assert sorted({label for _, label in images.dataset("validate")}) == [0, 2]
    (root / "validation" / "purple").mkdir()
    shutil.copy(next((root / "test" / "red").iterdir()), root / "validation" / "purple" / "a.png")
    with pytest.raises(InputError, match="holds the class 'purple', which the training images do not"):
        images.dataset("validate")


def test_a_broken_image_is_left_out_of_evaluation_not_replaced(image_folder, tmp_path):
    root = Path(shutil.copytree(image_folder, tmp_path / "images"))
    broken = sorted((root / "test" / "green").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.warns(UserWarning, match=f"left out an image that does not decode: green/{broken.name}"):
        labels = [y for _, batch in data(root).test_dataloader() for y in batch.tolist()]
    assert labels == [0] * 8 + [1] * 7 + [2] * 8
