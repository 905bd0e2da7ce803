"""One pass over a probe set that feeds several consumers, can be killed, and can be shared out.

The images come in numbered batches. A consumer notes which batches it has taken beside what it made of
them, so that a pass that was killed goes on where it was; batch b belongs to process b mod W, so that
every batch is computed alike by any number W of processes.
"""

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lwta.dissect.activations import Readout, is_competing, reading
from lwta.dissect.record import Record
from lwta.dissect.store import Rows, load, save
from lwta.errors import InputError

MOST_BROKEN = 0.05
UNSEEN = -2  # in the place of the class of an image that was not decoded

#: Batches of image numbers -> (numbers, what each consumer's transform made of the images, classes) of those
#: that decode.
Loader = Callable[[Sequence[range]], Iterable[tuple[Tensor, tuple[Tensor, ...], Tensor]]]


class ImageNames(Protocol):
    """File name of each probe image, None where it has none."""

    def __getitem__(self, index: int, /) -> str | None: ...


class Share(NamedTuple):
    """The part of a pass that one of several processes does.

    Attributes:
        rank, world: which process of how many.
        barrier: returns when all processes have called it.
    """

    rank: int = 0
    world: int = 1
    barrier: Callable[[], None] = lambda: None


class Consumer(Protocol):
    """What takes the images of a pass.

    Attributes:
        folder: where its unfinished state lies.
    """

    folder: Path

    def prepare(self) -> None:
        """Make what all processes write to."""

    def take(self, indices: Tensor, pixels: Tensor, classes: Tensor) -> None:
        """Take images (n, 3, H, W) with their numbers and classes (n,)."""

    def state(self) -> dict[str, Any]:
        """What :meth:`merge` takes."""
        ...

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the state of a consumer that took other batches."""

    def finish(self) -> None:
        """Write what was made of all images."""


class Embeddings:
    """Consumer that writes the image embeddings (N, E) of an encoder.

    Args:
        encode: images (n, 3, H, W) -> (n, E).
        path: of the ``.npy`` file.
        shape: (N, E).
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], path: Path, shape: tuple[int, int]) -> None:
        self.encode, self.path, self.folder = encode, path, path.parent / (path.stem + ".unfinished")
        self.rows = Rows(self.folder / "rows.npy", shape)

    def prepare(self) -> None:
        self.rows.prepare()

    def take(self, indices: Tensor, pixels: Tensor, classes: Tensor) -> None:
        self.rows.write(indices, self.encode(pixels))

    def state(self) -> dict[str, Any]:
        return {}

    def merge(self, state: Mapping[str, Any]) -> None:
        pass  # all write to the one file

    def finish(self) -> None:
        self.rows.path.replace(self.path)


class Activations:
    """Consumer that keeps the records of layers, and on request what was read of every image.

    Args:
        model: any module, in evaluation mode.
        sites: layer -> axis of its units.
        readout: what is read of them.
        k: exemplars kept of each unit.
        count: N, images of the probe set.
        paths: layer -> file for its record; values are kept beside it.
        values: keep the values (N, D) of each layer, on disk.
        folder: for the unfinished state, one for each set of layers asked for.
        units: layer -> D.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, int],
        readout: Readout,
        k: int,
        count: int,
        paths: Mapping[str, Path],
        values: bool,
        folder: Path,
        units: Mapping[str, int],
    ) -> None:
        self.units = units
        self.model, self.sites, self.readout, self.k = model.eval(), sites, readout, k
        self.paths, self.values, self.folder = paths, values, folder
        self.records: dict[str, Record] = {}
        self.classes = torch.full((count,), UNSEEN)

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.sites if self.values else ():
            self._rows(name).prepare()

    @torch.no_grad()
    def take(self, indices: Tensor, pixels: Tensor, classes: Tensor) -> None:
        device = next(self.model.parameters()).device
        with reading(self.model, self.sites, self.readout) as read:
            self.model(pixels.to(device))
        if missing := self.sites.keys() - read.keys():
            raise InputError(f"a pass of the network never calls the layer {min(missing)}; name another")
        for name, found in read.items():
            if not found.values.isfinite().all():
                image = indices[int((~found.values.isfinite()).any(1).nonzero()[0])].item()
                raise InputError(f"the layer {name} gives NaN or infinity on image {image} of the probe set")
            if name not in self.records:
                units, competes = found.values.shape[1], is_competing(self.model, name)
                self.records[name] = Record(units, self.k, competes, found.values.device)
            if self.values:
                self._rows(name).write(indices, found.values)
            self.records[name].add(found, indices)
        self.classes[indices] = classes

    def _rows(self, layer: str) -> Rows:
        return Rows(self.folder / f"{layer}.npy", (len(self.classes), self.units[layer]))

    def state(self) -> dict[str, Any]:
        records = {name: record.state_dict() for name, record in self.records.items()}
        return {"records": records, "classes": self.classes}

    def merge(self, state: Mapping[str, Any]) -> None:
        device = next(self.model.parameters()).device
        for name, found in state["records"].items():
            other = Record.from_state(found, device)
            if name in self.records:
                self.records[name].merge(other)
            else:
                self.records[name] = other
        self.classes = torch.maximum(self.classes, state["classes"])

    def finish(self) -> None:
        for name in self.sites:  # where it was killed in here, those that are left
            rows = self.folder / f"{name}.npy"
            if self.values and rows.exists():
                rows.replace(self.paths[name].with_suffix(".npy"))
            save(self.paths[name], {"record": self.records[name].state_dict(), "classes": self.classes})


def run_pass(
    consumers: Sequence[Consumer],
    loader: Loader,
    count: int,
    batch_size: int,
    *,
    names: ImageNames | None = None,
    share: Share = Share(),  # noqa: B008  (a constant)
    every: float = 30.0,
    step: int | None = None,
) -> None:
    """Feed the images of a probe set to all consumers, each image decoded once.

    Args:
        consumers: those that lack something; what an earlier, killed pass gave them is taken up.
        loader: makes the batches.
        count: N.
        batch_size: images a batch; a pass goes on only with the batches it began with.
        names: of the images, for the reader.
        share: the part that this process does.
        every: seconds between two states written, more where writing takes long; 0 writes after each batch.
        step: images that a consumer is given at a time, the whole batch where not given.

    Raises:
        InputError: where more than 5 % of the images do not decode, and again when it is asked to go on;
            on a full disk.
    """
    if share.rank == 0:
        for consumer in consumers:
            consumer.prepare()
    share.barrier()
    done, broken = [], set[int]()
    for consumer in consumers:
        taken, missing = _resume(consumer, batch_size, share)
        done.append(taken)
        broken |= missing
    _check_broken(broken, count, names)
    batches = range(share.rank, -(-count // batch_size), share.world)
    todo = [b for b in batches if not all(b in taken for taken in done)]
    spans = [range(b * batch_size, min((b + 1) * batch_size, count)) for b in todo]
    last, pause = time.monotonic(), every
    for b, span, (indices, pixels, classes) in zip(todo, spans, loader(spans), strict=True):
        for i, (consumer, taken) in enumerate(zip(consumers, done, strict=True)):
            if b not in taken and len(indices):
                _give(consumer, indices, pixels[i], classes, step or len(indices))
            taken.add(b)
        broken |= set(span) - set(indices.tolist())
        if len(broken) > MOST_BROKEN * count:
            _keep(consumers, done, broken, batch_size, share)
            _check_broken(broken, count, names)
        if time.monotonic() - last > pause:
            began = time.monotonic()
            _keep(consumers, done, broken, batch_size, share)
            last = time.monotonic()
            pause = max(every, 20 * (last - began)) if every else 0.0
    _keep(consumers, done, broken, batch_size, share)
    share.barrier()
    if share.rank == 0:
        for rank in range(1, share.world):  # each has seen its own part only
            kept = load(_state_file(consumers[0], batch_size, rank, share.world)) if consumers else None
            broken |= set(kept["broken"] if kept else ())
        _check_broken(broken, count, names)
        for consumer in consumers:
            _finish(consumer, batch_size, share.world)
    share.barrier()


def _give(consumer: Consumer, indices: Tensor, pixels: Tensor, classes: Tensor, step: int) -> None:
    for parts in zip(indices.split(step), pixels.split(step), classes.split(step), strict=True):
        consumer.take(*parts)


def _state_file(consumer: Consumer, batch_size: int, rank: int, world: int) -> Path:
    return consumer.folder / f"state-{batch_size}-{rank}-of-{world}.pt"


def _check_broken(broken: set[int], count: int, names: ImageNames | None) -> None:
    if len(broken) > MOST_BROKEN * count:
        named = ", ".join(str((names and names[i]) or i) for i in sorted(broken)[:5])
        raise InputError(
            f"more than 5 % of the {count} images do not decode, such as {named}; replace or remove them"
        )


def _keep(
    consumers: Sequence[Consumer], done: list[set[int]], broken: set[int], batch_size: int, share: Share
) -> None:
    for consumer, taken in zip(consumers, done, strict=True):
        path = _state_file(consumer, batch_size, share.rank, share.world)
        save(path, {"batches": sorted(taken), "broken": sorted(broken), "state": consumer.state()})


def _resume(consumer: Consumer, batch_size: int, share: Share) -> tuple[set[int], set[int]]:
    """Take up what this process had; the batches that were taken, and the images that did not decode."""
    path = _state_file(consumer, batch_size, share.rank, share.world)
    others = sorted(p.stem for p in consumer.folder.glob("state-*.pt"))
    if others and share.rank == 0 and not path.exists():
        _, size, _, _, world = others[0].split("-")
        told = f"was made in batches of {size} by {world} process{'es' if world != '1' else ''}"
        print(f"an unfinished pass is there that {told}; this one starts over", file=sys.stderr)
    found = load(path)
    if found is None:
        return set(), set()
    consumer.merge(found["state"])
    return set(found["batches"]), set(found["broken"])


def _finish(consumer: Consumer, batch_size: int, world: int) -> None:
    for rank in range(1, world):
        found = load(_state_file(consumer, batch_size, rank, world))
        assert found is not None  # written before the barrier
        consumer.merge(found["state"])
    consumer.finish()
    shutil.rmtree(consumer.folder)
