"""The page of one unit: its words, the images on which it fired, and its company."""

from collections.abc import Callable
from typing import NamedTuple

from lwta.dissect.evaluate import RATE
from lwta.dissect.labels import NEXT
from lwta.dissect.portrait import Histogram
from lwta.dissect.report.contents import Exemplar, LayerPage, UnitPage
from lwta.dissect.report.page import ENVIRONMENT, embedded
from lwta.dissect.report.references import Reference, References
from lwta.dissect.report.tint import tint

PLOT = (360, 150)  # width and height of the bars of a histogram, in units of its drawing


class Bar(NamedTuple):
    """A bar of a histogram: its box in the drawing, and whether its values are negative."""

    x: float
    y: float
    width: float
    height: float
    negative: bool


def render_unit(
    page: UnitPage,
    run: str,
    layer: LayerPage,
    references: References,
    show: Callable[[int], str],
) -> str:
    """HTML of a unit, to be written to its place below the site's folder.

    Args:
        page: the unit.
        run: name of the run.
        layer: of the unit.
        references: names and pages of units and classes.
        show: probe index -> the file of that image, relative to the site's folder.
    """
    name, unit = page.row["layer"], page.row["unit"]
    before, after = references.around(name, unit)
    return ENVIRONMENT.get_template("unit.html.j2").render(
        run=run,
        root="../../",
        row=page.row,
        labels=_labels(page),
        competitors=layer.competitors,
        readout=layer.readout,
        before=before,
        after=after,
        has_maps=any(e.map is not None for e in (*page.top, *page.middle, *page.random)),
        kinds=[
            (title, told, [(exemplar, show(exemplar.image), _tinted(exemplar)) for exemplar in exemplars])
            for title, told, exemplars in (
                ("Where it fired hardest", "of all probe images", page.top),
                ("In the middle", "around the median of the values at which it fired", page.middle),
                ("At random", "drawn from all images on which it fired", page.random),
            )
            if exemplars
        ],
        histogram=page.histogram,
        bars=bars(page.histogram),
        told=histogram_text(page.histogram),
        plot=PLOT,
        rivals=[(references.unit(name, rival), share) for rival, share in page.rivals],
        pushes=[(text, references.class_page(text), value) for text, value in page.pushes],
        nearest=_nearest(page, references),
        rate=RATE,
    )


def _labels(page: UnitPage) -> list[tuple[str, float]]:
    """Label and runners-up with their scores."""
    ends = ["", *(f"_{place}" for place in range(2, NEXT + 2))]
    pairs = [(page.row[f"label{end}"], page.row[f"score{end}"]) for end in ends]
    return [(label, score) for label, score in pairs if label is not None]


def _nearest(page: UnitPage, references: References) -> list[tuple[Reference, float]]:
    return [(references.unit(layer, unit), cosine) for layer, unit, cosine in page.nearest]


def _tinted(exemplar: Exemplar) -> str | None:
    return None if exemplar.map is None else embedded(tint(exemplar.map))


def bars(histogram: Histogram) -> list[Bar]:
    """The bars of a histogram, the highest as high as the drawing; none where nothing was counted."""
    width, height = PLOT
    edges, counts = histogram.edges.tolist(), histogram.counts.tolist()
    most, span = max(counts, default=0), edges[-1] - edges[0]
    if not most or not span:
        return []
    return [
        Bar(
            x=width * (low - edges[0]) / span,
            y=height * (1 - count / most),
            width=width * (high - low) / span,
            height=height * count / most,
            negative=low + high < 0,
        )
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
        if count
    ]


def histogram_text(histogram: Histogram) -> str:
    """What a histogram shows, in words."""
    edges, counts = histogram.edges.tolist(), [int(count) for count in histogram.counts.tolist()]
    if not any(counts):
        return "It fired on none of the images surveyed."
    mode = counts.index(max(counts))
    found = [place for place, count in enumerate(counts) if count]
    low, high = edges[found[0]], edges[found[-1] + 1]
    images = f"{sum(counts):,} image{'' if sum(counts) == 1 else 's'}"
    said = (
        f"Values on the {images} surveyed on which it fired: from {low:.3g} to {high:.3g}, "
        f"most often between {edges[mode]:.3g} and {edges[mode + 1]:.3g} ({counts[mode]:,})."
    )
    return said.replace("-", "\N{MINUS SIGN}")
