"""Checkpoints of a run, read without running code from them."""

from pathlib import Path
from typing import Any

import torch

from lwta.errors import InputError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Raises:
        InputError: where the file is missing, truncated, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; train the run first, or name one that exists")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"checkpoint {path} is truncated or not a plain checkpoint ({reason[:120]}); "
            "resume from another one or train again"
        ) from None
    needed = {"state_dict", "hyper_parameters", "scales", "pytorch-lightning_version"}
    missing = needed - set(checkpoint if isinstance(checkpoint, dict) else ())
    if missing:
        raise InputError(f"{path} is no checkpoint of train.py: it lacks {', '.join(sorted(missing))}")
    # Before there was the field, logits competed as they are; today's default is another network.
    checkpoint["hyper_parameters"].setdefault("normalize", False)
    checkpoint["hyper_parameters"].setdefault("active_fraction", None)
    return checkpoint


def run_checkpoint(run: str | Path) -> Path:
    """The checkpoint a run is judged by: the best on validation data, else the last."""
    folder = Path(run) / "checkpoints"
    for name in ("best.ckpt", "last.ckpt"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{run} holds no checkpoint; is it the folder a run was trained into?")
