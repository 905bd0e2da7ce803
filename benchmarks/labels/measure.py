"""What is measured of one trained network: its labels, judged, and who fires on which image."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from commands.options import LabelOptions, NetworkOptions
from commands.question import Question
from commands.sources import Source
from commands.subject import Subject, open_subject
from lwta.dissect.evaluate import means
from lwta.dissect.label_scores import Judge, judge_layer
from lwta.dissect.truth import score_labels
from lwta.layers import LWTA, Firing, observe
from models.images import IndexedImages

# Those that read every value first: the others find what they need in the same pass.
SIMILARITIES = ("cos", "cos_cubed", "jensen_shannon", "soft_wpmi", "wpmi", "rank_reorder")
PRIOR = 0.75  # of soft_wpmi; the published 1 leaves a shared concept to one unit of a small layer
TOP = 0.04  # of the images, at which units of dense networks are read as well
EXPLAINED = 0.9  # of a logit
DRAWS = 3  # of each control, for each of hundreds of units


class Setting(NamedTuple):
    """What networks are labelled from and judged by.

    Attributes:
        layers: glob over their names.
        readouts: of their units.
        labelled, judged: options of the images that labels are chosen from, and of the others.
        source: what tells which of the images judged on show a concept.
    """

    layers: str
    readouts: tuple[str, ...]
    labelled: dict[str, Any]
    judged: dict[str, Any]
    source: Source


def measure(folder: Path, root: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """Rows of a run: for each readout, similarity and reading, and each layer and all of them."""
    subject = open_subject(NetworkOptions(run=str(folder), root=root))
    sites = subject.layers(setting.layers)
    sparse = any(isinstance(subject.model.get_submodule(name), LWTA) for name in sites)
    for readout in setting.readouts:
        if readout == "patches":  # each exemplar is a crop for the CLIP, tens of thousands in a layer
            sites = dict(list(sites.items())[-1:])
        kind = "max" if readout == "patches" else readout
        options = LabelOptions(readout=kind, similarity="cos", **setting.judged)
        held = Question(subject, options, source=setting.source)
        held.observe(sites)
        read = {layer: held.layer(layer) for layer in sites}
        for similarity in SIMILARITIES:
            if readout == "patches" and similarity in ("cos", "cos_cubed", "jensen_shannon"):
                continue  # these look at whole images
            prior = PRIOR if similarity == "soft_wpmi" else None
            own = LabelOptions(readout=readout, similarity=similarity, prior=prior, **setting.labelled)
            asked = Question(subject, own)
            labels = asked.label(sites).table
            for reading in ("all",) if sparse else ("all", f"top {TOP:.0%}"):
                values = {layer: _read(data.values, reading) for layer, data in read.items()}
                shared = {"readout": readout, "similarity": similarity, "reading": reading}
                yield from (shared | row for row in _judged(labels, values, read, setting))


def _read(values: np.ndarray | None, reading: str) -> np.ndarray:
    """The values of a layer; at its own top only, 0 elsewhere."""
    assert values is not None
    if reading == "all":
        return np.array(values)
    return np.where(values >= np.quantile(values, 1 - TOP, axis=0), values, 0).astype(np.float32)


def _judged(
    labels: pd.DataFrame, values: dict[str, np.ndarray], read: Mapping[str, Any], setting: Setting
) -> Iterator[dict[str, Any]]:
    parts = []
    for layer, data in read.items():
        judge = Judge(setting.source.names, data.presence)
        parts.append(
            judge_layer(labels.query("layer == @layer"), values[layer], judge, data.seen, draws=DRAWS)
        )
    table = pd.concat(parts, ignore_index=True)
    for layer in [*values, "all"]:
        mine = list(values) if layer == "all" else [layer]
        rows, part = labels[labels["layer"].isin(mine)], table[table["layer"].isin(mine)]
        seen = read[mine[0]].seen
        presence = read[mine[0]].presence.part(seen)
        truth = score_labels(
            rows,
            {name: torch.from_numpy(values[name])[seen] for name in mine},
            setting.source.names,
            presence,
        )
        row: dict[str, Any] = {"layer": layer, "units": len(rows), "alive": int(rows["alive"].sum())}
        row |= {"labelled": int(rows["label"].notna().sum()), "scored": int(part["unscored"].isna().sum())}
        row |= {"distinct": rows.groupby("layer")["label"].nunique().mean()}
        row |= truth._asdict()
        for found in means(part.assign(layer="one")).to_dict("records"):
            row |= {
                f"{found['metric']} {k}": v for k, v in found.items() if k not in ("layer", "metric", "units")
            }
        yield row


# --- who fires -----------------------------------------------------------------------------------


def firing(folder: Path, root: str, layers: str, split: str, images: int) -> dict[str, Any]:
    """Overlap of the sets of units that fire on two images, and how many units carry a logit."""
    subject = open_subject(NetworkOptions(run=str(folder), root=root))
    sites = subject.layers(layers)
    fired, top, classes, needed, width = _passes(subject, sites, split, images)
    row: dict[str, Any] = {"fired in an image": float(fired.float().mean())}
    for name, sets in (("", fired), (f" at top {TOP:.0%}", top)):
        within, between = overlap(sets, classes)
        row |= {f"overlap within{name}": within, f"overlap between{name}": between}
    return row | {"units for 90 %": float(needed.double().mean()), "last layer": width}


def _passes(
    subject: Subject, sites: Mapping[str, int], split: str, images: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Of each image: units that fire anywhere, those at their own top by mean value, class, units needed of
    the last layer; and how many that has."""
    data = IndexedImages(subject.probe(f"{split}[:{images}]"), subject.transform)
    loader = DataLoader(data, 100, collate_fn=data.collate_indexed)
    fired, values, classes, needed, width = [], [], [], [], 0
    last = list(sites)[-1]
    for _, pixels, targets in loader:
        seen: dict[str, Firing] = {}
        with observe(subject.model, sites, seen.__setitem__):
            logits = subject.model(pixels)
        fired.append(torch.cat([_units(site.fired, site.dim).any(1) for site in seen.values()], 1))
        means = [_units(site.values.detach(), site.dim).mean(1) for site in seen.values()]
        values.append(torch.cat(means, 1))
        classes.append(targets)
        score = (logits.amax(1) - logits.mean(1)).sum()
        (gradient,) = torch.autograd.grad(score, seen[last].values)
        contributions = _units((gradient * seen[last].values).detach(), seen[last].dim)
        needed.append(units_needed(contributions.sum(1)))
        width = contributions.shape[2]
    read = torch.cat(values)
    top = read >= read.quantile(1 - TOP, dim=0)
    return torch.cat(fired), top & (read != 0), torch.cat(classes), torch.cat(needed), width


def _units(values: Tensor, dim: int) -> Tensor:
    """Of each image, its positions and units, (n, positions, D)."""
    return values.movedim(dim, -1).flatten(1, -2)


def units_needed(contributions: Tensor) -> Tensor:
    """Fewest units whose contributions make 90 % of what all contribute in size, (n,), from (n, D)."""
    sizes = contributions.abs().sort(dim=1, descending=True).values
    share = sizes.cumsum(1) / sizes.sum(1, keepdim=True).clamp_min(1e-30)
    return (share < EXPLAINED).sum(1) + 1


def overlap(fired: Tensor, classes: Tensor) -> tuple[float, float]:
    """Mean Jaccard index of the sets of two images of one class, and of two classes.

    Args:
        fired: bool (n, D).
        classes: (n,).
    """
    both = fired.float() @ fired.float().T
    sizes = fired.sum(1).float()
    index = both / (sizes[:, None] + sizes - both).clamp_min(1)
    same = classes[:, None] == classes
    pairs = ~torch.eye(len(fired), dtype=torch.bool)
    return float(index[same & pairs].mean()), float(index[~same].mean())
