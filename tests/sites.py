"""A small site, made up, and its pages."""

import numpy as np
import pandas as pd
import torch
from PIL import Image

from lwta.dissect.labels import COLUMNS, JUDGED
from lwta.dissect.portrait import ClassUnits, Histogram
from lwta.dissect.report import (
    ClassPage,
    Exemplar,
    LayerPage,
    Site,
    UnitPage,
    write_site,
)
from tests.pages import Page, read_page
from tests.test_page import explanation, unit

CLASSES = ["cat", "dog", "cow"]
NAN = torch.full((4,), float("nan"))


def rows(layers, label="grass"):
    """A label table; unit 3 of the first layer is dead."""
    found = [
        {
            "layer": layer, "unit": k, "block": k // 2 if place == 0 else None, "alive": True, "wins": 10 + k,
            "win_rate": (10 + k) / 80, "negative": k == 1, "label": f"{label} {place}.{k}", "score": -k - 0.5,
            "label_2": f"{label} second", "score_2": -9.25, "labeler": "clip", "fingerprint": "00",
        }
        for place, layer in enumerate(layers) for k in range(4 - place)
    ]  # fmt: skip
    found[3] |= {
        "alive": False, "wins": 0, "win_rate": 0.0, "label": None, "score": None, "label_2": None,
        "score_2": None, "reason": "never won",
    }  # fmt: skip
    found[0] |= dict(zip(JUDGED, (0.375, 0.75, 0.004), strict=True))
    found[1] |= dict(zip(JUDGED, (-0.0625, 0.5, 0.6), strict=True))
    return pd.DataFrame(found, columns=list(COLUMNS)).astype(COLUMNS)


def plain(table):
    kept = table.astype(object)
    return kept.where(kept.notna(), None).to_dict("records")


def class_units(**changes):
    fields = {
        "fires": torch.tensor([0.9, 0.5, 0.2, 0.0]), "elsewhere": torch.tensor([0.1, 0.4, 0.6, 0.0]),
        "drives": torch.tensor([-1.0, 0.25, 2.0, 0.0]), "errors": 0, "error_fires": NAN,
        "error_drives": NAN, "error_classes": [],
    }  # fmt: skip
    return ClassUnits(**(fields | changes))


ERRORS = class_units(
    errors=5,
    error_fires=torch.tensor([0.4, 0.6, 0.8, 0.0]),
    error_drives=torch.tensor([0.5, -0.5, 0.75, 0.0]),
    error_classes=[(1, 3), (9, 2)],
)
NONE = class_units(fires=NAN, drives=NAN)


VALUES = ((0.0, 2.0), (-1.0, 0.0))


def exemplar(image=5, name="five.png", value=1.25, values=VALUES):
    return Exemplar(image, name, value, None if values is None else np.array(values, dtype=np.float32))


def histogram(counts=(1, 0, 3), edges=(-1.0, 0.0, 1.0, 2.0)):
    return Histogram(torch.tensor(edges), torch.tensor(counts))


def unit_page(row, **changes):
    fields = {
        "top": [exemplar()], "middle": [exemplar(6, "six.png", -0.5)], "random": [exemplar(5, values=None)],
        "histogram": histogram(), "rivals": [], "pushes": [], "nearest": [],
    }  # fmt: skip
    if not row["alive"]:
        fields |= {"top": [], "middle": [], "random": [], "histogram": histogram((0, 0, 0))}
    return UnitPage(row, **(fields | changes))


def probe_image(index):
    return Image.new("RGB", (16, 16), (10 * index, 100, 200))


def class_pages(names, layer):
    """A page of each class: all right, some wrong, without an image."""
    told = [class_units(), ERRORS, NONE]
    sizes = [(20, 20), (15, 10), (0, 0)]
    return [ClassPage(k, name, *sizes[k], [(layer, told[k])]) for k, name in enumerate(names)]


def site(layers=("act", "conv.0"), label="grass", names=CLASSES, first=None, **changes):
    """A small site; ``first`` changes the page of the first unit."""
    table = rows(layers, label)
    pages = [unit_page(row, **((first or {}) if k == 0 else {})) for k, row in enumerate(plain(table))]
    fields = {
        "run": "quick", "summary": [("images per second", "12")], "score": None, "table": table,
        "layers": [
            LayerPage(layers[0], 4, 2, "mean", 0.5, 1, 3, -1.5),
            LayerPage(layers[1], 3, None, "cls", 0.25, 0, 0, float("nan")),
        ],
        "units": iter(pages),
        "classes": class_pages(names, layers[0]),
        "explained": [explanation(unit(), layer=layers[0])], "picture": probe_image,
    }  # fmt: skip
    return Site(**(fields | changes))


def written(folder, **changes) -> dict[str, Page]:
    """Pages of a site by their path in its folder."""
    write_site(folder, site(**changes))
    return {path.relative_to(folder).as_posix(): read_page(path) for path in sorted(folder.rglob("*.html"))}
