"""The network that a command is about: a trained run, or any model."""

import sys
from collections.abc import Mapping
from fnmatch import filter as matching
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from commands.options import NetworkOptions
from lwta.dissect.activations import Readout
from lwta.dissect.store import digest
from lwta.errors import InputError
from lwta.inference import sparsify
from lwta.layers import Firing, observe
from models.data import Transform
from models.images import UNDECODABLE, IndexedImages, read_image
from models.layers import find_layers
from models.network import Network, load_network, wrap_network
from models.probes import open_probe, split_part, take_part
from models.run import Run, class_names, head_readout, load_run, open_image, patch_grid
from models.weights import code_hash


class Subject(NamedTuple):
    """A network with what is needed to show it images.

    Attributes:
        folder: what is found out about it is written here.
        name: for the reader.
        model: in evaluation mode, on its device.
        identity: what decides its activations.
        transform: PIL image to what the model takes.
        image_size: (H, W).
        mean, std: per-channel normalisation of values in [0, 1] by the transform.
        class_names: of the classes it tells apart; None where nobody knows.
        run: where it comes from a run.
    """

    folder: Path
    name: str
    model: nn.Module
    identity: dict[str, Any]
    transform: Transform
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: list[str] | None
    run: Run | None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def denormalise(self, image: Tensor) -> Tensor:
        """A transformed image (3, H, W) back to values in [0, 1]."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (image * std + mean).clamp(0, 1)

    def layers(self, globs: str | list[str] | None) -> dict[str, int]:
        """Layers that match any glob, with the axis of their units.

        Of a run, its activations where they match, else all its modules; all activations without globs.
        """
        wanted = [globs] if isinstance(globs, str) else globs
        if self.run:
            sites = self.run.model.sparsity.select(None)
            modules = [name for name, _ in self.model.named_modules()]
            others = [glob for glob in wanted or [] if not matching(sites, glob) and matching(modules, glob)]
            if not others:
                return self.run.model.sparsity.select(wanted)
        found = find_layers(self.model, self.image_size, wanted)
        if found.left:
            told = "; ".join(list(found.left.values())[:3])
            print(f"left out {len(found.left)} layers: {told}", file=sys.stderr)
        return found.dims

    def readout(self, kind: str | None) -> Readout:
        """What is read of the layers, by default what the network's head reads."""
        default, prefix = head_readout(self.model)
        if kind == "cls" and default != "cls":
            raise InputError(
                "readout cls needs a class token that the head reads; this network's head pools, use mean"
            )
        return Readout(kind or default, prefix)

    def check_readout(self, readout: Readout, sites: Mapping[str, int]) -> dict[str, int]:
        """Refuse a readout that a layer has no positions for, before any image is loaded.

        Returns:
            Layer -> D.

        Raises:
            InputError: class token or patches of a layer without; tokens that the prefix has not joined yet.
        """
        tokens: dict[str, int] = {}
        units: dict[str, int] = {}
        height, width = self.image_size

        def seen(name: str, firing: Firing) -> None:
            units[name] = firing.values.shape[firing.dim]
            if firing.values.ndim == 3 and firing.dim == 2:
                tokens[name] = firing.values.shape[1]

        with torch.no_grad(), observe(self.model.eval(), sites, seen):
            self.model(torch.zeros(1, 3, height, width, device=self.device))
        for name in sites:
            if readout.kind == "cls" and name not in tokens:
                raise InputError(
                    f"readout cls needs a class token, and the layer {name} has none; use mean or max"
                )
            count = tokens.get(name, 0)
            grid = patch_grid(self.model, count - readout.prefix, self.image_size)
            if readout.prefix and not grid and patch_grid(self.model, count, self.image_size):
                raise InputError(
                    f"the layer {name} comes before the class token joins the patches; name a later one"
                )
            if readout.kind == "patches" and grid is None:
                raise InputError(f"the layer {name} has no grid of patches; use readout max")
        return units

    def probe(self, spec: str, args: dict[str, Any] | None = None) -> Dataset:
        """Images by a split of the run's data, or by anything that :func:`models.probes.open_probe` reads."""
        if self.run and self.is_split(spec):
            name, part = split_part(spec)
            split = self.run.data.splits.get(name, name)
            if part and not split.startswith(name):  # validate[:100] of a stage that has no split of its name
                return take_part(self.run.data.dataset(name), spec, part)
            return self.run.data.dataset(spec)
        return open_probe(spec, self.image_size[0], args)

    def is_split(self, spec: str) -> bool:
        """Whether a probe set is a split of the run's own data."""
        if self.run is None:
            return False
        name, splits = spec.partition("[")[0], self.run.data.splits
        return name in {*splits, *splits.values()} or (":" not in name and not Path(name).exists())

    def image(self, source: str) -> Image.Image:
        """An image file, or ``SPLIT:INDEX`` of a run's data, as RGB."""
        if self.run:
            return open_image(source, self.run.data)
        probe, _, index = source.rpartition(":")
        if not Path(source).exists() and probe and index.isdigit():
            images = IndexedImages(self.probe(probe), self.transform)
            if int(index) >= len(images):
                raise InputError(f"{source}: {probe} has {len(images)} images, the first is 0")
            try:
                return read_image(images.data, int(index))[0]
            except UNDECODABLE as error:
                raise InputError(f"image {source} does not decode; replace or leave it out") from error
        return open_image(source)


def subject_of(
    model: nn.Module, transform: Transform | None = None, image_size: int | None = None
) -> Subject:
    """A module that somebody has, with its transform or else ImageNet's."""
    net = wrap_network(model, transform, image_size=image_size)
    return _subject(net, Path(), {})


def open_subject(options: NetworkOptions, device: str | None = None) -> Subject:
    """Open the run or the model that was asked for, on ``device`` or on the one asked for.

    Raises:
        InputError: neither or both were named, it cannot be opened, or it has no winners to compute from.
    """
    subject = _opened(options, device)
    if options.winners_only:
        # Norms stay: what layers return, and are labelled by, is not to change.
        example = torch.zeros(1, 3, *subject.image_size, device=subject.device)
        print(sparsify(subject.model, example, fold=False), file=sys.stderr)
    return subject


def _opened(options: NetworkOptions, device: str | None) -> Subject:
    if (options.run is None) == (options.model is None):
        raise InputError(
            "name the network: --run FOLDER of a trained run, or --model timm:NAME, torchvision:NAME or "
            "package.module:function"
        )
    place = device or options.device
    if options.run is not None:
        for name in ("weights", "model_args", "image_size"):
            if getattr(options, name):
                raise InputError(f"{name} is of a --model; a run has its own")
        run = load_run(options.run, options.root, place)
        return Subject(
            folder=Path(options.out) if options.out else run.folder,
            name=run.folder.name,
            model=run.model.backbone,
            identity={"weights": run.weights},
            transform=run.data.eval_transform(),
            image_size=(run.data.config["image_size"],) * 2,
            mean=tuple(run.data.config["mean"]),
            std=tuple(run.data.config["std"]),
            class_names=class_names(run),
            run=run,
        )
    spec = options.model or ""
    net = load_network(spec, options.weights, place, options.image_size, options.model_args)
    folder = Path(options.out or Path("dissections") / spec.replace(":", "-").replace("/", "-"))
    built = {"network": spec, "arguments": options.model_args}
    return _subject(net, folder, built, spec.partition(":")[0])


def _subject(net: Network, folder: Path, identity: dict[str, Any], *modules: str) -> Subject:
    # Weights alone do not say what is computed with them.
    what = {
        "weights": net.weights,
        "modules": digest({"repr": repr(net.model)}),
        "code": code_hash(net.model, *modules),
    }
    return Subject(
        folder=folder,
        name=net.name,
        model=net.model,
        identity=identity | what,
        transform=net.transform,
        image_size=net.image_size,
        mean=net.mean,
        std=net.std,
        class_names=net.class_names,
        run=None,
    )
