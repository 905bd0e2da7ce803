"""What tests of comparisons share: how to ask for one, how to read it, and rows that nothing was run for."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
import yaml
from PIL import Image
from torch import nn

from lwta.dissect.explanation import Explanation, FiredUnit, LayerExplanation
from lwta.dissect.report.comparison import JUDGEMENT
from models.activity import Activity
from models.compare import describe
from models.judge import Judged
from models.sites import Site


def compare_args(runs: list[Path], *options: str) -> list[str]:
    return ["compare", *map(str, runs), *options]


def numbers(folder: Path) -> pd.DataFrame:
    """The CSV file, a row for each run by its name."""
    return pd.read_csv(folder / "comparison" / "comparison.csv", index_col="run")


def line(text: str, title: str) -> list[str]:
    """The cells of a line of the printed table."""
    (found,) = [row for row in text.splitlines() if row.startswith(f"{title}  ")]
    return re.split(r"\s{2,}", found.removeprefix(title).strip())


def set_data(run: Path, **fields: object) -> None:
    """Change the data section of a run's config."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= fields
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def judged(right: torch.Tensor, targets: torch.Tensor | None = None) -> Judged:
    count = len(right)
    targets = torch.zeros(count, dtype=torch.long) if targets is None else targets
    activity = Activity(0.5, 0.5, 0.5, 0.5, 0.5, 0, 0.0, 1, 1, 1, 0)
    return Judged(
        Path("run"), targets, torch.zeros(count, 32), {"argmax": right}, {"argmax": 0.1}, {}, activity
    )


def row(run: str, active: float, top1: float) -> dict[str, object]:
    """A row of a comparison, all numbers made up."""
    shown = describe_columns() | {"run": run, "split": "test", "position_competing": active}
    for evaluation in ("argmax", "1_sample", "10_samples"):
        shown |= {f"top1_{evaluation}": top1}
        shown |= {f"top1_{evaluation}_low": top1 - 0.01, f"top1_{evaluation}_high": top1 + 0.01}
    return shown


def describe_columns() -> dict[str, object]:
    report = SimpleNamespace(chosen=[Site("act", "LWTA", -1, (1, 24), 1)])
    model = SimpleNamespace(
        hparams={"backbone": "vit", "competitors": 24}, report=report, backbone=nn.Linear(1, 1)
    )
    seen = judged(torch.tensor([True]))
    labels = {"label_score": math.nan, "labelled_units": 0, "label_units": 24}
    labels |= dict.fromkeys(JUDGEMENT)
    speed = {"images_per_second": 1.0, "device": "cpu"}
    return describe(SimpleNamespace(model=model, weights="w"), seen, seen) | speed | labels  # type: ignore


def fired(unit: int = 17, silenced: float | None = -0.319, label: str | None = "grass") -> FiredUnit:
    """A unit that fired, all numbers made up."""
    return FiredUnit(unit, label, "forest", None, value=1.37, win_rate=1.0, silenced=silenced)


def explanation(
    *units: FiredUnit, image: str = "test:12", classes=(("frog", 0.71), ("deer", 0.18)), **layer: object
) -> Explanation:
    """Of one layer, read by the mean, with a grey picture."""
    fields = {
        "layer": "blocks.1.mlp.act", "units": 96, "competitors": 24, "fired_per_position": 1 / 24,
        "fired_ever": 50 / 96, "contribution": 0.62, "silenced": -0.5,
    }  # fmt: skip
    explained = LayerExplanation(**fields | layer, fired=list(units or [fired()]))
    picture = Image.new("RGB", (24, 24), (100, 100, 100))
    return Explanation(image, list(classes), classes[0][0], None, 2.5, "mean", [explained], picture=picture)
