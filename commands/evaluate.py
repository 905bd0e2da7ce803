"""``evaluate``: how good labels are, beside controls, on images that they were not chosen from."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from commands.class_units import class_units
from commands.judging import HeldOut, Opened, generated_source, held_out, open_judge, same_clip
from commands.label import say_broken
from commands.options import JudgeOptions, LabelOptions, NetworkOptions, PassOptions
from commands.probe import Probe
from commands.question import Question
from commands.subject import Subject, open_subject
from lwta.dissect.evaluate import RATE, discoveries, means
from lwta.dissect.evaluation import Evaluation, overview, sentences, told_reasons, write_evaluation
from lwta.dissect.judged_layer import CONTROLS, Judge
from lwta.dissect.label_scores import judge_generated, judge_layer
from lwta.dissect.labelers import LayerData
from lwta.dissect.labels import JUDGED, Labels, labels_for, plain, read_labels, texts_of, write_labels
from lwta.dissect.metrics import GENERATED, REPORTED
from lwta.dissect.presence import rows_of
from lwta.dissect.resampling import KEPT, kept_labels
from lwta.dissect.responses import TOP, check_top
from lwta.dissect.store import digest
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
    probe_args: dict[str, Any] | None = None,
    top: float = TOP,
    resamples: int = 10,
) -> None:
    """Judge labels on images that none of them was chosen from, always beside controls.

    Prints means over units, with standard errors, of the labels and of three that mean nothing: one constant
    label, the labels shuffled across units, a random concept. Writes evaluation.csv, a row for each unit, and
    evaluation.json beside the labels, and the scores of each label into their table; into --out, with a table
    of labels of its own, where --labels says where they are.

    Args:
        labels: folder of the label table, where it is not the network's (--run, or --out).
        probe: images to judge on, named as for label; where not given those that label --keep_back left,
            other images of the embedded world, or the run's test split.
        probe_args: further arguments of timm's dataset factory, as for label.
        top: share of the images that a unit is taken to respond to, for F1 and IoU.
        resamples: draws of other images and of other concepts, to see whether labels stay; 0 leaves it out.
    """
    if resamples < 0:
        raise InputError(f"resamples is at least 0, and {resamples} is not")
    check_top(top)
    subject = open_subject(network)
    folder = Path(labels) if labels else subject.folder
    out = subject.folder if labels and network.out else folder
    known, asked = _labels(subject, folder, network, run)
    images = held_out(subject, known, probe, probe_args)
    bench = _bench(subject, known, asked, judge, run, images, bool(resamples))
    table = discoveries(pd.concat(_judged(bench, top, resamples), ignore_index=True))
    found = _found(bench, table)
    if not (found.scored or found.classes or (found.truth and found.truth.selective)):
        told = told_reasons(found.unscored)
        raise InputError(f"no label can be judged on {images.spec}, and nothing was written: {told}")
    every = read_labels(folder)  # layers of which only some units are labelled were not judged, and stay
    if every is None or every.identity != known.identity:
        raise InputError(f"the labels in {folder} were replaced while they were judged; judge them again")
    write_evaluation(out, found, table)
    write_labels(out, every._replace(table=_joined(every.table, table)))
    print(overview(found).to_string(index=False))
    print("\n".join(sentences(found)))
    print(f"wrote {out}/evaluation.csv, evaluation.json, and the scores into labels.parquet and labels.csv")


class _Bench(NamedTuple):
    """What is judged, on what, and by what.

    Attributes:
        subject: the network.
        known: labels of whole layers.
        asked: the question that they answer.
        held: images that none was chosen from, with the judge's concepts.
        opened: the judge.
        generated: images that a generator made of concepts; None without.
    """

    subject: Subject
    known: Labels
    asked: Question
    held: Question
    opened: Opened
    generated: Question | None

    def seen(self, held: LayerData) -> Tensor:
        """The images that decode and that the judge can tell of."""
        looked = self.opened.looked
        return held.seen if looked is None else held.seen[torch.isin(held.seen, looked)]


def _labels(
    subject: Subject, folder: Path, network: NetworkOptions, run: PassOptions
) -> tuple[Labels, Question]:
    """The labels to judge and the question that they answer.

    Raises:
        InputError: where there are none, or what they were made from is no longer the same.
    """
    named = f"--run {network.run}" if network.run else f"--model {network.model}"
    known = labels_for(folder, subject.identity["weights"], whole=True)
    if known is None:
        raise InputError(
            f"{folder} has no labels to judge; make them with dissect.py label {named}"
            + (f" --out {folder}, or name the folder of others with --labels" if network.out else "")
        )
    asked = Question(subject, LabelOptions(**known.options), run)
    if asked.identity != known.identity:
        raise InputError(
            f"what the labels in {folder} were made from has changed since; make them anew with dissect.py "
            f"label {named}"
        )
    return known, asked


def _bench(
    subject: Subject,
    known: Labels,
    asked: Question,
    judge: JudgeOptions,
    run: PassOptions,
    images: HeldOut,
    again: bool,
) -> _Bench:
    """Run the network over the images to judge on.

    Args:
        again: also over those that labels came from, where what was found there is gone from the cache.
    """
    kind = "max" if asked.readout.kind == "patches" else asked.readout.kind  # the same values
    options = LabelOptions(readout=kind, probe=images.spec, similarity="cos")
    opened = open_judge(subject, Probe(subject, options, images.data), images.own, judge, asked, run.force)
    if opened.said:
        print(opened.said, file=sys.stderr)
    held = Question(subject, options, run, data=images.data, source=opened.source)
    generated = None
    if judge.generated:
        if not Path(judge.generated).is_dir():
            raise InputError(f"there is no folder {judge.generated} of generated images")
        options = LabelOptions(readout=kind, probe=judge.generated, similarity="cos")
        source = generated_source(Probe(subject, options))
        generated = Question(subject, options, run, source=source)
        _say_not_generated(known, source.names, judge.generated)
    sites = subject.layers(list(known.units))
    for question in (held, generated, asked if again else None):
        if question is not None:
            question.observe(sites)
    say_broken(held, next(iter(sites)))
    return _Bench(subject, known, asked, held, opened, generated)


def _say_not_generated(known: Labels, names: list[str], folder: str) -> None:
    """Say which labels no images were generated of, and which images are of no label."""
    made = {plain(name) for name in names}
    labels = [label for label in texts_of(known.table) if label is not None]
    without = [label for label in labels if plain(label) not in made]
    if without:
        print(
            f"{folder} has no folder for the label of {len(without):,} units, such as {without[0]!r}",
            file=sys.stderr,
        )
    if idle := [name for name in names if plain(name) not in {*map(plain, labels)}]:
        print(f"{folder} has {len(idle):,} folders of no label, such as {idle[0]!r}", file=sys.stderr)


def _judged(bench: _Bench, top: float, resamples: int) -> list[pd.DataFrame]:
    """A row for each unit, layer by layer."""
    tables = []
    for layer, rows in bench.known.table.groupby("layer", sort=False):
        held = bench.held.layer(str(layer))
        assert held.values is not None
        judge = Judge(bench.opened.source.names, held.presence, bench.opened.share)
        seen = bench.seen(held)
        part = judge_layer(rows, held.values, judge, seen, top=top)
        if bench.generated is not None:
            made = bench.generated.layer(str(layer))
            assert made.values is not None
            shown, names = made.presence.part(made.seen).numpy() > 0, bench.generated.source.names
            values = held.values[seen.numpy()], made.values[made.seen.numpy()]
            part = part.join(judge_generated(rows, *values, names, shown))
        if resamples:
            told, data = texts_of(rows.sort_values("unit")), bench.asked.layer(str(layer))
            part = part.join(kept_labels(bench.asked.labeler(), data, told, resamples))
        tables.append(part)
    return tables


def _found(bench: _Bench, table: pd.DataFrame) -> Evaluation:
    """What is said of all labels."""

    def found_true(start: str) -> int:
        return int((table[f"{start}q_value"].to_numpy() <= RATE).sum())

    layers = {layer: bench.held.layer(layer) for layer in bench.known.units}
    seen = bench.seen(next(iter(layers.values())))
    generated = GENERATED if bench.generated is not None else ()
    kept = [name for name in KEPT if name in table and not table[name].isna().to_numpy().all()]
    found = Evaluation(
        labels=bench.known.identity,
        judge=bench.opened.told,
        judge_identity=_identity(bench),
        circular=same_clip(bench.opened.source, bench.asked.source),
        probe=bench.held.probe.spec,
        images=len(seen),
        units=len(table),
        scored=int(np.isfinite(table["correlation"].to_numpy(dtype=float)).sum()),
        unscored=_unscored(table, "unscored"),
        discoveries=found_true(""),
        by_control={control: found_true(f"{control}_") for control in CONTROLS},
        means=means(table, (*REPORTED, *generated, *kept)).to_dict("records"),
        classes=class_units(bench.subject, bench.known, bench.asked),
        unscored_generated=_unscored(table, "generated_unscored") if generated else None,
    )
    presence = true_presence(bench.held.probe.data)
    if presence is None:
        return found
    read = {layer: rows_of(held.values, seen) for layer, held in layers.items() if held.values is not None}
    told = bench.known.table, read, CONCEPTS, presence[seen]
    pairs = pairs_of(concept_pairs(), presence[seen])
    return found._replace(truth=score_labels(*told), pairs=score_pairs(*told, pairs))


def _unscored(table: pd.DataFrame, column: str) -> dict[str, int]:
    """Units that are not judged by reason, which names some of the labels where it lies with these."""
    without = table.dropna(subset=[column])
    reasons = without[column].str.replace(r"^\d+ images", "too few images", regex=True)
    found = {}
    for reason, part in without.groupby(reasons, sort=False):
        words = part["label"].dropna().unique().tolist()
        of_label = str(reason).startswith(("the label", "too few", "no images")) and words
        said = ", ".join(map(repr, words[:3])) + (", ..." if len(words) > 3 else "")
        found[f"{reason} ({said})" if of_label else str(reason)] = len(part)
    return found


def _identity(bench: _Bench) -> str:
    """Hash of what the judge says and of which images."""
    told = {"images": bench.held.probe.identity, "shown": bench.opened.share}
    return digest(bench.held.source.identity | told)


def _joined(labels: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The label table with what was found of each label."""
    scores = zip(JUDGED, ("correlation", "auroc", "q_value"), strict=True)
    found = table[["layer", "unit"]].assign(**{name: table[score] for name, score in scores})
    return labels.drop(columns=[c for c in JUDGED if c in labels]).merge(found, "left", ["layer", "unit"])
