"""What a config may not say, each refused in one sentence before anything is built or read."""

import math
from collections.abc import Mapping
from typing import Any

from timm.optim import list_optimizers

from lwta.errors import InputError
from models.schedule import Schedule

#: timm's schedules of the epoch alone; its plateau schedule follows a metric, and is not among them.
SCHEDULERS = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "none")


def check_model(h: Mapping[str, Any], schedules: Mapping[str, Schedule]) -> None:
    """Refuse hyperparameters of :class:`models.classifier.Classifier` that cannot work.

    Args:
        h: its arguments.
        schedules: ``noise``, ``tau`` and the loss weights as schedules.
    """
    if h["optimizer"] not in list_optimizers():
        raise InputError(f"timm knows no optimizer {h['optimizer']!r}; timm.optim.list_optimizers() does")
    if h["scheduler"] not in SCHEDULERS:
        raise InputError(f"scheduler is one of {', '.join(SCHEDULERS)}, not {h['scheduler']!r}")
    for name, schedule in schedules.items():
        if not schedule.finite:
            raise InputError(f"{name} must be finite, and its epochs at least 0")
    if min(schedules["tau"].start, schedules["tau"].end) <= 0:
        raise InputError("tau must stay above 0 from start to end")
    if min(schedules["noise"].start, schedules["noise"].end) < 0:
        raise InputError("noise must be at least 0 from start to end")
    if not 0 < h["beta"] < math.inf:
        raise InputError(f"beta must be above 0, not {h['beta']}")
    if not 0 <= h["label_smoothing"] < 1 or not h["lr"] > 0:
        raise InputError("label_smoothing lies in [0, 1), and lr above 0")
    for until, u in (h["staged_competitors"] or {}).items():
        if not (str(until).isdecimal() and int(until) >= 1 and u >= 2):
            raise InputError(
                f"staged_competitors says until which epoch U is what; epochs are at least 1 and U at least "
                f"2, not {until}: {u}"
            )
    if h["sites"] == []:
        raise InputError("sites names no site; null takes the family's default")
    if min(h["evaluation"], *h["test_evaluations"]) < 0:
        raise InputError("an evaluation is 0 for the argmax or a number of samples")


_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
_PREFIXES = ("shapes", "torch", "hfds", "hfids", "tfds", "wds")
_LEAST = {
    "batch_size": 1,
    "image_size": 1,
    "num_workers": 0,
    "shift": 0,
    "hflip": 0,
    "color_jitter": 0,
    "random_erasing": 0,
    "mixup": 0,
    "cutmix": 0,
}


def check_data(config: Mapping[str, Any]) -> None:
    """Refuse arguments of :class:`models.data.ImageData` that cannot work."""
    for name, least in _LEAST.items():
        if not config[name] >= least:
            raise InputError(f"data.{name} is at least {least}, not {config[name]}")
    if not (config["crop_pct"] > 0 and min(config["std"]) > 0):
        raise InputError("data.crop_pct and data.std must be above 0")
    if config["interpolation"] not in _INTERPOLATIONS:
        raise InputError(
            f"data.interpolation is one of {', '.join(_INTERPOLATIONS)}, not {config['interpolation']!r}"
        )
    if (config["mixup"] or config["cutmix"]) and config["batch_size"] % 2:
        raise InputError(f"mixing pairs images; make data.batch_size even, not {config['batch_size']}")
    if config["name"] and config["name"].split("/")[0] not in _PREFIXES:
        raise InputError(
            f"data.name {config['name']!r} is not known; it is empty for folders and tar files, "
            f"or begins with one of {', '.join(_PREFIXES)}"
        )
    if not (config["root"] or config["name"] == "shapes"):
        raise InputError("set data.root to your data folder, or data.name to shapes, which needs none")
    if not all(config[name] for name in ("train_split", "val_split", "test_split")):
        raise InputError("data.train_split, val_split and test_split must not be empty")
