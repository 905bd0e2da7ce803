"""The page of a comparison: the table, the plot, and the same images through every network."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd

from lwta.dissect.explanation import Explanation
from lwta.dissect.report.comparison import summaries
from lwta.dissect.report.names import file_stem, numbered
from lwta.dissect.report.page import ENVIRONMENT, render_input, write_page
from lwta.dissect.report.pareto import X_LABEL, Y_LABEL, marker_path, pareto

_INPUTS = "inputs"


class ComparedImage(NamedTuple):
    """One image through several networks.

    Attributes:
        name: for the reader.
        truth: name of its class, None where nobody knows.
        explanations: of each run, in the order of the comparison, with their labels.
    """

    name: str
    truth: str | None
    explanations: list[Explanation]


def render_comparison(
    comparison: pd.DataFrame,
    said: Sequence[str],
    images: Sequence[ComparedImage],
    links: Sequence[Sequence[str]],
) -> str:
    """HTML of a comparison, a page of its own.

    Args:
        comparison: a row for each run (:func:`lwta.dissect.report.comparison.comparison_frame`).
        said: what must be said beside the table (:func:`lwta.dissect.report.comparison.sentences`).
        images: shown through each run; may be none.
        links: of each image and run, the file of its page relative to this one.
    """
    rows: list[dict[str, Any]] = comparison.to_dict("records")  # type: ignore[assignment]
    runs, plot, told = [row["run"] for row in rows], pareto(rows), summaries(comparison)
    return ENVIRONMENT.get_template("comparison.html.j2").render(
        runs=runs,
        split=rows[0]["split"],
        images=rows[0]["images"],
        plot=plot,
        markers={point.marker: marker_path(point.marker) for point in plot.points},
        x_label=X_LABEL,
        y_label=Y_LABEL,
        lines=[(cells[0][0], [value for _, value in cells]) for cells in zip(*told, strict=True)],
        said=said,
        pictures=[_shown(image, runs, own) for image, own in zip(images, links, strict=True)],
    )


def _shown(image: ComparedImage, runs: Sequence[str], links: Sequence[str]) -> dict[str, Any]:
    pictures = [e.picture for e in image.explanations]
    first = pictures[0]
    alike = all(
        picture is first or (picture and first and np.array_equal(np.asarray(picture), np.asarray(first)))
        for picture in pictures
    )
    columns = zip(image.explanations, runs, map(quote, links), strict=True)
    shown = {"shown": first if alike else None, "alike": alike, "columns": list(columns)}
    return {"name": image.name, "truth": image.truth} | shown


def write_comparison_page(
    folder: Path, comparison: pd.DataFrame, said: Sequence[str], images: Sequence[ComparedImage]
) -> Path:
    """Write ``index.html`` into a folder, and ``inputs/RUN-IMAGE.html`` for each image and run.

    Args:
        folder: of the comparison; files of other names in it stay.
        comparison, said, images: as :func:`render_comparison`.

    Returns:
        Path of ``index.html``.
    """
    runs = comparison["run"].tolist()
    stems = numbered([f"{file_stem(run)}-{file_stem(image.name)}" for image in images for run in runs])
    files = iter(f"{_INPUTS}/{stem}.html" for stem in stems)
    links = [[next(files) for _ in runs] for _ in images]
    for image, own in zip(images, links, strict=True):
        for explanation, run, link in zip(image.explanations, runs, own, strict=True):
            named = replace(explanation, image=f"{image.name} in {run}")
            write_page(folder / link, render_input(named, home=("All runs", "../index.html")))
    page = folder / "index.html"
    write_page(page, render_comparison(comparison, said, images, links))
    return page
