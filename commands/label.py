"""``label``: words for every unit."""

import sys
from pathlib import Path

from commands.launch import launch
from commands.options import LabelOptions, NetworkOptions, PassOptions
from commands.question import Question
from commands.subject import open_subject
from lwta.dissect.labels import Labels, read_labels, write_labels
from lwta.errors import InputError


def label(
    network: NetworkOptions,
    labels: LabelOptions,
    run: PassOptions,
    layers: str | list[str] | None = None,
) -> None:
    """Label every unit with the concept most similar to the images on which it won.

    Writes labels.parquet, labels.csv and exemplars.parquet into the run folder, or for a --model into --out.

    Args:
        layers: glob, or list of globs, over layer names; all measured layers where not given.
    """
    share, device = launch(network.device, run)
    subject = open_subject(network, device)
    question = Question(subject, labels, run, share)
    sites = subject.layers(layers)
    if share.rank:
        question.observe(sites)
        return
    found = question.label(sites)
    say_broken(question, next(iter(sites)))
    keep(subject.folder, found)
    for name, rows in found.table.groupby("layer", sort=False):
        reasons = rows["reason"].str.replace(r"on \d+ images, fewer", "on fewer", regex=True)
        without = "".join(f", {n} {reason}" for reason, n in reasons.value_counts().head(3).items())
        labelled = rows["label"].notna().sum()
        common = ", ".join(f"{text} {n}" for text, n in rows["label"].value_counts().head(5).items())
        print(
            f"{name}: {len(rows)} units, {labelled} labelled{without}"
            + (f"; most often {common}" if common else "")
        )
    place = "the class token" if question.readout.kind == "cls" else "any position"
    told = f"wins at {place} of {question.seen(next(iter(sites)))} images of {question.probe.told}"
    print(f"{told}; wrote {subject.folder}/labels.parquet, labels.csv and exemplars.parquet")


def keep(folder: Path, found: Labels) -> Labels:
    """Write labels into a folder, beside those it has of other units where they were made alike."""
    try:
        known = read_labels(folder)
    except InputError:
        print(f"replaced {folder}/labels.parquet, which could not be read", file=sys.stderr)
        known = None
    if known is not None and known.identity == found.identity:
        found = found.judged_as(known).joined(known)
    elif known is not None and (lost := [name for name in known.units if name not in found.units]):
        print(f"replaced the labels of {', '.join(lost)} too: they were made otherwise", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    write_labels(folder, found)
    return found


def say_broken(question: Question, layer: str) -> None:
    """Name the images that did not decode."""
    broken = question.broken(layer)
    if broken:
        print(f"left out {len(broken)} images that do not decode: {', '.join(broken[:5])}", file=sys.stderr)
