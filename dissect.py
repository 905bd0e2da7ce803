"""Labels, explanations and comparisons of trained runs: ``dissect.py COMMAND --help``."""

import logging
import sys
from collections.abc import Iterator
from json import dumps
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from lwta.dissect.activations import Exemplars, Readout, collect
from lwta.dissect.concepts import ConceptSource, classes_source, file_source, read_words, words_source
from lwta.dissect.evaluate import read_evaluation, read_values, score_labels, write_evaluation
from lwta.dissect.explain import explain
from lwta.dissect.explanation import Explanation
from lwta.dissect.labelers.clip import label_layer
from lwta.dissect.labels import labels_for, read_labels, write_labels
from lwta.dissect.report import ExplainedImage, LayerUnits, render_input, render_report, strip
from lwta.dissect.report.comparison import (
    comparison_frame,
    comparison_text,
    label_quality,
    output_folder,
    summaries,
    write_comparison,
)
from lwta.errors import InputError
from models.compare import describe, judge_all, run_names, split_images
from models.data import Transform
from models.images import UNDECODABLE, IndexedImages, image_name, read_image
from models.run import Run, class_names, head_readout, load_run, open_image, patch_grid
from models.shapes import CONCEPTS, HELD_OUT, Shapes
from models.shapes_clip import FOLDER as SHAPES_CLIP
from models.speed import images_per_second

_STRIP = 6  # exemplars shown of a unit


def label(
    run: str,
    concepts: str | None = None,
    clip: str | None = None,
    tag: str | None = None,
    templates: str | list[str] = "{}",
    prior: float = 1.0,
    probe: str = "validate",
    layers: str | list[str] | None = None,
    readout: str | None = None,
    root: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str = "auto",
) -> None:
    """Label every unit with the concept most similar to the images on which it won (soft_wpmi).

    Writes labels.parquet and labels.csv into the run folder.

    Args:
        run: folder made by train.py fit.
        concepts: words to choose from, a line each (.txt), looked for by CLIP; "shapes", the list of the
            embedded world; "classes" of the probe set; or a matrix with a row per probe image (.csv or
            .parquet table, .npz of embeddings). Where not given: shapes for its own data, else classes.
        clip: open_clip model that looks for the words: an architecture with its tag, hf-hub:OWNER/NAME,
            a folder, or "shapes". Where not given: shapes for its own data.
        tag: weights of the architecture, by open_clip's name or a file.
        templates: prompts around a word, such as "a photo of a {}."; or open_clip's sets simple and imagenet.
        prior: how much a concept counts less where other units show it too; 1 as published, 0 not at all.
        probe: split of the run's data: train, validate, test, or any split by its name.
        layers: glob, or list of globs, over layer names; all measured layers where not given.
        readout: cls, mean or max; what the network's head reads where not given.
        root: data folder, where it has moved since training.
        batch_size: images per pass.
        num_workers: loader processes.
        device: cpu, cuda, cuda:1 ...; auto takes the GPU where there is one.
    """
    _check_loader(batch_size, num_workers)
    _check_prior(prior)
    opened = load_run(run, root, device)
    source = _concept_source(opened, probe, concepts, clip, tag, templates)
    sites, reading = opened.model.sparsity.select(layers), _readout(opened, readout)
    table, count = _label(opened, source, prior, probe, sites, reading, batch_size, num_workers)
    for name, rows in table.groupby("layer", sort=False):
        silent, labelled = (~rows["alive"]).sum(), rows["text"].notna().sum()
        common = ", ".join(f"{text} {n}" for text, n in rows["text"].value_counts().head(5).items())
        print(f"{name}: {len(rows)} units, {labelled} labelled, {silent} never won; most often {common}")
    place = "the class token" if reading.kind == "cls" else "any position"
    print(
        f"wins at {place} of {count} images of the split {probe}; wrote {run}/labels.parquet and labels.csv"
    )


def explain_images(
    images: list[str],
    run: str,
    layers: str | list[str] | None = None,
    readout: str | None = None,
    target: str | None = None,
    top: int = 50,
    concepts: str | None = None,
    clip: str | None = None,
    tag: str | None = None,
    templates: str | list[str] = "{}",
    prior: float = 1.0,
    probe: str = "validate",
    root: str | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Say which units fired on each image and what each changed in the decision.

    Prints a table for each image and writes a page for it into the run folder. With concepts or clip, the
    layers are labelled first, as label does; else the run's labels are shown.

    Args:
        images: image files, or SPLIT:INDEX of the run's data, such as test:12.
        run: folder made by train.py fit.
        layers: glob, or list of globs, over layer names; the last layer where not given.
        readout: cls, mean or max; what the network's head reads where not given.
        target: class to explain; the predicted one where not given.
        top: units listed and silenced in each layer.
        concepts: as in label.
        clip: as in label.
        tag: as in label.
        templates: as in label.
        prior: as in label.
        probe: as in label.
        root: data folder, where it has moved since training.
        device: cpu, cuda, cuda:1 ...; auto takes the GPU where there is one.
        json: print JSON instead of tables.
    """
    opened = load_run(run, root, device)
    names = class_names(opened)
    if target is not None and target not in names:
        raise InputError(f"there is no class {target!r}; the network knows {', '.join(names[:20])}")
    if top < 1:
        raise InputError(f"top is at least 1, not {top}")
    pictures = [open_image(source, opened.data) for source in images]  # all, before any work
    sites, reading = opened.model.sparsity.select(layers), _readout(opened, readout)
    sites = sites if layers else dict(list(sites.items())[-1:])
    if concepts or clip or tag or templates != "{}" or prior != 1.0 or probe != "validate":
        _check_prior(prior)
        source = _concept_source(opened, probe, concepts, clip, tag, templates)
        known = read_labels(opened.folder)
        identity = _identity(opened, source, prior, probe, reading)
        if known is None or known[1] != identity or not sites.keys() <= set(known[0]["layer"]):
            # Every layer: a table of other words would otherwise lose the layers not explained.
            _label(opened, source, prior, probe, opened.model.sparsity.select(None), reading)
            print(f"labelled anew: {opened.folder}/labels.parquet", file=sys.stderr)
    labels = _labels(opened, reading)
    shown = _explanations(opened, images, pictures, sites, reading, labels, target, top)
    found = []
    for explained in shown:
        found.append(explained.explanation)
        if not json:
            print(explained.explanation.table())
        print(f"page: {opened.folder / explained.page}", file=sys.stderr)
    if json:
        print(dumps([explanation.to_dict() for explanation in found], indent=1))


def evaluate(
    run: str,
    split: str | None = None,
    root: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str = "auto",
) -> None:
    """Judge the labels of a run against the truth, where the data knows its concepts.

    A unit's true concepts are those whose AUROC on held-out images is at least .8 and within .02 of its
    best. Prints how many units have any, and how many of those carry one as their label; writes
    evaluation.json into the run folder.

    Args:
        run: folder made by train.py fit, labelled by dissect.py label.
        split: held-out images; other images of the embedded world where not given.
        root: data folder, where it has moved since training.
        batch_size: images per pass.
        num_workers: loader processes.
        device: cpu, cuda, cuda:1 ...; auto takes the GPU where there is one.
    """
    _check_loader(batch_size, num_workers)
    opened = load_run(run, root, device)
    known = labels_for(opened.folder, opened.weights)
    if known is None:
        raise InputError(f"{run} has no labels to judge; make them with dissect.py label --run {run}")
    labels, identity = known
    split = split or HELD_OUT
    if opened.data.config["name"] != "shapes":
        raise InputError("only the embedded world (data.name shapes) knows which concepts its images show")
    dataset, probe = opened.data.dataset(split), opened.data.dataset(identity["probe"])
    assert isinstance(dataset, Shapes)
    assert isinstance(probe, Shapes)
    if dataset.shares(probe):
        raise InputError(
            f"the labels were made from the split {identity['probe']}, which shares images with {split}; "
            "judge them on others with --split"
        )
    images = IndexedImages(dataset, opened.data.eval_transform())
    loader = DataLoader(images, batch_size, num_workers=num_workers, collate_fn=images.collate_indexed)
    pairs = ((indices, pixels) for indices, pixels, _ in tqdm(loader, "judge", disable=None))
    sites = {n: d for n, d in opened.model.sparsity.dims.items() if n in set(labels["layer"])}
    indices, values = read_values(opened.model.backbone, pairs, sites, _readout(opened, identity["readout"]))
    score = score_labels(labels, values, dataset.concepts, dataset.presence()[indices])
    path = write_evaluation(opened.folder, score, split, identity)
    print(f"{score}; on {len(indices)} images of the split {split}; wrote {path}")


def report(
    images: list[str],
    run: str,
    split: str = "test",
    units: int = 24,
    root: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str = "auto",
) -> None:
    """Write the page of a labelled run: what it scores, what its units mean, and explanations of images.

    Prints the table that compare prints, and writes report/index.html and, with the same numbers,
    report/summary.csv into the run folder.

    Args:
        images: image files, or SPLIT:INDEX of the run's data; the first eight test images where not given.
        run: folder made by train.py fit, labelled by dissect.py label.
        split: of the run's data that it is judged on: train, validate, test, or any split by its name.
        units: shown of each layer, those with the best label scores.
        root: data folder, where it has moved since training.
        batch_size: images per pass.
        num_workers: loader processes.
        device: cpu, cuda, cuda:1 ...; auto takes the GPU where there is one.
    """
    _check_loader(batch_size, num_workers)
    if units < 1:
        raise InputError(f"units is at least 1, not {units}")
    opened = load_run(run, root, device)
    known = labels_for(opened.folder, opened.weights)
    if known is None:
        raise InputError(f"{run} has no labels to show; make them with dissect.py label --run {run}")
    labels, identity = known
    judged = IndexedImages(opened.data.dataset(split), opened.data.eval_transform())
    first = [index for index in range(min(8, len(judged))) if judged[index][1] is not None]
    sources = images or [f"{split}:{index}" for index in first]
    pictures = [open_image(source, opened.data) for source in sources]
    sites = opened.model.sparsity.select(None)
    last, reading = dict(list(sites.items())[-1:]), _readout(opened, identity["readout"])
    comparison, told = _compare([opened], [opened.folder.name], split, batch_size, num_workers)
    print(told)
    dataset = IndexedImages(opened.data.dataset(identity["probe"]), opened.data.eval_transform())
    deepest_first = reversed(labels["layer"].unique().tolist())
    shown = [_layer_units(dataset, name, labels, units) for name in deepest_first]
    explained = list(_explanations(opened, sources, pictures, last, reading, labels, None, 50))
    page = opened.folder / "report" / "index.html"
    page.parent.mkdir(exist_ok=True)
    score = read_evaluation(opened.folder, identity)
    html = render_report(opened.folder.name, summaries(comparison)[0], score, shown, explained)
    page.write_text(html, encoding="utf-8")
    comparison.to_csv(page.with_name("summary.csv"), index=False)
    print(f"page: {page}")


def compare(
    runs: list[str],
    split: str = "test",
    root: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    out: str | None = None,
    device: str = "auto",
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
        device: cpu, cuda, cuda:1 ...; auto takes the GPU where there is one.
    """
    _check_loader(batch_size, num_workers)
    names, folder = run_names(runs), output_folder(out, runs[0])
    opened = [load_run(run, root, device) for run in runs]
    comparison, told = _compare(opened, names, split, batch_size, num_workers)
    paths = write_comparison(folder, comparison)
    print(told)
    print(f"wrote {paths[0]} and {paths[1].name}")


def _compare(
    opened: list[Run], names: list[str], split: str, batch_size: int, num_workers: int
) -> tuple[pd.DataFrame, str]:
    """The comparison of runs, and what it says."""
    labels = [label_quality(run.folder, run.weights) for run in opened]
    images = [split_images(run, split) for run in opened]
    judged = judge_all(opened, images, batch_size, num_workers)
    _say_broken(images[0], judged[0].targets)
    speeds = images_per_second(opened, images, batch_size)
    comparison = comparison_frame(
        {"run": name, "split": split} | describe(run, seen, judged[0]) | speed | quality
        for name, run, seen, speed, (quality, _) in zip(names, opened, judged, speeds, labels, strict=True)
    )
    return comparison, comparison_text(comparison, [identity for _, identity in labels])


def _concept_source(
    run: Run, probe: str, concepts: str | None, clip: str | None, tag: str | None, templates: str | list[str]
) -> ConceptSource:
    """The concepts asked for, by default those that suit the data."""
    own = run.data.config["name"] == "shapes"
    concepts = concepts or ("shapes" if own else "classes")
    if concepts == "shapes" or concepts.endswith(".txt"):
        clip = clip or ("shapes" if own else None)
        if clip is None:
            raise InputError(
                "a list of words needs an open_clip model that looks for them: --clip ViT-B-32 --tag openai, "
                "hf-hub:OWNER/NAME, or a folder"
            )
    if clip is None and (tag or templates != "{}"):
        raise InputError("tag and templates are of an open_clip model; name it with --clip")
    if clip is None and concepts == "classes":
        return classes_source(class_names(run))
    if clip is None:
        return file_source(concepts, len(IndexedImages(run.data.dataset(probe), run.data.eval_transform())))
    if concepts not in ("shapes", "classes") and not concepts.endswith(".txt"):
        raise InputError(
            f"{concepts} tells by itself what the images show; leave --clip away, or give a .txt list"
        )
    words = {"shapes": CONCEPTS, "classes": class_names(run)}.get(concepts) or read_words(concepts)
    from lwta.dissect.encoder import load_encoder, read_templates  # open_clip takes a second to import

    folder = str(SHAPES_CLIP) if clip == "shapes" else clip
    return words_source(words, load_encoder(folder, tag, run.model.device), read_templates(templates))


def _identity(run: Run, source: ConceptSource, prior: float, probe: str, reading: Readout) -> dict[str, str]:
    """What labels depend on; labels of another identity are never shown as these."""
    own = {"weights": run.weights, "probe": probe, "readout": reading.kind, "prior": f"{prior:g}"}
    return own | source.identity


def _label(
    run: Run,
    source: ConceptSource,
    prior: float,
    probe: str,
    sites: dict[str, int],
    reading: Readout,
    batch_size: int = 128,
    num_workers: int = 0,
) -> tuple[pd.DataFrame, int]:
    """Label ``sites`` and write the table; returns it and the number of probe images."""
    exemplars, seen, classes = _probe(run, source, probe, sites, reading, batch_size, num_workers)
    matrix = source.concepts(seen, classes)
    table = pd.concat([label_layer(name, found, matrix, prior) for name, found in exemplars.items()])
    identity, known = _identity(run, source, prior, probe, reading), read_labels(run.folder)
    others = None if known is None else known[0].query("layer not in @exemplars.keys()")
    if known is not None and others is not None and known[1] == identity:  # made alike, they stay
        table = pd.concat([others, table])
    elif others is not None and len(others):
        lost = ", ".join(others["layer"].unique().tolist())
        print(f"replaced the labels of {lost} too: they were made otherwise", file=sys.stderr)
    write_labels(run.folder, table, identity)
    return table, len(classes)


class _Both(NamedTuple):
    """An image for the network and for the encoder; loader processes take it along."""

    network: Transform
    encoder: Transform

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        return self.network(image), self.encoder(image)


def _probe(
    run: Run,
    source: ConceptSource,
    probe: str,
    sites: dict[str, int],
    reading: Readout,
    batch_size: int,
    num_workers: int,
) -> tuple[dict[str, Exemplars], Tensor | None, Tensor]:
    """One pass over the probe images, decoded once for the network and the encoder."""
    transform, encoder = run.data.eval_transform(), source.encoder
    both = transform if encoder is None else _Both(transform, encoder.transform)
    images = IndexedImages(run.data.dataset(probe), both)
    classes = torch.full((len(images),), -1)
    seen = None if source.texts is None else torch.zeros(len(images), source.texts.shape[1])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(images, batch_size, num_workers=num_workers, collate_fn=images.collate_indexed)
        for indices, pixels, targets in tqdm(loader, "probe", disable=None):
            if not len(indices):
                continue
            if encoder is not None and seen is not None:
                pixels, wanted = pixels
                seen[indices] = encoder.images(wanted)
            classes[indices] = targets
            yield indices, pixels

    exemplars = collect(run.model.backbone, batches(), sites, reading)
    _say_broken(images, classes)
    if not exemplars:
        raise InputError(f"no image of the split {probe} decodes; nothing can be labelled")
    return exemplars, seen, classes


def _labels(run: Run, reading: Readout) -> pd.DataFrame | None:
    known = labels_for(run.folder, run.weights)
    if known is None:
        print(f"no labels yet: dissect.py label --run {run.folder} makes them", file=sys.stderr)
        return None
    if known[1]["readout"] != reading.kind:
        print(f"the labels were made at {known[1]['readout']}, not at {reading.kind}", file=sys.stderr)
    return known[0]


def _explanations(
    run: Run,
    sources: list[str],
    pictures: list[Image.Image],
    sites: dict[str, int],
    reading: Readout,
    labels: pd.DataFrame | None,
    target: str | None,
    top: int,
) -> Iterator[ExplainedImage]:
    """Explain images one by one, and write the page of each."""
    names, transform, backbone = class_names(run), run.data.eval_transform(), run.model.backbone
    for source, picture, page in zip(sources, pictures, _pages(sources), strict=True):
        pixels = transform(picture)
        explanation: Explanation = explain(
            backbone,
            pixels,
            sites,
            reading,
            class_names=names,
            labels=labels,
            grids=lambda n: patch_grid(backbone, n),
            name=Path(source).name,
            target=None if target is None else names.index(target),
            top=top,
        )
        shown = to_pil_image(run.data.denormalise(pixels))
        (run.folder / page).parent.mkdir(exist_ok=True)
        (run.folder / page).write_text(render_input(explanation, shown), encoding="utf-8")
        yield ExplainedImage(explanation, shown, page)


def _layer_units(images: IndexedImages, layer: str, labels: pd.DataFrame, most: int) -> LayerUnits:
    """The best labelled units of a layer with a strip of their exemplars."""
    rows = labels.query("layer == @layer")
    best = rows.dropna(subset=["text"]).sort_values("score", ascending=False).head(most)
    try:
        strips = [
            strip([read_image(images.data, i)[0] for i in row[:_STRIP]]) for row in best["exemplars"].tolist()
        ]
    except (*UNDECODABLE, IndexError) as error:
        raise InputError(
            f"an image that units of {layer} were labelled on is no longer there or does not decode; "
            "bring the probe images back or label the run anew"
        ) from error
    return LayerUnits(layer, len(rows), len(rows.dropna(subset=["text"])), best.to_dict("records"), strips)


def _check_prior(prior: float) -> None:
    if not 0 <= prior <= 1:
        raise InputError(f"prior lies in [0, 1], and {prior:g} does not")


def _check_loader(batch_size: int, num_workers: int) -> None:
    if batch_size < 1 or num_workers < 0:
        raise InputError("batch_size is at least 1 and num_workers at least 0")


def _readout(run: Run, kind: str | None) -> Readout:
    default, prefix = head_readout(run.model.backbone)
    if kind == "cls" and default != "cls":
        raise InputError(
            "readout cls needs a class token that the head reads; this network's head pools, use mean"
        )
    return Readout(kind or default, prefix)


def _say_broken(images: IndexedImages, classes: Tensor) -> None:
    broken = (classes < 0).nonzero()[:, 0].tolist()
    if broken:
        named = ", ".join(image_name(images.data, index) for index in broken[:5])
        print(f"left out {len(broken)} images that do not decode: {named}", file=sys.stderr)


def _pages(sources: list[str]) -> list[Path]:
    """A page for each image in the run folder, named after it; images of the same name are numbered."""
    pages: list[Path] = []
    for source in sources:
        stem = Path(source).stem if Path(source).exists() else Path(source.replace(":", "-")).name
        page, again = Path("explanations") / f"{stem}.html", 1
        while page in pages:
            again += 1
            page = page.with_name(f"{stem}-{again}.html")
        pages.append(page)
    return pages


COMMANDS = {
    "label": (label, None, "words for every unit"),
    "explain": (
        explain_images,
        "image files, or SPLIT:INDEX of the run's data",
        "evidence for single images",
    ),
    "evaluate": (evaluate, None, "labels against the truth"),
    "report": (report, "image files, or SPLIT:INDEX of the run's data", "the page of a run"),
    "compare": (compare, "run folders; the others are tested against the first", "runs side by side"),
}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subcommands()
    for name, (function, many, told) in COMMANDS.items():
        own = ArgumentParser(description=(function.__doc__ or "").split("\n")[0])
        own.add_argument("--config", action="config", help="YAML file with any of the options below")
        listed = {"explain": "images", "report": "images", "compare": "runs"}.get(name)
        if listed:
            own.add_argument(listed, nargs="*" if name == "report" else "+", help=many)
        if name == "explain":
            own.add_argument("--json", action="store_true", help="print JSON instead of tables")
        own.add_function_arguments(function, skip={listed, "json"} - {None})
        commands.add_subcommand(name, own, help=told)
    return parser


def main(args: list[str] | None = None) -> None:
    """Run the command line; a bad input ends it with one sentence and exit code 1."""
    logging.getLogger("timm").setLevel(logging.ERROR)  # names each broken image; we do so once
    config = _parser().parse_args(args)
    options = config[config.subcommand].as_dict()
    options.pop("config")
    try:
        COMMANDS[config.subcommand][0](**options)
    except InputError as error:
        sys.exit(f"error: {error}")
    except PermissionError as error:
        sys.exit(f"error: no permission for {error.filename}")


if __name__ == "__main__":
    main()
