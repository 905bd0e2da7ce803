"""``find``: units by their score for any text."""

from typing import Any

import pandas as pd

from commands.options import LabelOptions, NetworkOptions, PassOptions
from commands.question import Question
from commands.subject import open_subject
from lwta.dissect.labels import Labels, labels_for
from lwta.errors import InputError


def find(
    network: NetworkOptions,
    labels: LabelOptions,
    run: PassOptions,
    text: str,
    layers: str | list[str] | None = None,
    top: int = 20,
) -> None:
    """List the units that score highest for a text, beside the labels they have.

    The text is scored among the concepts of the labels, as one more.

    Args:
        text: what to look for, such as "a striped thing".
        layers: glob, or list of globs, over layer names; those that are labelled where not given.
        top: units listed.
    """
    text = text.strip()
    if not text:
        raise InputError("there is nothing to look for; give a text")
    subject = open_subject(network)
    known = labels_for(subject.folder, subject.identity["weights"])
    options = LabelOptions(**known.options) if known is not None and not labels.asked() else labels
    question = Question(subject, options, run)
    chosen = list(known.units) if known is not None and layers is None else layers
    sites = subject.layers(chosen)
    question.observe(sites)
    source = question.source
    if text not in source.names:
        source = source.with_word(text)
    rows = [row for layer in sites for row in _scores(question, layer, source, source.names.index(text))]
    if not rows:
        raise InputError(f"no unit of {', '.join(sites)} won often enough to be scored; ask for other layers")
    table = pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable").head(top)
    print(f"{text}: place {table['place'].iloc[0]} of {len(source.names)} among the words of the best unit")
    print(_shown(table, known).to_string(index=False))


def _scores(question: Question, layer: str, source: Any, concept: int) -> list[dict[str, Any]]:
    data = question.layer(layer, source)
    labeler = question.labeler(source, keep=False)
    units = labeler.heard(data).nonzero()[:, 0].tolist()
    if len(units) < 2:
        return []
    scores, _ = labeler.scores(data, units)
    own = scores[:, concept]
    places = (scores > own[:, None]).sum(1) + 1
    return [
        {"layer": layer, "unit": unit, "score": score, "place": place}
        for unit, score, place in zip(units, own.tolist(), places.tolist(), strict=True)
    ]


def _shown(table: pd.DataFrame, known: Labels | None) -> pd.DataFrame:
    table = table.assign(score=table["score"].map("{:.3f}".format))
    if known is None:
        return table
    return table.merge(known.table[["layer", "unit", "label"]], "left", ["layer", "unit"]).fillna(
        {"label": ""}
    )
