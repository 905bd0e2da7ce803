"""Where the concepts of a probe set come from: words and an encoder, embeddings, a table, or classes."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from commands.options import LabelOptions
from commands.probe import Probe
from commands.subject import Subject
from lwta.dissect.concepts import PAIRS, read_concepts, read_pair
from lwta.dissect.embeddings import check_match, image_rows, read_embeddings, sanity
from lwta.dissect.presence import Classes, Cosines, Matrix, Presence
from lwta.dissect.store import digest, write_whole
from lwta.dissect.words import WordList, read_words
from lwta.errors import InputError
from models.probes import probe_classes
from models.run import class_names
from models.shapes import CONCEPTS, concept_pairs
from models.shapes_clip import FOLDER as SHAPES_CLIP
from models.words import LISTS

if TYPE_CHECKING:
    from lwta.dissect.encoder import Encoder

_TABLES = (".csv", ".parquet")


class Source(NamedTuple):
    """Concepts and how they are looked for in images.

    Attributes:
        names: K concepts.
        identity: what labels made from them depend on.
        texts: embeddings (K, E); None for a table and for classes.
        images: embeddings (N, E) or the table (N, K), from file; None where the encoder or the classes tell.
        encoder: looks for words in images, and embeds further words.
        templates: prompts around a word.
    """

    names: list[str]
    identity: dict[str, Any]
    texts: Tensor | None = None
    images: np.ndarray | None = None
    encoder: "Encoder | None" = None
    templates: Sequence[str] = ("{}",)

    @property
    def encodes(self) -> bool:
        """Whether the probe images have to be embedded."""
        return self.texts is not None and self.images is None

    @property
    def width(self) -> int:
        """E."""
        assert self.texts is not None
        return self.texts.shape[1]

    def presence(self, embeddings: np.ndarray | None, classes: Tensor) -> Presence:
        """Of the concepts in the probe images, from their embeddings (N, E) or classes (N,)."""
        seen = self.images if self.images is not None else embeddings
        if self.texts is not None and seen is not None:
            return Cosines(seen, self.texts)
        return Classes(classes, len(self.names)) if seen is None else Matrix(seen)

    def with_word(self, text: str) -> "Source":
        """These concepts and one more, the last."""
        if self.encoder is None or self.texts is None:
            raise InputError(
                "these labels were made without an encoder; to find other words, label with --clip"
            )
        texts = torch.cat([self.texts, self.encoder.texts([text], self.templates)])
        return self._replace(names=[*self.names, text], texts=texts, identity=self.identity | {"word": text})


def open_source(
    subject: Subject, probe: Probe, options: LabelOptions, cache: Path, force: bool = False
) -> Source:
    """The concepts asked for, by default those that suit the data.

    Args:
        subject: whose classes may be the concepts.
        cache: folder for text embeddings.
        force: make those anew.
    """
    is_shapes = probe.own and subject.run is not None and subject.run.data.config["name"] == "shapes"
    asked = options.concepts or ("shapes" if is_shapes else "classes")
    specs = [asked] if isinstance(asked, str) else asked
    clip = options.clip or ("shapes" if is_shapes and {*specs} <= {"shapes", "shapes_pairs"} else None)
    if clip is None and (options.tag or options.templates != "{}"):
        raise InputError("tag and templates are of an open_clip model; name it with --clip")
    single = Path(specs[0]).suffix if len(specs) == 1 else ""
    if single in (*_TABLES, *PAIRS):
        if clip or options.image_embeddings or options.text_embeddings:
            raise InputError(
                f"{specs[0]} tells by itself what the images show; leave --clip away, or give a .txt list"
            )
        return _table(specs[0], probe) if single in _TABLES else _pair(specs[0], probe)

    def classes() -> list[str]:
        return _classes(subject, probe)

    if specs == ["classes"] and not (clip or options.image_embeddings or options.text_embeddings):
        names = class_names(subject.run) if probe.own and subject.run else probe_classes(probe.data) or []
        if len(names) < 2:
            raise InputError(
                f"these images are of {len(names)} classes, and each unit takes its label from several; "
                "give a list with --concepts and what looks for its words with --clip"
            )
        return Source(names, {"concepts": f"classes {digest({'names': names})}"})
    words = read_words(
        specs, {"classes": classes, "shapes": lambda: CONCEPTS, "shapes_pairs": _pairs} | LISTS
    )
    if words.blanks or words.duplicates:
        told = f"{words.blanks} blank and {words.duplicates} repeated"
        print(f"left out {told} of the concepts; {len(words.names)} remain", file=sys.stderr)
    return word_source(words, probe, options, clip, cache, force, subject.device)


def _pairs() -> list[str]:
    return list(concept_pairs().values())


def _classes(subject: Subject, probe: Probe) -> list[str]:
    if probe.own and subject.run is not None:
        return class_names(subject.run)
    names = probe_classes(probe.data) or subject.class_names
    if not names:
        raise InputError("these images have no classes to take words from; give a list with --concepts")
    return names


def _table(path: str, probe: Probe) -> Source:
    names, matrix = read_concepts(path, probe.whole)
    values = probe.rows(matrix.numpy())
    return Source(
        names, {"concepts": digest({"names": names, "values": content_hash(values)})}, images=values
    )


def _pair(path: str, probe: Probe) -> Source:
    names, images, texts = read_pair(path)
    image_rows(images, probe.whole)
    images = probe.rows(images)
    _matched(images, texts)
    concepts = digest({"names": names, "images": content_hash(images), "texts": content_hash(texts)})
    return Source(names, {"concepts": concepts}, torch.from_numpy(np.array(texts, dtype=np.float32)), images)


def word_source(
    words: WordList,
    probe: Probe,
    options: LabelOptions,
    clip: str | None,
    cache: Path,
    force: bool,
    device: str | torch.device,
) -> Source:
    """Words, each side of the cosine from the encoder or from file."""
    if clip is None and not (options.image_embeddings and options.text_embeddings):
        raise InputError(
            "a list of words needs an open_clip model that looks for them: --clip ViT-B-32 --tag openai, "
            "hf-hub:OWNER/NAME, a folder, or shapes for the embedded world; or --image_embeddings and "
            "--text_embeddings"
        )
    names, dropped = words.names, bool(words.blanks or words.duplicates)
    encoder, templates = None, ["{}"]
    identity: dict[str, Any] = {"concepts": digest({"names": names})}
    if clip is not None:
        from lwta.dissect.encoder import load_encoder, read_templates  # open_clip takes a second to import

        known = {*CONCEPTS, *_pairs()}
        if clip == "shapes" and (foreign := [name for name in names if name not in known]):
            print(
                f"warning: the CLIP that ships knows the {len(CONCEPTS)} words of the embedded world and "
                f"nothing else, such as {foreign[0]!r}; labels by other words mean little",
                file=sys.stderr,
            )
        templates = read_templates(options.templates)
        encoder = load_encoder(str(SHAPES_CLIP) if clip == "shapes" else clip, options.tag, device)
        identity |= {"clip": encoder.identity(), "templates": " | ".join(templates)}
    images = None
    if options.text_embeddings:
        found = read_embeddings(options.text_embeddings, "text")
        if found.names is None and (dropped or len(found.vectors) != len(names)):
            raise InputError(
                f"{options.text_embeddings} has {len(found.vectors)} rows for {len(names)} different "
                "concepts; it needs a row for each line, and the list no blank or repeated line"
            )
        if found.names is not None and found.names != names:
            raise InputError(
                f"{options.text_embeddings} names other concepts than the list; give its own list"
            )
        texts = torch.from_numpy(np.array(found.vectors, dtype=np.float32))
        if encoder is not None:
            _same_encoder(encoder, names, templates, texts, options.text_embeddings)
        identity["text_embeddings"] = content_hash(found.vectors)
    else:
        assert encoder is not None
        texts = embedded_texts(encoder, names, templates, identity, cache, force)
    if options.image_embeddings:
        images = read_embeddings(options.image_embeddings, "image").vectors
        image_rows(images, probe.whole)
        images = probe.rows(images)
        identity["image_embeddings"] = content_hash(images)
        _matched(images, texts.numpy())
    return Source(names, identity, texts, images, encoder, templates)


def embedded_texts(
    encoder: "Encoder",
    names: list[str],
    templates: Sequence[str],
    identity: dict[str, Any],
    cache: Path,
    force: bool = False,
) -> Tensor:
    """Embeddings (K, E) of words, made once and kept."""
    path = cache / "texts" / f"{digest(identity)}.npy"
    try:
        kept = np.load(path)
        if len(kept) == len(names) and not force:
            return torch.from_numpy(kept)
    except (OSError, ValueError):
        pass  # not there yet, or cut short: made anew
    texts = encoder.texts(names, templates)

    def write(part: Path) -> None:
        with part.open("wb") as file:  # given a path, numpy would add its own ending
            np.save(file, texts.numpy())

    write_whole(path, write)
    return texts


def _same_encoder(
    encoder: "Encoder", names: list[str], templates: Sequence[str], texts: Tensor, file: str
) -> None:
    """Refuse or doubt text embeddings that another model made than the one that embeds the images."""
    own = encoder.texts(names[:20], templates)
    check_match(own, texts)
    cosine = float(torch.nn.functional.cosine_similarity(own, texts[:20]).mean())
    if cosine < 0.5:
        print(
            f"warning: the rows of {file} are hardly what {encoder.name} makes of these words (mean cosine "
            f"{cosine:.2f}); it seems that another model made them, and then the labels mean nothing",
            file=sys.stderr,
        )


def _matched(images: np.ndarray, texts: np.ndarray) -> None:
    check_match(images, texts)
    warning = sanity(images, texts)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)


def content_hash(values: np.ndarray) -> str:
    """Hash of an array, read in blocks: it may be mapped."""
    found = hashlib.sha256(str((values.shape, str(values.dtype))).encode())
    for start in range(0, len(values), 4096):
        found.update(np.ascontiguousarray(values[start : start + 4096]).data)
    return found.hexdigest()[:16]
