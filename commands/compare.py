"""``compare``: runs side by side."""

import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd

from commands.options import NetworkOptions
from commands.side_by_side import SideBySide
from commands.subject import open_subject
from lwta.dissect.report import write_comparison_page
from lwta.dissect.report.comparison import (
    comparison_frame,
    comparison_text,
    label_quality,
    output_folder,
    sentences,
    write_comparison,
)
from lwta.errors import InputError
from models.compare import describe, run_names
from models.images import image_name
from models.judge import judge_all, split_images
from models.run import Run
from models.speed import images_per_second


def compare(
    runs: list[str],
    images: Sequence[str] = (),
    split: str = "test",
    root: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    out: str | None = None,
    device: str = "auto",
) -> None:
    """Compare labelled runs on the same images: accuracy, active units, speed, labels.

    Prints a table and writes comparison.csv, comparison.png, and a page, index.html, which also shows the
    same images through every network.

    Args:
        runs: folders made by train.py fit and labelled by dissect.py label; the others are tested
            against the first.
        images: explained by every network: image files, folders of them, or SPLIT:INDEX of the runs' data;
            the first four of the split where not given.
        split: of the runs' data: train, validate, test, or any split by its name.
        root: data folder of all runs, where it has moved since training.
        batch_size: images per pass, also when speed is measured.
        num_workers: loader processes.
        out: folder to write into; "comparison" beside the first run where not given.
        device: cpu, cuda, cuda:1 ...; auto takes the GPU where there is one.
    """
    if batch_size < 1 or num_workers < 0:
        raise InputError("batch_size is at least 1 and num_workers at least 0")
    names, folder = run_names(runs), output_folder(out, runs[0])
    subjects = [open_subject(NetworkOptions(run=run, root=root, device=device)) for run in runs]
    opened = [(subject, subject.run) for subject in subjects if subject.run]
    shown = SideBySide(opened, images, split)
    comparison, identities, _ = _compared([run for _, run in opened], names, split, batch_size, num_workers)
    explained = list(shown.explained())  # before anything is replaced
    paths = write_comparison(folder, comparison)
    page = write_comparison_page(folder, comparison, sentences(comparison, identities), explained)
    print(comparison_text(comparison, identities))
    print(f"wrote {paths[0]}, {paths[1].name} and {page.name}")


def compare_runs(
    opened: list[Run], names: list[str], split: str, batch_size: int, num_workers: int
) -> tuple[pd.DataFrame, str, list[int]]:
    """The comparison of runs, what it says, and the images that the first gets wrong."""
    comparison, identities, wrong = _compared(opened, names, split, batch_size, num_workers)
    return comparison, comparison_text(comparison, identities), wrong


def _compared(
    opened: list[Run], names: list[str], split: str, batch_size: int, num_workers: int
) -> tuple[pd.DataFrame, list[dict[str, Any]], list[int]]:
    """The comparison of runs, what the labels of each were made from, and what the first gets wrong."""
    labels = [label_quality(run.folder, run.weights) for run in opened]
    images = [split_images(run, split) for run in opened]
    judged = judge_all(opened, images, batch_size, num_workers)
    broken = (judged[0].targets < 0).nonzero()[:, 0].tolist()
    if broken:
        named = ", ".join(image_name(images[0].data, index) for index in broken[:5])
        print(f"left out {len(broken)} images that do not decode: {named}", file=sys.stderr)
    speeds = images_per_second(opened, images, batch_size)
    comparison = comparison_frame(
        {"run": name, "split": split} | describe(run, seen, judged[0]) | speed | quality
        for name, run, seen, speed, (quality, _) in zip(names, opened, judged, speeds, labels, strict=True)
    )
    wrong = (judged[0].targets >= 0) & ~judged[0].right["argmax"]
    return comparison, [identity for _, identity in labels], wrong.nonzero()[:, 0].tolist()
