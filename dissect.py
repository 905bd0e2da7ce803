"""Label the units of runs, explain inputs, compare runs: ``dissect.py {label,explain,compare} --help``."""

import hashlib
import logging
import sys
from json import dumps
from pathlib import Path

import pandas as pd
import torch
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from lwta.dissect.activations import Readout, collect
from lwta.dissect.concepts import Concepts, read_concepts
from lwta.dissect.explain import explain
from lwta.dissect.labelers.clip import label_layer
from lwta.dissect.labels import labels_for, read_labels, write_labels
from lwta.dissect.report import render_input
from lwta.dissect.report.comparison import (
    comparison_frame,
    comparison_text,
    label_quality,
    output_folder,
    write_comparison,
)
from lwta.errors import InputError
from models.compare import describe, judge_all, run_names, split_images
from models.images import IndexedImages, image_name
from models.run import Run, class_names, head_readout, load_run, open_image, patch_grid
from models.speed import images_per_second


def label(
    run: str,
    concepts: str = "classes",
    probe: str = "validate",
    layers: str | list[str] | None = None,
    readout: str | None = None,
    root: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
) -> None:
    """Label every unit with the concept most similar to the images on which it won (soft_wpmi).

    Writes labels.parquet and labels.csv into the run folder.

    Args:
        run: folder made by train.py fit.
        concepts: a concept matrix (.csv or .parquet table, .npz of embeddings), a row per probe
            image; "classes" takes the probe set's own classes as 0/1 columns.
        probe: split of the run's data: train, validate, test, or any split by its name.
        layers: glob, or list of globs, over layer names; all measured layers where not given.
        readout: cls, mean or max; what the network's head reads where not given.
        root: data folder, where it has moved since training.
        batch_size: images per pass.
        num_workers: loader processes.
    """
    if batch_size < 1 or num_workers < 0:
        raise InputError("batch_size is at least 1 and num_workers at least 0")
    opened = load_run(run, root)
    images = IndexedImages(opened.data.dataset(probe), opened.data.eval_transform())
    matrix = None if concepts == "classes" else read_concepts(concepts, len(images))
    classes = torch.full((len(images),), -1)

    def batches():
        loader = DataLoader(images, batch_size, num_workers=num_workers, collate_fn=images.collate_indexed)
        for indices, pixels, targets in tqdm(loader, "probe", disable=None):
            classes[indices] = targets
            yield indices, pixels

    reading = _readout(opened, readout)
    sites = opened.model.sparsity.select(layers)
    exemplars = collect(opened.model.backbone, batches(), sites, reading)
    _say_broken(images, classes)
    if not exemplars:
        raise InputError(f"no image of the split {probe} decodes; nothing can be labelled")
    if matrix is None:
        names = class_names(opened)
        matrix = Concepts(names, (classes[:, None] == torch.arange(len(names))).float())
    table = pd.concat([label_layer(name, seen, matrix) for name, seen in exemplars.items()])
    content = "\n".join(matrix.names).encode() + matrix.presence.numpy().tobytes()
    told = hashlib.sha256(content).hexdigest()[:16]
    identity = {"weights": opened.weights, "probe": probe, "readout": reading.kind, "concepts": told}
    known = read_labels(opened.folder)
    if known is not None and known[1] == identity:  # labels of other layers, made alike, stay
        others = known[0].query("layer not in @exemplars.keys()")
        table = pd.concat([others, table])
    paths = write_labels(opened.folder, table, identity)
    for name, rows in table.groupby("layer", sort=False):
        silent, labelled = (~rows["alive"]).sum(), rows["text"].notna().sum()
        common = ", ".join(f"{text} {n}" for text, n in rows["text"].value_counts().head(5).items())
        print(f"{name}: {len(rows)} units, {labelled} labelled, {silent} never won; most often {common}")
    place = "the class token" if reading.kind == "cls" else "any position"
    print(
        f"wins at {place} of {len(images)} images of the split {probe}; wrote {paths[0]} and {paths[1].name}"
    )


def explain_images(
    images: list[str],
    run: str,
    layers: str | list[str] | None = None,
    readout: str | None = None,
    target: str | None = None,
    top: int = 50,
    root: str | None = None,
    json: bool = False,
) -> None:
    """Say which units fired on each image and what each changed in the decision.

    Prints a table for each image and writes a page for it into the run folder.

    Args:
        images: image files, or SPLIT:INDEX of the run's data, such as test:12.
        run: folder made by train.py fit.
        layers: glob, or list of globs, over layer names; the last layer where not given.
        readout: cls, mean or max; what the network's head reads where not given.
        target: class to explain; the predicted one where not given.
        top: units listed and silenced in each layer.
        root: data folder, where it has moved since training.
        json: print JSON instead of tables.
    """
    opened = load_run(run, root)
    names = class_names(opened)
    if target is not None and target not in names:
        raise InputError(f"there is no class {target!r}; the network knows {', '.join(names[:20])}")
    if top < 1:
        raise InputError(f"top is at least 1, not {top}")
    labelled, reading = labels_for(opened.folder, opened.weights), _readout(opened, readout)
    labels, identity = labelled or (None, {})
    if labels is None:
        print(f"no labels yet: dissect.py label --run {run} makes them", file=sys.stderr)
    elif identity["readout"] != reading.kind:
        print(f"the labels were made at {identity['readout']}, not at {reading.kind}", file=sys.stderr)
    sites = opened.model.sparsity.select(layers)
    sites = sites if layers else dict(list(sites.items())[-1:])
    transform = opened.data.eval_transform()
    pictures = [(source, open_image(source, opened.data)) for source in images]  # all, before any work
    found = []
    for (source, picture), page in zip(pictures, _pages(opened.folder, images), strict=True):
        pixels = transform(picture)
        found.append(
            explain(
                opened.model.backbone,
                pixels,
                sites,
                reading,
                class_names=names,
                labels=labels,
                grids=lambda n: patch_grid(opened.model.backbone, n),
                name=Path(source).name,
                target=None if target is None else names.index(target),
                top=top,
            )
        )
        page.parent.mkdir(exist_ok=True)
        page.write_text(
            render_input(found[-1], to_pil_image(opened.data.denormalise(pixels))), encoding="utf-8"
        )
        if not json:
            print(found[-1].table())
        print(f"page: {page}", file=sys.stderr)
    if json:
        print(dumps([explanation.to_dict() for explanation in found], indent=1))


def compare(
    runs: list[str],
    split: str = "test",
    root: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    out: str | None = None,
) -> None:
    """Compare labelled runs on the same images: accuracy, active units, speed, labels.

    Prints a table and writes comparison.csv and comparison.png.

    Args:
        runs: folders made by train.py fit and labelled by dissect.py label; the others are tested
            against the first.
        split: of the runs' data: train, validate, test, or any split by its name.
        root: data folder of all runs, where it has moved since training.
        batch_size: images per pass, also when speed is measured.
        num_workers: loader processes.
        out: folder to write into; "comparison" beside the first run where not given.
    """
    if batch_size < 1 or num_workers < 0:
        raise InputError("batch_size is at least 1 and num_workers at least 0")
    names, folder = run_names(runs), output_folder(out, runs[0])
    opened = [load_run(run, root) for run in runs]
    labels = [label_quality(run.folder, run.weights) for run in opened]
    images = [split_images(run, split) for run in opened]
    judged = judge_all(opened, images, batch_size, num_workers)
    _say_broken(images[0], judged[0].targets)
    speeds = images_per_second(opened, images, batch_size)
    comparison = comparison_frame(
        {"run": name, "split": split} | describe(run, seen, judged[0]) | speed | quality
        for name, run, seen, speed, (quality, _) in zip(names, opened, judged, speeds, labels, strict=True)
    )
    paths = write_comparison(folder, comparison)
    print(comparison_text(comparison, [identity for _, identity in labels]))
    print(f"wrote {paths[0]} and {paths[1].name}")


def _readout(run: Run, kind: str | None) -> Readout:
    default, prefix = head_readout(run.model.backbone)
    if kind == "cls" and default != "cls":
        raise InputError(
            "readout cls needs a class token that the head reads; this network's head pools, use mean"
        )
    return Readout(kind or default, prefix)


def _say_broken(images: IndexedImages, classes: torch.Tensor) -> None:
    broken = (classes < 0).nonzero()[:, 0].tolist()
    if broken:
        named = ", ".join(image_name(images.data, index) for index in broken[:5])
        print(f"left out {len(broken)} images that do not decode: {named}", file=sys.stderr)


def _pages(folder: Path, sources: list[str]) -> list[Path]:
    """A page for each image, named after it; images of the same name are numbered."""
    pages: list[Path] = []
    for source in sources:
        stem = Path(source).stem if Path(source).exists() else Path(source.replace(":", "-")).name
        page, again = folder / "explanations" / f"{stem}.html", 1
        while page in pages:
            again += 1
            page = page.with_name(f"{stem}-{again}.html")
        pages.append(page)
    return pages


def _parser() -> ArgumentParser:
    labels = ArgumentParser(description="Label the units of a run.")
    labels.add_argument("--config", action="config", help="YAML file with any of the options below")
    labels.add_function_arguments(label)
    explains = ArgumentParser(description="Explain images: which units fired, and what each changed.")
    explains.add_argument("--config", action="config", help="YAML file with any of the options below")
    explains.add_argument("images", nargs="+", help="image files, or SPLIT:INDEX of the run's data")
    explains.add_argument("--json", action="store_true", help="print JSON instead of tables")
    explains.add_function_arguments(explain_images, skip={"images", "json"})
    compares = ArgumentParser(description="Compare labelled runs on the same images.")
    compares.add_argument("--config", action="config", help="YAML file with any of the options below")
    compares.add_argument("runs", nargs="+", help="run folders; the others are tested against the first")
    compares.add_function_arguments(compare, skip={"runs"})
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subcommands()
    commands.add_subcommand("label", labels, help="words for every unit")
    commands.add_subcommand("explain", explains, help="evidence for single images")
    commands.add_subcommand("compare", compares, help="runs side by side")
    return parser


def main(args: list[str] | None = None) -> None:
    """Run the command line; a bad input ends it with one sentence and exit code 1."""
    logging.getLogger("timm").setLevel(logging.ERROR)  # names each broken image; we do so once
    config = _parser().parse_args(args)
    options = config[config.subcommand].as_dict()
    options.pop("config")
    try:
        {"label": label, "explain": explain_images, "compare": compare}[config.subcommand](**options)
    except InputError as error:
        sys.exit(f"error: {error}")
    except PermissionError as error:
        sys.exit(f"error: no permission for {error.filename}")


if __name__ == "__main__":
    main()
