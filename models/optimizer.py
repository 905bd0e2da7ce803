"""timm's optimizer and schedule, as a config names them."""

from collections.abc import Mapping
from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from lwta.errors import InputError


def create_optimizer(model: nn.Module, h: Mapping[str, Any], epochs: int) -> tuple[Any, Any]:
    """timm's optimizer, and its scheduler over ``epochs`` (None for ``none``).

    Args:
        model: what is trained.
        h: arguments of :class:`models.classifier.Classifier`.
        epochs: of the training.

    Raises:
        InputError: where timm refuses their arguments.
    """
    try:
        optimizer = create_optimizer_v2(
            model, h["optimizer"], h["lr"], h["weight_decay"], **(h["optimizer_args"] or {})
        )
        scheduler, _ = create_scheduler_v2(
            optimizer,
            h["scheduler"],
            epochs,
            warmup_epochs=h["warmup_epochs"],
            min_lr=h["min_lr"],
            **{"warmup_lr": h["lr"] / 25} | (h["scheduler_args"] or {}),
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"timm refuses the optimizer or scheduler as configured ({error})") from error
    return optimizer, scheduler
