"""``fire``: which units fired on each image of a set."""

import math
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from commands.options import NetworkOptions
from commands.subject import open_subject
from lwta.dissect.activations import readings
from lwta.dissect.labels import Labels, labels_for
from lwta.dissect.store import room
from lwta.dissect.stream import MOST_BROKEN
from lwta.errors import InputError
from models.images import IndexedImages, image_name

_COMPARED = 2000  # images of which the fired sets are compared, two by two
_SCHEMA = pa.schema(
    [
        ("image", pa.int64()),
        ("class", pa.int64()),
        ("layer", pa.string()),
        ("unit", pa.int64()),
        ("value", pa.float32()),
    ]
)


def fire(
    network: NetworkOptions,
    data: str | None = None,
    data_args: dict | None = None,
    layers: str | list[str] | None = None,
    readout: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
) -> None:
    """Write which units fired on each image of a set, and say how the fired sets of images overlap.

    Writes fired.parquet (image, class, layer, unit, value; a row for each unit that fired) into the run
    folder, or for a --model into --out.

    Args:
        data: images, as probe in label; the run's test split where not given.
        data_args: further arguments of timm's dataset factory, such as input_key.
        layers: glob, or list of globs, over layer names; all measured layers where not given.
        readout: cls, mean or max; what the network's head reads where not given.
        batch_size: images per pass.
        num_workers: loader processes.
    """
    if batch_size < 1 or num_workers < 0:
        raise InputError("batch_size is at least 1 and num_workers at least 0")
    subject = open_subject(network)
    if data is None and subject.run is None:
        raise InputError("name the images with --data, such as a folder")
    images = IndexedImages(subject.probe(data or "test", data_args), subject.transform)
    sites, reading = subject.layers(layers), subject.readout(readout)
    subject.check_readout(reading, sites)
    path, known = subject.folder / "fired.parquet", labels_for(subject.folder, subject.identity["weights"])
    step = max(1, -(-len(images) // _COMPARED))
    kept: dict[str, list[Tensor]] = {name: [] for name in sites}
    compared, seen = [], []

    def batches():
        loader = DataLoader(images, batch_size, num_workers=num_workers, collate_fn=images.collate_indexed)
        for indices, pixels, targets in tqdm(loader, "fire", disable=None):
            seen.append((indices, targets))
            yield indices, pixels

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with room(path), pq.ParquetWriter(part, _SCHEMA) as writer:
            for indices, read in readings(subject.model, batches(), sites, reading):
                chosen, classes = indices % step == 0, seen[-1][1]
                compared.append(classes[chosen])
                for name, found in read.items():
                    writer.write_table(_rows(name, indices, classes, found.values.cpu(), found.won.cpu()))
                    kept[name].append(found.won.cpu()[chosen])
        decoded = torch.cat([indices for indices, _ in seen]) if seen else torch.empty(0)
        _say_missing(images, decoded)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    for name, won in kept.items():
        print(f"{name}: {_told(known, name, torch.cat(won), torch.cat(compared))}")
    print(f"{len(decoded)} images; wrote {path}")


def _rows(layer: str, indices: Tensor, classes: Tensor, values: Tensor, won: Tensor) -> pa.Table:
    image, unit = won.nonzero(as_tuple=True)
    columns = [indices[image], classes[image], None, unit, values[image, unit]]
    arrays = [
        pa.array(np.full(len(unit), layer)) if column is None else pa.array(column.numpy())
        for column in columns
    ]
    return pa.Table.from_arrays(
        [a.cast(f.type) for a, f in zip(arrays, _SCHEMA, strict=True)], schema=_SCHEMA
    )


def overlap(won: Tensor, classes: Tensor) -> tuple[float, float]:
    """Mean overlap of the fired sets of two images: of one class, and of two; NaN where there are no such.

    Overlap is the units that fired on both over those that fired on either.

    Args:
        won: bool (n, D).
        classes: int64 (n,); -1 for images without a class, which count nowhere.
    """
    fired = won[classes >= 0].double()
    kinds = classes[classes >= 0]
    both = fired @ fired.T
    counts = fired.sum(1)
    share = both / (counts[:, None] + counts[None] - both).clamp_min(1)
    pairs = torch.ones_like(share).triu(1).bool()
    same = kinds[:, None] == kinds[None]
    return float(share[pairs & same].mean()), float(share[pairs & ~same].mean())


def _told(known: Labels | None, layer: str, won: Tensor, classes: Tensor) -> str:
    pairs = zip(("within a class", "between classes"), overlap(won, classes), strict=True)
    shares = [f"{share:.3f} {where}" for where, share in pairs if not math.isnan(share)]
    told = [
        f"{100 * won.float().mean():.2f} % of {won.shape[1]} units fire on an image, "
        f"{int(won.any(0).sum())} on any",
    ]
    if shares:
        told.append(f"fired sets overlap {', '.join(shares)}")
    rows = pd.DataFrame() if known is None else known.table.query("layer == @layer")
    if len(rows):
        fired = rows.loc[rows["unit"].isin(won.any(0).nonzero()[:, 0].tolist()), "label"].dropna().tolist()
        told.append(f"{len(set(fired))} distinct labels of {len(fired)} that fired")
    return "; ".join(told)


def _say_missing(images: IndexedImages, decoded: Tensor) -> None:
    broken = sorted(set(range(len(images))) - set(decoded.tolist()))
    if broken:
        named = ", ".join(image_name(images.data, index) for index in broken[:5])
        if len(broken) > MOST_BROKEN * len(images):
            raise InputError(
                f"more than 5 % of the {len(images)} images do not decode, such as {named}; "
                "replace or remove them"
            )
        print(f"left out {len(broken)} images that do not decode: {named}", file=sys.stderr)
