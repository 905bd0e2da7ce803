"""Images from anything timm's dataset factory reads, augmented reproducibly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets.config
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from timm.data import Mixup, create_dataset, create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision.transforms import Compose, InterpolationMode, RandomCrop, Resize

from lwta.errors import InputError
from models.augment import Augmented, EpochSampler
from models.checks import check_data
from models.images import IndexedImages
from models.shapes import Shapes

Transform = Callable[[Image.Image], Tensor]
_SYNONYMS = (("train", "training"), ("validation", "val", "valid"))


class ImageData(LightningDataModule):
    """Training, validation and test images behind timm's dataset factory and transforms.

    Args:
        root: the data folder. For ``name: hfds`` a folder of parquet files; for
            ``hfds/OWNER/NAME`` the cache folder of the hub download; ``shapes`` needs none.
        name: as timm names datasets: empty for ImageFolder and tar, ``torch/cifar10``, ``hfds``,
            ``hfds/OWNER/NAME``, ``wds/...``; or ``shapes``, the embedded world of :mod:`models.shapes`.
        train_split, val_split, test_split: split names; ``hfds`` and ``shapes`` take slices such as
            ``train[:20000]``, a folder of tar files the file's name, ``wds`` shards and count
            (``train-{000..099}.tar|100000``).
        dataset_args: further arguments of ``timm.data.create_dataset`` (``input_key``, ``target_key``, ...)
            or of :class:`models.shapes.Shapes` (``task``, ``seed``, ``size``).
        num_classes: None reads the number from the data; streamed data does not know it.
        image_size: side of the square input, in pixels.
        mean, std: per-channel normalisation of values in [0, 1].
        interpolation, crop_pct: of the evaluation transform.
        batch_size: per device.
        num_workers: loader processes.
        shift: largest random shift in pixels, zeros moved in; 0 takes random resized crops.
        scale: area range of the random resized crop.
        hflip, color_jitter, auto_augment, random_erasing: timm's augmentation of the same names.
        mixup, cutmix: their alphas; 0 is off. Targets become soft.
        seed: augmentation and order are functions of it, the epoch and the image alone, so they
            survive a resume and do not depend on the number of workers (map-style data).
    """

    def __init__(
        self,
        root: str = "",
        name: str = "",
        train_split: str = "train",
        val_split: str = "validation",
        test_split: str = "test",
        dataset_args: dict[str, Any] | None = None,
        num_classes: int | None = None,
        image_size: int = 224,
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
        interpolation: str = "bicubic",
        crop_pct: float = 0.875,
        batch_size: int = 128,
        num_workers: int = 4,
        shift: int = 0,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
        random_erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_data(self.config)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.splits = {"train": train_split, "validate": val_split, "test": test_split}
        self._classes: int | None = num_classes
        self._names: list[str] | None = None
        self._mixup: Mixup | None = None

    # -- what the data knows ------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Number of classes, from the config or else from the data."""
        if self._classes is None:
            names = self.class_names
            if names is None:
                raise InputError("this data does not tell its classes; set data.num_classes")
            self._classes = len(names)
        return self._classes

    @property
    def class_names(self) -> list[str] | None:
        """Class names in index order, or None where the data has none."""
        if self._names is None:
            self._names = dataset_classes(self.dataset("train"))
        return self._names

    def dataset(self, stage: str, transform: Any = None) -> Dataset:
        """The images of a stage (``train``, ``validate``, ``test``) or of any split by its name."""
        c = self.config
        split = self.splits.get(stage, stage)
        name, root = c["name"], c["root"]
        if name == "hfds":
            # timm's root is a cache folder; inside the data folder its files would be read as data
            # at the next load, so the library's own cache is used.
            name, root = f"hfds/{_existing(root)}", str(datasets.config.HF_DATASETS_CACHE)
        elif name == "shapes":
            return self._shapes(split, transform)
        elif not name:
            root = str(_split_folder(_existing(root), split))
        elif name.startswith("wds"):
            _existing(root)
        data = self._create(name, root, split, stage == "train")
        if not name and stage != "train" and dataset_classes(data) != self.class_names:
            # timm numbers the folders of each split anew: the classes after a missing one would move up.
            classes = {name: k for k, name in enumerate(self.class_names or [])}
            if strangers := [name for name in dataset_classes(data) or [] if name not in classes]:
                raise InputError(f"{root} holds the class {strangers[0]!r}, which the training images do not")
            data = self._create(name, root, split, False, class_map=classes)
        data.transform = transform  # type: ignore[attr-defined]
        return data

    def _shapes(self, split: str, transform: Any) -> Dataset:
        try:
            data = Shapes(split, **{"size": self.config["image_size"]} | (self.config["dataset_args"] or {}))
        except TypeError as error:
            raise InputError(f"data.dataset_args do not fit shapes ({error})") from error
        data.transform = transform
        return data

    def _create(self, name: str, root: str, split: str, is_training: bool, **options: Any) -> Dataset:
        c = self.config
        try:
            return create_dataset(
                name,
                root=root,
                split=split,
                is_training=is_training,
                search_split=False,
                batch_size=self.batch_size,
                seed=self.seed,
                **options | (c["dataset_args"] or {}),
            )
        except (ValueError, TypeError, RuntimeError, OSError, AssertionError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"cannot read split {split!r} of {c['name'] or 'folder'} data at {c['root']} ({reason})"
            ) from error

    # -- transforms ---------------------------------------------------------------------------

    def eval_transform(self) -> Transform:
        """Image to normalised tensor (3, S, S), without randomness."""
        c = self.config
        transform = create_transform(
            c["image_size"],
            interpolation=c["interpolation"],
            mean=tuple(c["mean"]),
            std=tuple(c["std"]),
            crop_pct=c["crop_pct"],
        )
        return cast(Transform, transform)

    def train_transform(self) -> Transform:
        """Image to normalised tensor (3, S, S), augmented."""
        c = self.config
        size, shift = c["image_size"], c["shift"]
        augment = create_transform(
            size,
            is_training=True,
            scale=(1.0, 1.0) if shift else tuple(c["scale"]),
            ratio=(1.0, 1.0) if shift else None,
            hflip=c["hflip"],
            color_jitter=c["color_jitter"],
            auto_augment=c["auto_augment"],
            interpolation=c["interpolation"],
            mean=tuple(c["mean"]),
            std=tuple(c["std"]),
            re_prob=c["random_erasing"],
        )
        if not shift:
            return cast(Transform, augment)
        fit = Resize((size, size), InterpolationMode(c["interpolation"]))
        return Compose([fit, RandomCrop(size, padding=shift), augment])

    # -- loaders ------------------------------------------------------------------------------

    def check_training(self) -> None:
        """Raise InputError where training or validation could not begin."""
        data, names = self.dataset("train"), self.class_names
        if self.num_classes < max(2, len(names or [])):
            raise InputError(
                f"the data has {len(names or [])} classes and data.num_classes is {self.num_classes}; "
                "a classifier needs all of them, and at least two"
            )
        if not isinstance(data, IterableDataset) and len(data) < self.batch_size:  # type: ignore[arg-type]
            raise InputError(
                f"{len(data)} training images do not fill a batch of {self.batch_size}; "  # type: ignore[arg-type]
                "lower data.batch_size"
            )
        self.dataset("validate")

    def train_dataloader(self) -> DataLoader:
        data = self.dataset("train", self.train_transform())
        if isinstance(data, IterableDataset):
            return self._loader(data, drop_last=True)
        sampler = EpochSampler(data, *self._rank(), seed=self.seed)
        # Loader processes ask for the first indices of a resumed run before Lightning tells the sampler
        # its epoch, and before current_epoch counts the epochs already done.
        if self.trainer:
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)
        # Workers that stay keep what they have cached, and start once.
        stay = self.num_workers > 0
        return self._loader(
            Augmented(data, self.seed), sampler=sampler, drop_last=True, persistent_workers=stay
        )

    def val_dataloader(self) -> DataLoader:
        return self._evaluation("validate")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation("test")

    def _evaluation(self, stage: str) -> DataLoader:
        data = self.dataset(stage)
        if isinstance(data, IterableDataset):
            return self._loader(self.dataset(stage, self.eval_transform()))
        images = IndexedImages(data, self.eval_transform())
        return self._loader(images, collate_fn=images.collate)

    def _loader(self, data: Dataset, **kwargs: Any) -> DataLoader:
        return DataLoader(
            data,
            self.batch_size,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: starting a loader must not move the random state that the network draws from.
            generator=torch.Generator().manual_seed(self.seed),
            **kwargs,
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        c = self.config
        if not (c["mixup"] or c["cutmix"]) or not (self.trainer and self.trainer.training):
            return batch
        if self._mixup is None:
            # Smoothing is the loss's, so that it applies once with and without mixing.
            self._mixup = Mixup(c["mixup"], c["cutmix"], label_smoothing=0.0, num_classes=self.num_classes)
        return self._mixup(*batch)


def _existing(root: str) -> Path:
    if not Path(root).exists():
        raise InputError(f"there is no data at {root}; set data.root to your data folder")
    return Path(root).resolve()


def _split_folder(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise InputError(f"data.root {root} is a file; give the folder that holds the splits")
    # timm would take the whole root, all splits together, for a split it does not find.
    synonyms = next((names for names in _SYNONYMS if split in names), ())
    for name in (split, *synonyms):
        if (root / name).exists():
            return root / name
    held = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing"
    raise InputError(f"there is no split {split!r} in {root}; it holds {held}")


def dataset_classes(data: Dataset) -> list[str] | None:
    """Class names of a timm or torchvision dataset in index order, None where it has none."""
    reader = getattr(data, "reader", None)
    mapping = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)  # tar
    if mapping:
        return [str(name) for name, _ in sorted(mapping.items(), key=lambda item: item[1])]
    classes = getattr(data, "classes", None)
    return [str(name) for name in classes] if classes else None
