"""What a command asks of a network and a probe set: one pass where something is missing, then labels."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from commands.options import LabelOptions, PassOptions
from commands.patches import patch_evidence
from commands.sources import Source, open_source
from commands.subject import Subject
from lwta.dissect.labelers import LayerData, exemplar_rows
from lwta.dissect.labelers.clip import ClipLabeler, find_similarity
from lwta.dissect.labels import Labels
from lwta.dissect.record import Record
from lwta.dissect.store import cache_folder, digest, load
from lwta.dissect.stream import UNSEEN, Activations, Embeddings, Loader, Share, run_pass
from lwta.errors import InputError
from lwta.layers import LWTA
from models.images import IndexedImages, image_name
from models.probes import probe_identity

EXEMPLARS = 100  # kept of each unit at least
_STEP = 32  # images at a time on a CPU: more cost memory there and gain nothing


class Each(NamedTuple):
    """An image for each of several takers; loader processes take it along."""

    transforms: tuple[Callable[[Image.Image], Tensor], ...]

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        return tuple(transform(image) for transform in self.transforms)


def transform_identity(transform: Callable[[Image.Image], Tensor]) -> str:
    """Hash of what a transform makes of two fixed images: many a transform does not say what it does."""
    rng, found = np.random.default_rng(0), hashlib.sha256()
    for height, width in ((97, 160), (48, 31)):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        made = transform(Image.fromarray(pixels)).contiguous()
        found.update(f"{made.dtype} {tuple(made.shape)}".encode() + made.numpy().tobytes())
    return found.hexdigest()[:16]


class Question:
    """Labels of layers of one network from one probe set.

    Everything that can be refused without a pass is refused here.

    Args:
        subject: the network.
        labels: how its units are labelled.
        run: how images are run through it.
        share: the part of the pass that this process does.
        data: the probe images, in place of those that ``labels`` names.
    """

    def __init__(
        self,
        subject: Subject,
        labels: LabelOptions,
        run: PassOptions = PassOptions(),  # noqa: B008
        share: Share = Share(),  # noqa: B008
        *,
        data: Dataset | None = None,
    ) -> None:
        if run.batch_size < 1 or run.num_workers < 0:
            raise InputError("batch_size is at least 1 and num_workers at least 0")
        if share.world == 1 and run.devices * run.num_nodes > 1:
            raise InputError(
                "only label shares a pass out; leave devices away here, or run label with it first"
            )
        self.subject, self.options, self.run, self.share = subject, labels, run, share
        self.similarity, self.prior = find_similarity(labels.similarity, labels.prior)
        self.readout = subject.readout(labels.readout)
        self.spec = labels.probe or ("" if data is None else "given images")
        self.spec = self.spec or ("validate" if subject.run else "")
        if not self.spec:
            raise InputError("name the images to label on with --probe, such as a folder")
        self.data = subject.probe(self.spec, labels.probe_args) if data is None else data
        self.images = IndexedImages(self.data, subject.transform)
        self.count = len(self.images)
        if not self.count:
            raise InputError(f"the probe set {self.spec} holds no image; name another with --probe")
        self.cache = cache_folder(run.cache)
        own = data is None and subject.is_split(self.spec)
        if share.rank:
            share.barrier()  # until the first has embedded the words
        with redirect_stderr(StringIO()) if share.rank else nullcontext():  # the first has said it
            self.source: Source = open_source(subject, self.data, own, labels, self.cache, subject.device)
        if not share.rank:
            share.barrier()
        if self.readout.kind == "patches" and not (self.source.encoder and self.source.encodes):
            raise InputError(
                "readout patches needs an encoder that looks at the patches; name it with --clip"
            )
        self.top = max(EXEMPLARS, self.similarity.top(self.count)) if self.similarity.top else EXEMPLARS

    @property
    def step(self) -> int | None:
        """Images that a network is shown at a time; None for the whole batch."""
        return _STEP if self.subject.device.type == "cpu" else None

    @cached_property
    def probe(self) -> str:
        """Hash of the probe images."""
        return probe_identity(self.data)

    @property
    def _probe_name(self) -> str:
        """The probe set without the place where it lies."""
        path, bracket, part = self.spec.partition("[")
        place = self.spec if Path(self.spec).exists() else path
        return Path(place).name + (bracket + part) * (place == path) if Path(place).exists() else self.spec

    @property
    def identity(self) -> dict[str, Any]:
        """What labels depend on."""
        return {
            **self._activations,
            "probe": self._probe_name,
            **self.source.identity,
            "similarity": self.options.similarity,
            "prior": None if self.prior is None else f"{self.prior:g}",
        }

    @property
    def _activations(self) -> dict[str, Any]:
        return {
            **self.subject.identity,
            "images": self.probe,
            "transform": transform_identity(self.subject.transform),
            "readout": self.readout.kind,
        }

    # -- the pass -----------------------------------------------------------------------------

    def _kept(self, layers: Iterable[str]) -> dict[str, Path]:
        """Where the record of each layer lies."""
        own, folder = self._activations | {"exemplars": self.top}, self.cache / "activations"
        return {layer: folder / f"{digest(own | {'layer': layer})}.pt" for layer in layers}

    @property
    def _embeddings(self) -> Path:
        own = {"images": self.probe, "clip": self.source.identity["clip"]}
        return self.cache / "images" / f"{digest(own)}.npy"

    def observe(self, sites: Mapping[str, int]) -> None:
        """Run the probe images through whatever has not seen them yet."""
        self.subject.check_readout(self.readout, sites)
        paths, values = self._kept(sites), self.similarity.top is None
        asked = digest({"layers": [str(path) for path in paths.values()], "values": values})
        unfinished = self.cache / "activations" / f"{asked}.unfinished"
        consumers, transforms = [], []
        if self.source.encodes and self.readout.kind != "patches":
            encoder = self.source.encoder
            assert encoder is not None
            consumers.append(Embeddings(encoder.images, self._embeddings, (self.count, self.source.width)))
            transforms.append(encoder.transform)
        if self.run.force and not self.share.rank:
            for path in [*paths.values(), *(consumer.path for consumer in consumers)]:
                path.unlink(missing_ok=True)
            for folder in [unfinished, *(consumer.folder for consumer in consumers)]:
                shutil.rmtree(folder, ignore_errors=True)
        self.share.barrier()
        if consumers and self._embeddings.is_file():
            consumers, transforms = [], []
        missing = {
            name: dim
            for name, dim in sites.items()
            if load(paths[name]) is None or (values and not paths[name].with_suffix(".npy").is_file())
        }
        if missing:
            consumers.append(
                Activations(
                    self.subject.model, missing, self.readout, self.top, self.count, paths, values, unfinished
                )
            )
            transforms.append(self.subject.transform)
        if consumers:
            loader = self.loader(IndexedImages(self.data, Each(tuple(transforms))), "probe")
            names = _Names(self.data)
            run_pass(
                consumers,
                loader,
                self.count,
                self.run.batch_size,
                names=names,
                share=self.share,
                every=self.run.save_every,
                step=self.step,
            )

    def loader(self, images: Dataset, title: str) -> Loader:
        """Loads (number, tensors, class) of images in batches of given numbers."""

        def batches(spans: Sequence[range]) -> Iterable[Any]:
            loader = DataLoader(
                images,
                batch_sampler=[list(span) for span in spans],  # type: ignore[arg-type]
                num_workers=self.run.num_workers,
                collate_fn=IndexedImages.collate_indexed,
            )
            yield from tqdm(loader, title, disable=None if self.share.rank == 0 else True)

        return batches

    def positions(self, layer: str) -> int:
        """Positions that the readout reads of a layer for one image."""
        kept = load(self._kept([layer])[layer])
        return 0 if kept is None else kept["record"]["places"]

    # -- the answer ---------------------------------------------------------------------------

    def layer(self, name: str, source: Source | None = None) -> LayerData:
        """What is known of a layer after :meth:`observe`."""
        source = source or self.source
        path = self._kept([name])[name]
        kept = load(path)
        if kept is None:
            raise InputError(f"{path} was removed while it was needed; run the command again")
        record, classes = Record.from_state(kept["record"]), kept["classes"]
        module = self.subject.model.get_submodule(name)
        exemplars = record.exemplars()
        if self.readout.kind == "patches":
            evidence, presence = patch_evidence(self, name, exemplars, source)
        else:
            evidence = exemplars
            embeddings = np.load(self._embeddings, mmap_mode="r") if source.encodes else None
            presence = source.presence(embeddings, classes)
        return LayerData(
            layer=name,
            exemplars=exemplars,
            evidence=evidence,
            constant=record.constant,
            presence=presence,
            competitors=module.competition.competitors if isinstance(module, LWTA) else None,
            values=None if self.similarity.top else np.load(path.with_suffix(".npy"), mmap_mode="r"),
            seen=(classes != UNSEEN).nonzero()[:, 0],
            key=path.stem,
        )

    def labeler(self, source: Source | None = None, keep: bool = True) -> ClipLabeler:
        """The labeler asked for, with its words; ``keep`` the priors of layers, for units asked for later."""
        source = source or self.source
        return ClipLabeler(
            source.names,
            self.options.similarity,
            self.options.prior,
            identity=source.identity,
            cache=self.cache if keep else None,
            device=self.subject.device,
        )

    def label(self, sites: Mapping[str, int], units: Mapping[str, Sequence[int]] | None = None) -> Labels:
        """Labels of layers, of all their units or of those asked for; runs the pass where it is missing."""
        self.observe(sites)
        labeler, tables, exemplars, widths = self.labeler(), [], [], {}
        names = _Names(self.data)
        for layer in sites:
            data = self.layer(layer)
            widths[layer] = len(data.constant)
            asked = range(widths[layer]) if units is None else units[layer]
            tables.append(labeler.label(data, None if units is None else asked))
            exemplars.append(exemplar_rows(data, asked, names))
        identity = self.identity
        table = pd.concat(tables).assign(fingerprint=digest(identity))
        return Labels(table, pd.concat(exemplars), identity, self.options.asked(), widths)

    def broken(self, layer: str) -> list[str]:
        """Names of the images that did not decode when a layer was read."""
        kept = load(self._kept([layer])[layer])
        missing = [] if kept is None else (kept["classes"] == UNSEEN).nonzero()[:, 0].tolist()
        return [image_name(self.data, index) for index in missing]

    def seen(self, layer: str) -> int:
        """Number of images that did."""
        return self.count - len(self.broken(layer))

    @property
    def told(self) -> str:
        """The probe set, for the reader."""
        return f"the split {self.spec}" if self.subject.is_split(self.spec) else self.spec


class _Names:
    """File name of each image, None where the set has none; asked for one by one."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __getitem__(self, index: int) -> str | None:
        name = image_name(self.data, index)
        return None if name == str(index) else name
