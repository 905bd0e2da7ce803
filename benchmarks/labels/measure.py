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
from lwta.dissect.judged_layer import Judge
from lwta.dissect.label_scores import judge_layer
from lwta.dissect.labelers import LayerData
from lwta.dissect.truth import score_labels
from lwta.layers import LWTA, Firing, observe
from models.images import IndexedImages

# Those that read every value first: the others find what they need in the same pass.
SIMILARITIES = ("cos", "cos_cubed", "jensen_shannon", "soft_wpmi", "wpmi", "rank_reorder")
PRIOR = 0.75  # of soft_wpmi; the published 1 leaves a shared concept to one unit of a small layer
TOPS = (0.04, 0.1)  # of the images, at which units of networks without competition are read as well
EXPLAINED = 0.9  # of what the last layer contributes
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
    """Rows of a run: for each readout, similarity and reading, and each layer.

    A unit read at its own top is zero but for its strongest images, and labelled as it is read.
    """
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
        tops = (None,) if sparse else (None, *TOPS)
        judged = {top: {layer: _read(held.layer(layer), top) for layer in sites} for top in tops}
        for similarity in SIMILARITIES:
            if readout == "patches" and similarity in ("cos", "cos_cubed", "jensen_shannon"):
                continue  # these look at whole images
            prior = PRIOR if similarity == "soft_wpmi" else None
            own = LabelOptions(readout=readout, similarity=similarity, prior=prior, **setting.labelled)
            asked = Question(subject, own)
            asked.observe(sites)
            for top in tops:
                shared = {"readout": readout, "similarity": similarity, "reading": reading_name(top)}
                for layer in sites:
                    data = _read(asked.layer(layer), top)
                    labels = asked.labeler(keep=top is None).label(data, None)
                    yield shared | _judged(labels, judged[top][layer], setting)


def reading_name(top: float | None) -> str:
    """What the rows call a reading of all values, or of a unit's own top."""
    return "all" if top is None else f"top {top:.0%}"


def _read(data: LayerData, top: float | None) -> LayerData:
    """A layer whose units are read at their own top: what is over the rest, and 0 there."""
    if top is None or data.values is None:  # exemplars are of the top in any case
        return data
    over = np.maximum(data.values - np.quantile(data.values, 1 - top, axis=0), 0).astype(np.float32)
    return data._replace(values=over, key=f"{data.key} {top}")


def _judged(labels: pd.DataFrame, data: LayerData, setting: Setting) -> dict[str, Any]:
    """What is found of the labels of a layer on the images judged on."""
    assert data.values is not None
    names, seen, values = setting.source.names, data.seen, np.array(data.values)
    part = judge_layer(labels, values, Judge(names, data.presence), seen, draws=DRAWS)
    read = {data.layer: torch.from_numpy(values)[seen]}
    scored = part["unscored"].isna().to_numpy()
    row: dict[str, Any] = {"layer": data.layer, "units": len(labels), "alive": int(labels["alive"].sum())}
    row |= {"labelled": int(labels["label"].notna().sum()), "scored": int(scored.sum())}
    row |= {"distinct": labels["label"].nunique(), "fires on": float((values[:, scored] != 0).mean())}
    row |= score_labels(labels, read, names, data.presence.part(seen))._asdict()
    for found in means(part).to_dict("records"):
        told = {k: v for k, v in found.items() if k not in ("layer", "metric", "units")}
        row |= {f"{found['metric']} {k}": v for k, v in told.items()}
    return row


# --- who fires -----------------------------------------------------------------------------------


def firing(folder: Path, root: str, layers: str, split: str, images: int) -> dict[str, Any]:
    """Overlap of the sets of units that fire on two images, and how many units the last layer decides by."""
    subject = open_subject(NetworkOptions(run=str(folder), root=root))
    sites = subject.layers(layers)
    fired, top, classes, needed, there, width = _passes(subject, sites, split, images)
    row: dict[str, Any] = {"fired in an image": float(fired.float().mean())}
    for name, sets in (("", fired), (f" at {reading_name(TOPS[0])}", top)):
        within, between = overlap(sets, classes)
        row |= {f"overlap within{name}": within, f"overlap between{name}": between}
    row |= {"units for 90 %": float(needed.double().mean()), "contribute": float(there.double().mean())}
    return row | {"last layer": width}


def _passes(
    subject: Subject, sites: Mapping[str, int], split: str, images: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """Of each image: units that fire anywhere, those at their own top by mean value, class, and of the last
    layer units needed and units that contribute at all; and how many that has.

    Units contribute gradient times value, summed over positions, to the largest logit over the mean one.
    """
    data = IndexedImages(subject.probe(f"{split}[:{images}]"), subject.transform)
    loader = DataLoader(data, 100, collate_fn=data.collate_indexed)
    fired, values, classes, needed, there, width = [], [], [], [], [], 0
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
        contributions = _units((gradient * seen[last].values).detach(), seen[last].dim).sum(1)
        needed.append(units_needed(contributions))
        there.append((contributions != 0).sum(1))
        width = contributions.shape[1]
    read = torch.cat(values)
    top = (read >= read.quantile(1 - TOPS[0], dim=0)) & (read != 0)
    return torch.cat(fired), top, torch.cat(classes), torch.cat(needed), torch.cat(there), width


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
