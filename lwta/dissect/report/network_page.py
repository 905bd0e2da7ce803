"""The page of the network: what it scores, its layers, inputs explained, and a table of all units."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lwta.dissect.evaluate import RATE
from lwta.dissect.evaluation import Evaluation, overview, sentences
from lwta.dissect.report.contents import Site
from lwta.dissect.report.page import ENVIRONMENT
from lwta.dissect.report.references import References, rows


class Judged(NamedTuple):
    """An evaluation as the page shows it: column titles, rows of text, and sentences."""

    titles: list[str]
    rows: list[list[str]]
    said: list[str]


def _judged(found: Evaluation) -> Judged:
    table = overview(found)
    return Judged(list(table), table.to_numpy().tolist(), sentences(found))


def render_network(site: Site, references: References, inputs: Sequence[str]) -> str:
    """HTML of ``index.html``.

    Args:
        site: the run.
        references: names and pages of units and classes.
        inputs: page of each explained image, relative to the site's folder.
    """
    return ENVIRONMENT.get_template("network.html.j2").render(
        run=site.run,
        root="",
        summary=site.summary,
        judged=None if site.score is None else _judged(site.score),
        layers=[
            (layer, None if math.isnan(layer.label_score) else layer.label_score) for layer in site.layers
        ],
        classes=site.classes,
        explained=list(zip(site.explained, inputs, strict=True)),
        units=units_data(site, references),
        count=len(site.table),
    )


def units_data(site: Site, references: References) -> dict[str, list[Any]]:
    """The label table as the page's script reads it.

    Returns:
        ``layers``, pairs of name and folder, and ``rows``: place of the layer, unit, label, runner-up,
        score, correlation on other images, win rate, and what else is to be said of the unit.
    """
    place = {layer: k for k, layer in enumerate(references.folders)}
    columns = ["layer", "unit", "label", "label_2", "score", "held_out_correlation", "win_rate"]
    columns += ["alive", "negative", "reason", "held_out_q_value"]
    return {
        "layers": list(references.folders.items()),
        "rows": [
            [place[layer], unit, label, second, *map(_short, numbers), _note(*told)]
            for (layer, unit, label, second, *numbers), told in (
                (row[:7], row[7:]) for row in rows(site.table, columns)
            )
        ],
    }


def _short(value: float | None) -> float | None:
    """A number of as many digits as the table shows, so that ten thousand rows stay small."""
    return None if value is None else float(f"{value:.6g}")


def _note(alive: bool, negative: bool, reason: str | None, q_value: float | None) -> str:
    if reason is not None:
        return reason
    if not alive:
        return "never won"
    told = ["fires mostly with negative values"] if negative else []
    if q_value is not None and q_value > RATE:
        told.append("label not shown to be better than chance")
    return "; ".join(told)
