"""What a command asks of a network and a probe set: one pass where something is missing, then labels."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from commands.options import LabelOptions, PassOptions
from commands.patches import patch_evidence
from commands.probe import Each, Probe, transform_identity
from commands.sources import Source, open_source
from commands.subject import Subject
from lwta.dissect.labelers import LayerData, exemplar_rows
from lwta.dissect.labelers.clip import ClipLabeler, find_similarity
from lwta.dissect.labels import Labels
from lwta.dissect.record import Record
from lwta.dissect.store import cache_folder, digest, load
from lwta.dissect.stream import UNSEEN, Activations, Consumer, Embeddings, ImageNames, Share, run_pass
from lwta.errors import InputError
from lwta.layers import LWTA
from models.images import IndexedImages, image_name

EXEMPLARS = 100  # kept of each unit at least
_STEP = 32  # images at a time on a CPU: more cost memory there and gain nothing


class Question:
    """Labels of layers of one network from one probe set.

    Everything that can be refused without a pass is refused here.

    Args:
        subject: the network.
        labels: how its units are labelled.
        run: how images are run through it.
        share: the part of the pass that this process does.
        data: the probe images, in place of those that ``labels`` names.
        source: the concepts, in place of those that ``labels`` names.
    """

    def __init__(
        self,
        subject: Subject,
        labels: LabelOptions,
        run: PassOptions = PassOptions(),  # noqa: B008
        share: Share = Share(),  # noqa: B008
        *,
        data: Dataset | None = None,
        source: Source | None = None,
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
        self.probe = Probe(subject, labels, data)
        self.cache = cache_folder(run.cache)
        if share.rank:
            share.barrier()  # until the first has embedded the words
        with redirect_stderr(StringIO()) if share.rank else nullcontext():  # the first has said it
            self.source = source or open_source(subject, self.probe, labels, self.cache, run.force)
        if not share.rank:
            share.barrier()
        if self.readout.kind == "patches" and not (self.source.encoder and self.source.encodes):
            raise InputError(
                "readout patches needs an encoder that looks at the patches; name it with --clip"
            )
        if self.similarity.top and self.similarity.top(len(self.probe)) < 2:
            raise InputError(
                f"{labels.similarity} looks at the top 5 % of the images, of {len(self.probe)} at one; give "
                "40 or more, or take another similarity"
            )
        if self.readout.kind == "patches" and self.similarity.top is None:
            raise InputError(
                f"readout patches looks at exemplars, and {labels.similarity} at every image; use soft_wpmi, "
                "wpmi or rank_reorder"
            )
        self.top = max(EXEMPLARS, self.similarity.top(len(self.probe))) if self.similarity.top else EXEMPLARS

    @property
    def identity(self) -> dict[str, Any]:
        """What labels depend on."""
        return {
            **self.activations,
            "probe": self.probe.name,
            **self.source.identity,
            "similarity": self.options.similarity,
            "prior": None if self.prior is None else f"{self.prior:g}",
        }

    @property
    def activations(self) -> dict[str, Any]:
        """What the activations on the probe images depend on."""
        return {
            **self.subject.identity,
            "images": self.probe.identity,
            "transform": transform_identity(self.subject.transform),
            "readout": self.readout.kind,
        }

    # -- the pass -----------------------------------------------------------------------------

    def _kept(self, layers: Iterable[str]) -> dict[str, Path]:
        """Where the record of each layer lies."""
        own, folder = self.activations | {"exemplars": self.top}, self.cache / "activations"
        return {layer: folder / f"{digest(own | {'layer': layer})}.pt" for layer in layers}

    @property
    def _embeddings(self) -> Path:
        own = {"images": self.probe.identity, "clip": self.source.identity["clip"]}
        return self.cache / "images" / f"{digest(own)}.npy"

    def observe(self, sites: Mapping[str, int]) -> None:
        """Run the probe images through whatever has not seen them yet."""
        units = self.subject.check_readout(self.readout, sites)
        paths, values = self._kept(sites), self.similarity.top is None
        asked = digest({"layers": [str(path) for path in paths.values()], "values": values})
        unfinished = self.cache / "activations" / f"{asked}.unfinished"
        consumers, transforms = [], []
        if self.source.encodes and self.readout.kind != "patches":
            encoder = self.source.encoder
            assert encoder is not None
            consumers.append(
                Embeddings(encoder.images, self._embeddings, (len(self.probe), self.source.width))
            )
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
                    self.subject.model,
                    missing,
                    self.readout,
                    self.top,
                    len(self.probe),
                    paths,
                    values,
                    unfinished,
                    units,
                )
            )
            transforms.append(self.subject.transform)
        if consumers:
            images = IndexedImages(self.probe.data, Each(tuple(transforms)))
            self.stream(consumers, images, "probe", self.share, names=self.probe.names)

    def stream(
        self,
        consumers: Sequence[Consumer],
        images: Dataset,
        title: str,
        share: Share = Share(),  # noqa: B008
        names: ImageNames | None = None,
    ) -> None:
        """One pass over images (number, tensor for each consumer, class), as the options say."""

        def batches(spans: Sequence[range]) -> Iterable[Any]:
            loader = DataLoader(
                images,
                batch_sampler=[list(span) for span in spans],  # type: ignore[arg-type]
                num_workers=self.run.num_workers,
                collate_fn=IndexedImages.collate_indexed,
            )
            yield from tqdm(loader, title, disable=True if share.rank else None)

        run_pass(
            consumers,
            batches,
            len(images),  # type: ignore[arg-type]
            self.run.batch_size,
            names=names,
            share=share,
            every=self.run.save_every,
            step=_STEP if self.subject.device.type == "cpu" else None,
        )

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
        for layer in sites:
            data = self.layer(layer)
            widths[layer] = len(data.constant)
            asked = range(widths[layer]) if units is None else units[layer]
            tables.append(labeler.label(data, None if units is None else asked))
            exemplars.append(exemplar_rows(data, asked, self.probe.names))
        identity = self.identity
        table = pd.concat(tables).assign(fingerprint=digest(identity))
        return Labels(table, pd.concat(exemplars), identity, self.options.asked(), widths)

    def broken(self, layer: str) -> list[str]:
        """Names of the images that did not decode when a layer was read."""
        kept = load(self._kept([layer])[layer])
        missing = [] if kept is None else (kept["classes"] == UNSEEN).nonzero()[:, 0].tolist()
        return [image_name(self.probe.data, index) for index in missing]

    def seen(self, layer: str) -> int:
        """Number of images that did."""
        return len(self.probe) - len(self.broken(layer))
