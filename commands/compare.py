"""``compare``: runs side by side."""

import sys

import pandas as pd

from lwta.dissect.report.comparison import (
    comparison_frame,
    comparison_text,
    label_quality,
    output_folder,
    write_comparison,
)
from lwta.errors import InputError
from models.compare import describe, judge_all, run_names, split_images
from models.images import image_name
from models.run import Run, load_run
from models.speed import images_per_second


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
    if batch_size < 1 or num_workers < 0:
        raise InputError("batch_size is at least 1 and num_workers at least 0")
    names, folder = run_names(runs), output_folder(out, runs[0])
    opened = [load_run(run, root, device) for run in runs]
    comparison, told = compare_runs(opened, names, split, batch_size, num_workers)
    paths = write_comparison(folder, comparison)
    print(told)
    print(f"wrote {paths[0]} and {paths[1].name}")


def compare_runs(
    opened: list[Run], names: list[str], split: str, batch_size: int, num_workers: int
) -> tuple[pd.DataFrame, str]:
    """The comparison of runs, and what it says."""
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
    return comparison, comparison_text(comparison, [identity for _, identity in labels])
