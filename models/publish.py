"""A trained run in timm's own format, in a folder or on the hub."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from timm.models import push_to_hf_hub, save_for_hf
from timm.models._hub import generate_readme
from torch import nn

from lwta.errors import InputError
from lwta.layers import competitions
from models.checkpoint import read_checkpoint, run_checkpoint
from models.run import Run, class_names
from models.sites import Site
from models.timm_names import FOLDER, HUB, PREFIX
from models.zoo import first_line

#: What timm's configuration of an architecture says of its published weights, not of those of a run.
_OF_WEIGHTS = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")


_UNKNOWN = "unknown"
_MADE = "<!-- Made by dissect.py push, which replaces this card as long as this line is in it. -->"


def publish(run: Run, to: str, license: str = _UNKNOWN, private: bool = False) -> str:
    """Write what ``timm.create_model(to, pretrained=True)`` reads.

    Args:
        to: ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``.
        license: for the model card, as the hub names it.
        private: whether a new repository of the hub is to be private.

    Returns:
        A sentence on what was written and how it is loaded.

    Raises:
        InputError: another place, a folder that cannot be written, or a hub that refuses.
    """
    scheme = next((s for s in (*HUB, FOLDER) if to.startswith(s) and to != s), None)
    if scheme is None:
        raise InputError(f"{to!r} is no place to push to; give hf-hub:OWNER/NAME or local-dir:FOLDER")
    place, card, kept = to.removeprefix(scheme), _card(run, to, license), ""
    if scheme != FOLDER and place.count("/") != 1:
        raise InputError(f"{to!r} names no repository; give hf-hub:OWNER/NAME")
    model, files = run.model.backbone, _files(run, license)
    if scheme == FOLDER:
        try:
            if not _write(Path(place).expanduser(), model, card, files):
                kept = "; its README.md is kept as you wrote it and may tell of another network"
        except OSError as error:
            raise InputError(f"{place} cannot be written ({first_line(error)}); name a folder") from error
    else:
        try:
            push_to_hf_hub(model, place, private=private, model_card=card, safe_serialization=True, **files)
        except Exception as error:  # of the network, of the token, of the name
            raise InputError(
                f"{to} cannot be written ({first_line(error)}); see to the network and to `hf auth login`, "
                "or push to local-dir:FOLDER and upload that"
            ) from error
    loads = f"timm.create_model({to!r}, pretrained=True) loads it after `import models`"
    return f"pushed to {to}; {loads}{kept}"


def _write(folder: Path, model: nn.Module, card: dict[str, Any], files: dict[str, Any]) -> bool:
    """Fill a folder, once all that goes into it is there; False where a card was not ours and stays."""
    folder.mkdir(parents=True, exist_ok=True)
    old = folder / "README.md"
    ours = not old.exists() or _MADE in old.read_text(encoding="utf-8", errors="replace")
    with TemporaryDirectory() as made:
        save_for_hf(model, made, safe_serialization=True, **files)
        if ours:
            (Path(made) / "README.md").write_text(
                generate_readme(card, folder.resolve().name), encoding="utf-8"
            )
        for file in Path(made).iterdir():
            shutil.copyfile(file, folder / file.name)
    return ours


def _files(run: Run, license: str) -> dict[str, Any]:
    """Arguments of timm's functions that save a network: its architecture, its swap, its data."""
    h, data, model = run.model.hparams, run.data.config, run.model.backbone
    config: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    if h["pretrained"] is not True:
        config = {key: value for key, value in config.items() if key not in _OF_WEIGHTS}
    if license != _UNKNOWN:
        config["license"] = license
    args: dict[str, Any] = {}
    if run.model.report.swapped:
        config["architecture"] = PREFIX + config["architecture"].removeprefix(PREFIX)
        args = _swap_args(run)
    model.pretrained_cfg = config  # type: ignore[assignment]
    side = data["image_size"]
    seen = {name: data[name] for name in ("mean", "std", "interpolation", "crop_pct")}
    return {
        "model_args": args,
        "model_config": {"label_names": class_names(run)},
        "data_config": seen | {"input_size": (3, side, side), "crop_mode": "center"},
    }


def _swap_args(run: Run) -> dict[str, Any]:
    """What a name of :mod:`models.timm_names` takes to swap as the run did."""
    h = run.model.hparams
    args = {name: h[name] for name in ("competitors", "sites", "placement", "dim")}
    args["kind"] = h["activation"]
    if h.get("active_fraction") is not None:
        args["active_fraction"] = h["active_fraction"]
        if isinstance(args["competitors"], int):
            del args["competitors"]
    if h["activation"] == "lwta":
        of_one = next(iter(competitions(run.model.backbone).values()))
        args |= {name: getattr(of_one, name) for name in ("beta", "normalize", "noise", "tau")}
    return {name: value for name, value in args.items() if value is not None}


def _card(run: Run, to: str, license: str) -> dict[str, Any]:
    """The fields of timm's model card."""
    h, report = run.model.hparams, run.model.report
    details: dict[str, Any] = {
        "Architecture": h["backbone"],
        "Parameters": f"{sum(p.numel() for p in run.model.backbone.parameters()):,}",
        "Image size": f"{run.data.config['image_size']} x {run.data.config['image_size']}",
        "Classes": str(h["num_classes"]),
        "Activations": {site.name: _firing(site) for site in report.swapped} or "as timm builds it",
    }
    if (accuracy := _validation_accuracy(run)) is not None:
        details["Top-1 on its validation data"] = f"{accuracy:.1%}"
    usage = (
        f"```python\nimport models  # of lwta\nimport timm\n\ntimm.create_model({to!r}, pretrained=True)\n```"
    )
    return {
        "description": _MADE,
        "details": details,
        "usage": usage,
        "license": license,
        "tags": ["image-classification", "timm", "lwta"],
    }


def _firing(site: Site) -> str:
    return f"{site.kind}, 1 of {site.competitors} units fires" if site.competitors else site.kind


def _validation_accuracy(run: Run) -> float | None:
    """Of the checkpoint that is published, as training measured it."""
    kept = read_checkpoint(run_checkpoint(run.folder)).get("callbacks", {})
    scores = [state["best_model_score"] for state in kept.values() if state.get("monitor") == "val/top1"]
    return float(scores[0]) if scores and scores[0] is not None else None
