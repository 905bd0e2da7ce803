"""``evaluate``: how good labels are, beside controls, on images that they were not chosen from."""

import math
import re
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import torch

from commands.judging import Opened, held_out, open_judge, same_clip
from commands.options import JudgeOptions, LabelOptions, NetworkOptions, PassOptions
from commands.question import Question
from commands.subject import Subject, open_subject
from lwta.dissect.evaluate import RATE, Judge, discoveries, judge_layer, means
from lwta.dissect.evaluation import Evaluation, overview, sentences, write_evaluation
from lwta.dissect.final_layer import ClassScore, score_classes
from lwta.dissect.labels import JUDGED, Labels, labels_for, texts_of, write_labels
from lwta.dissect.metrics import TOP
from lwta.dissect.resampling import kept_labels
from lwta.dissect.truth import pairs_of, score_labels, score_pairs
from lwta.errors import InputError
from models.probes import true_presence
from models.shapes import CONCEPTS, concept_pairs


def evaluate(
    network: NetworkOptions,
    judge: JudgeOptions,
    run: PassOptions,
    labels: str | None = None,
    probe: str | None = None,
    top: float = TOP,
    resamples: int = 10,
) -> None:
    """Judge labels on images that none of them was chosen from, always beside controls.

    Prints means over units, with standard errors, of the labels and of three that mean nothing: one constant
    label, the labels shuffled across units, a random concept. Writes evaluation.csv, a row for each unit, and
    evaluation.json beside the labels, and the scores of each label into their table.

    Args:
        labels: folder of the label table, where it is not the network's.
        probe: images to judge on, named as for label; where not given those that label --keep_back left,
            other
            images of the embedded world, or the run's test split.
        top: share of the images that a unit is taken to respond to, for F1 and IoU.
        resamples: draws of other images and of other concepts, to see whether labels stay; 0 leaves it out.
    """
    if resamples < 0:
        raise InputError(f"resamples is at least 0, and {resamples} is not")
    subject = open_subject(network)
    folder = Path(labels) if labels else subject.folder
    named = f"--run {network.run}" if network.run else f"--model {network.model}"
    known = labels_for(folder, subject.identity["weights"], whole=True)
    if known is None:
        raise InputError(f"{folder} has no labels to judge; make them with dissect.py label {named}")
    asked = Question(subject, LabelOptions(**known.options), run)
    if asked.identity != known.identity:
        raise InputError(
            f"what the labels in {folder} were made from has changed since; make them anew with dissect.py "
            f"label {named}"
        )
    images = held_out(subject, known, probe)
    opened: list[Opened] = []

    def source(of: Any) -> Any:
        opened.append(open_judge(subject, of, judge, asked, run.force))
        return opened[0].source

    kind = "max" if asked.readout.kind == "patches" else asked.readout.kind  # the same values
    options = LabelOptions(readout=kind, probe=images.spec, similarity="cos")
    question = Question(subject, options, run, data=images.data, source=source)
    if opened[0].said:
        print(opened[0].said, file=sys.stderr)
    question.observe(subject.layers(list(known.units)))
    found, table = _evaluated(subject, known, asked, question, opened[0], top, resamples)
    write_evaluation(folder, found, table)
    write_labels(folder, known._replace(table=_joined(known.table, table)))
    print(overview(found).to_string(index=False))
    print("\n".join(sentences(found)))
    print(
        f"wrote {folder}/evaluation.csv and evaluation.json, and the scores into labels.parquet and "
        "labels.csv"
    )


def _evaluated(
    subject: Subject,
    known: Labels,
    asked: Question,
    question: Question,
    opened: Opened,
    top: float,
    resamples: int,
) -> tuple[Evaluation, pd.DataFrame]:
    """What is found of the labels, and the table of all units."""
    circular = same_clip(opened.source, asked.source)
    tables, values, seen = [], {}, torch.arange(0)
    for layer, rows in known.table.groupby("layer", sort=False):
        data = question.layer(str(layer))
        assert data.values is not None
        seen = data.seen if opened.looked is None else _both(data.seen, opened.looked)
        judge = Judge(opened.source.names, data.presence, opened.told, opened.share, circular)
        part = judge_layer(rows, data.values, judge, seen, top=top)
        if resamples:
            asked.observe(subject.layers([str(layer)]))  # where its record is gone from the cache
            told = texts_of(rows.sort_values("unit"))
            part = part.assign(**kept_labels(asked.labeler(), asked.layer(str(layer)), told, resamples))
        tables.append(part)
        values[str(layer)] = data.values
    table = discoveries(pd.concat(tables, ignore_index=True))
    found = Evaluation(
        labels=known.identity,
        judge=opened.told,
        circular=circular,
        probe=question.probe.spec,
        images=len(seen),
        units=len(table),
        scored=int(np.isfinite(table["correlation"].to_numpy(dtype=float)).sum()),
        unscored=dict(Counter(_reason(text) for text in table["unscored"].dropna().tolist())),
        discoveries=int((table["q_value"].to_numpy() <= RATE).sum()),
        means=means(table).to_dict("records"),
        kept_images=_mean(table["kept_images"].tolist()) if resamples else None,
        kept_concepts=_mean(table["kept_concepts"].tolist()) if resamples else None,
        classes=_classes(subject, known, asked),
    )
    presence = true_presence(question.probe.data)
    if presence is not None:
        read = {layer: torch.from_numpy(np.array(v[seen.numpy()])) for layer, v in values.items()}
        told = known.table, read, CONCEPTS, presence[seen]
        found = found._replace(
            truth=score_labels(*told), pairs=score_pairs(*told, pairs_of(concept_pairs(), presence[seen]))
        )
    return found, table


def _both(seen: torch.Tensor, looked: torch.Tensor) -> torch.Tensor:
    return seen[torch.isin(seen, looked)]


def _reason(text: str) -> str:
    return re.sub(r"^\d+ images", "too few images", text)


def _mean(shares: list[float]) -> float:
    """Of those that are known; NaN where none is."""
    known = [share for share in shares if not math.isnan(share)]
    return fmean(known) if known else math.nan


def _joined(labels: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The label table with what was found of each label."""
    scores = zip(JUDGED, ("correlation", "auroc", "q_value"), strict=True)
    found = table[["layer", "unit"]].assign(**{name: table[score] for name, score in scores})
    return labels.drop(columns=[c for c in JUDGED if c in labels]).merge(found, "left", ["layer", "unit"])


def _classes(subject: Subject, known: Labels, asked: Question) -> ClassScore | None:
    """Of the layer that gives the logits, where it was labelled and its classes have names."""
    names = subject.class_names
    layers = [layer for layer, units in known.units.items() if names and units == len(names)]
    head = next((layer for layer in layers if _gives_logits(subject, layer)), None)
    if head is None or names is None:
        return None
    source, embedded = asked.source, None
    if source.encoder is not None and source.texts is not None:
        texts = torch.nn.functional.normalize(source.texts, dim=1)
        embedded = source.names, texts, source.encoder.texts(names, source.templates)
    return score_classes(known.table.query("layer == @head"), names, embedded)


@torch.no_grad()
def _gives_logits(subject: Subject, layer: str) -> bool:
    """Whether what a layer returns is what the network returns."""
    returned: list[Any] = []
    handle = subject.model.get_submodule(layer).register_forward_hook(lambda *call: returned.append(call[2]))
    try:
        logits = subject.model(torch.zeros(1, 3, *subject.image_size, device=subject.device))
    finally:
        handle.remove()
    return bool(returned) and returned[-1] is logits
