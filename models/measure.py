"""What evaluation measures: accuracy by argmax or by samples, and who fired at each site."""

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lwta.errors import InputError
from lwta.layers import LWTA, Firing, is_stochastic, sampled
from lwta.sparsity import sparsity_metrics
from models.sites import Site


def predict(backbone: nn.Module, images: Tensor, samples: int, seed: int) -> Tensor:
    """Class probabilities (N, C) of images (N, 3, H, W), in evaluation mode.

    Args:
        samples: 0 takes each block's argmax; n averages the probabilities of n samples of the
            competition, which repeat for the same ``seed`` and batch. Where nothing competes, or without
            noise, every sample is the argmax.
    """
    return predict_each(backbone, images, (samples,), seed)[samples]


def predict_each(
    backbone: nn.Module, images: Tensor, evaluations: Collection[int], seed: int
) -> dict[int, Tensor]:
    """:func:`predict` for several numbers of samples at once: the larger begin with those of the smaller."""
    found = {}
    draws = max(evaluations, default=0) if is_stochastic(backbone) else 0
    if draws < max(evaluations, default=0) or 0 in evaluations:
        argmax = backbone(images).softmax(-1)
        found = {n: argmax for n in evaluations if n == 0 or not draws}
    total = torch.zeros((), device=images.device)
    for sample in range(draws):
        with sampled(backbone, seed + sample):
            total = total + backbone(images).softmax(-1)
        if sample + 1 in evaluations:
            found[sample + 1] = total / (sample + 1)
    return found


def evaluation_name(samples: int) -> str:
    """``argmax``, ``1_sample``, ``10_samples``."""
    return "argmax" if samples == 0 else f"{samples}_sample{'s' if samples > 1 else ''}"


def accuracy_metrics(num_classes: int) -> MetricCollection:
    """top1 and top5 (top-C where there are fewer than five classes)."""
    return MetricCollection(
        {
            "top1": MulticlassAccuracy(num_classes, average="micro"),
            "top5": MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes)),
        }
    )


class SparsityMeter(nn.Module):
    """Sparsity of each site and overall, over all batches since the last reset.

    Args:
        sites: those whose axis is known are measured.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        super().__init__()
        self.sites = {site.name: site for site in sites if site.dim is not None}
        self.layers = nn.ModuleDict(
            {_key(s.name): sparsity_metrics(s.units, _blocks_of(s)) for s in self.sites.values() if s.units}
        )
        self.overall = MeanMetric()

    @property
    def dims(self) -> dict[str, int]:
        """Site name -> axis of its units, as :func:`lwta.layers.watch` takes them."""
        return {name: site.dim for name, site in self.sites.items() if site.dim is not None}

    def select(self, globs: str | list[str] | None) -> dict[str, int]:
        """The entries of :attr:`dims` that match any glob, in network order; all without globs.

        Raises:
            InputError: where a glob matches nothing.
        """
        wanted = [globs] if isinstance(globs, str) else globs or ["*"]
        for glob in wanted:
            if not any(fnmatchcase(name, glob) for name in self.dims):
                raise InputError(f"layers {glob!r} matches nothing; the layers are {', '.join(self.dims)}")
        return {n: dim for n, dim in self.dims.items() if any(fnmatchcase(n, g) for g in wanted)}

    def _layer(self, name: str) -> MetricCollection:
        return cast(MetricCollection, self.layers[_key(name)])

    def update(self, calls: Mapping[str, list[Firing]]) -> None:
        """Add what :func:`lwta.layers.watch` collected."""
        for name, firings in calls.items():
            for f in firings:
                self._layer(name).update(fired=f.fired, values=f.values, dim=f.dim)
                self.overall.update(f.fired.float().mean(), weight=f.fired.numel())

    def compute(self) -> dict[str, Tensor]:
        """``active_fraction``, ``dead_units`` and ``winner_entropy`` overall, then ``LAYER/METRIC``."""
        layers = {name: self._layer(name).compute() for name in self.sites}
        overall = {
            "active_fraction": self.overall.compute(),
            "dead_units": torch.stack([m["dead_units"] for m in layers.values()]).sum(),
        }
        if all("winner_entropy" in m for m in layers.values()):
            blocks = torch.tensor([(s.units or 0) / (s.competitors or 1) for s in self.sites.values()])
            entropies = torch.stack([m["winner_entropy"].cpu() for m in layers.values()])
            overall["winner_entropy"] = (entropies * blocks).sum() / blocks.sum()
        values = overall | {f"{n}/{k}": v for n, m in layers.items() for k, v in m.items()}
        return {name: value.float() for name, value in values.items()}

    def reset(self) -> None:
        """Forget everything counted."""
        self.overall.reset()
        for name in self.sites:
            self._layer(name).reset()


def _blocks_of(site: Site) -> int | None:
    return site.competitors if site.kind == LWTA.__name__ else None


def _key(name: str) -> str:
    return name.replace(".", "/")  # ModuleDict keys hold no dots
