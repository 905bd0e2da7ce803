"""What labels are judged on: images that none of them was chosen from, and what tells what these show."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from commands.options import JudgeOptions, LabelOptions
from commands.probe import Probe
from commands.question import Question
from commands.sources import Source, content_hash, word_source
from commands.subject import Subject
from lwta.dissect.annotations import read_annotations
from lwta.dissect.evaluation import FACTORS
from lwta.dissect.judged_layer import FEWEST
from lwta.dissect.labels import Labels, plain
from lwta.dissect.store import digest
from lwta.dissect.truth import pairs_of
from lwta.dissect.words import WordList
from lwta.errors import InputError
from models.images import image_name
from models.probes import probe_classes, share_images, split_back, split_part, true_presence
from models.run import class_names
from models.shapes import CONCEPTS, HELD_OUT, concept_pairs


class Opened(NamedTuple):
    """A judge before the images are looked at.

    Attributes:
        source: opens its concepts for a probe set.
        told: for the reader.
        share: of :class:`lwta.dissect.judged_layer.Judge`.
        looked: int64, the images that it can tell of; None for all.
        said: what the reader must know of it.
    """

    source: Source
    told: str
    share: float | None = None
    looked: Tensor | None = None
    said: str = ""


class HeldOut(NamedTuple):
    """Images that no label was chosen from.

    Attributes:
        spec: what they are called.
        data: the images.
        own: whether they are of the run's own data.
    """

    spec: str
    data: Dataset
    own: bool


def held_out(
    subject: Subject, known: Labels, probe: str | None, probe_args: dict[str, Any] | None = None
) -> HeldOut:
    """The images to judge on: those asked for, or else those that label kept back, other images of the
    embedded world, or the run's test split.

    Raises:
        InputError: where labels were chosen from some of them, or there are none to take.
    """
    options = LabelOptions(**known.options)
    spec = options.probe or "validate"
    whole = subject.probe(spec, options.probe_args)
    if probe is None and options.keep_back:
        kept = split_back(whole, options.keep_back)[1]
        return HeldOut(f"{spec} that label kept back", kept, subject.is_split(spec))
    used = split_back(whole, options.keep_back)[0] if options.keep_back else whole
    asked = probe or _other(subject, used)
    if asked is None:
        raise InputError(
            f"labels were chosen from all of {spec}; name other images with --probe, or keep some back with "
            "dissect.py label --keep_back 0.5"
        )
    alike = split_part(asked)[0] == split_part(spec)[0]
    data = subject.probe(asked, probe_args or (options.probe_args if alike else {}))
    if share_images(used, data):
        raise InputError(
            f"labels were chosen from {spec}, which shares images with {asked}; name others with --probe, "
            "or keep some back with dissect.py label --keep_back 0.5"
        )
    return HeldOut(asked, data, subject.is_split(asked))


def _other(subject: Subject, used: Dataset) -> str | None:
    """Other images of a run's data than those that labels were chosen from."""
    if subject.run is None:
        return None
    asked = HELD_OUT if subject.run.data.config["name"] == "shapes" else "test"
    return None if share_images(used, subject.probe(asked)) else asked


def open_judge(
    subject: Subject, probe: Probe, own: bool, options: JudgeOptions, asked: Question, force: bool = False
) -> Opened:
    """What tells which of the held-out images show a concept.

    Args:
        subject: whose classes may be the concepts.
        probe: the held-out images.
        own: whether they are of the run's own data.
        options: what was asked for.
        asked: the question that the labels answer.
        force: make embeddings of words anew.
    """
    if options.annotations and options.judge:
        raise InputError("give either annotations or a judge: each says by itself what the images show")
    if not 0 < options.shown < 1:
        raise InputError(f"shown is a share of the images, between 0 and 1, and {options.shown:g} is not")
    if options.judge:
        return _clip(subject, probe, options, asked, force)
    if options.judge_tag or options.judge_templates != "{}":
        raise InputError("judge_tag and judge_templates are of a --judge; name it")
    if options.annotations:
        return _annotated(probe, options.annotations, asked.source.names)
    words = {name.casefold() for name in asked.source.names}
    presence = true_presence(probe.data)
    if presence is not None:
        return Opened(_factors(presence, asked.source.names), FACTORS)
    classes = class_names(subject.run) if own and subject.run else probe_classes(probe.data) or []
    if len(classes) >= 2 and words <= {name.casefold() for name in classes}:
        return Opened(
            Source(classes, {"concepts": f"classes {digest({'names': classes})}"}), "the images' classes"
        )
    raise InputError(
        f"nothing tells which of the images show {asked.source.names[0]!r} and the other concepts; give a "
        "table with --annotations, or another CLIP than the labels' with --judge"
    )


def _factors(presence: Tensor, words: list[str]) -> Source:
    """The concepts of the embedded world, and their pairs where labels may be pairs."""
    pairs = pairs_of(concept_pairs(), presence)
    if {*pairs.names}.isdisjoint(words):
        return Source(CONCEPTS, {"concepts": "factors"}, images=presence.numpy())
    both = torch.cat([presence, pairs.presence], 1)
    return Source(CONCEPTS + pairs.names, {"concepts": "factors and pairs"}, images=both.numpy())


def _annotated(probe: Probe, path: str, words: list[str]) -> Opened:
    """Annotations as a judge.

    Args:
        words: that the labels were chosen from.
    """
    names = [image_name(probe.data, i) for i in range(len(probe))]
    found = read_annotations(path, names)
    looked = np.flatnonzero(np.isfinite(found.presence).sum(axis=1))
    if len(looked) < 2 * FEWEST:
        raise InputError(
            f"{path} tells of {len(looked)} of the {len(names)} images, too few to judge by; annotate more"
        )
    told = digest({"names": found.names, "values": content_hash(found.presence)})
    missing = [names[i] for i in sorted({*range(len(names))} - {*looked.tolist()})]
    offered = {plain(word) for word in words}
    unknown = [name for name in found.names if plain(name) not in offered]
    left = [
        (f"left out {len(missing):,} images without annotation", missing),
        (f"{path} tells of {len(found.others):,} images that are not judged on", found.others),
        (f"no label was chosen from {len(unknown):,} concepts of {path}, which serve as controls", unknown),
    ]
    said = "\n".join(f"{what}, such as {some[0]!r}" for what, some in left if some)
    source = Source(found.names, {"concepts": told}, images=found.presence)
    return Opened(source, f"the annotations of {path}", None, torch.from_numpy(looked), said)


def _clip(subject: Subject, probe: Probe, options: JudgeOptions, asked: Question, force: bool) -> Opened:
    words = WordList(asked.source.names, 0, 0)
    labels = LabelOptions(tag=options.judge_tag, templates=options.judge_templates)
    source = word_source(words, probe, labels, options.judge, asked.cache, force, subject.device)
    assert source.encoder is not None
    told = f"the CLIP {source.encoder.name}"
    if asked.source.texts is not None and asked.source.encoder is None:
        told += ", of which it is not known whether it also chose the labels,"
    return Opened(source, told, options.shown)


def generated_source(probe: Probe) -> Source:
    """The concepts that images were generated of: the names of their folders, ``red_star`` for red star."""
    names = [name.replace("_", " ") for name in probe_classes(probe.data) or []]
    if not names:
        raise InputError(
            f"{probe.spec} holds no folder for each concept; put the images of red star into red_star"
        )
    return Source(names, {"concepts": f"generated {digest({'names': names})}"})


def same_clip(judge: Source, asked: Source) -> bool:
    """Whether a judge's words were embedded by the model that chose the labels."""

    def weights(source: Source) -> str:
        return str(source.identity.get("clip", "")).rpartition(" ")[2]

    return bool(weights(judge)) and weights(judge) == weights(asked)
