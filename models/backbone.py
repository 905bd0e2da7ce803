"""timm backbones made sparse, and loading a trained run."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from lwta.errors import InputError
from models.swap import SwapReport, swap


def create_backbone(
    name: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    backbone_args: dict[str, Any] | None = None,
    **swap_args: Any,
) -> tuple[nn.Module, SwapReport]:
    """Build ``timm.create_model(name)`` and swap its activations.

    Args:
        name: timm architecture, or ``hf-hub:...`` / ``local-dir:...`` as timm takes them.
        num_classes: size of the head.
        pretrained: load timm's weights; they stay in place, the swap holds no parameters.
        backbone_args: further arguments of ``timm.create_model``.
        swap_args: arguments of :func:`models.swap.swap`.

    Returns:
        The network and what was swapped and left in it.
    """
    try:
        model = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, **(backbone_args or {})
        )
    except Exception as error:  # whatever the architecture's own code says of its arguments
        if "Unknown model" in str(error):
            raise InputError(f"timm knows no model {name!r}; timm.list_models('*') lists them") from None
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"timm cannot build {name!r} with {backbone_args} ({reason})") from error
    return model, swap(model, channels=(backbone_args or {}).get("in_chans", 3), **swap_args)


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
    return checkpoint


def run_checkpoint(run: str | Path) -> Path:
    """The checkpoint a run is judged by: the best on validation data, else the last."""
    folder = Path(run) / "checkpoints"
    for name in ("best.ckpt", "last.ckpt"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{run} holds no checkpoint; is it the folder a run was trained into?")
