"""What the commands are asked, in groups that several of them share."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class NetworkOptions:
    """Which network.

    Args:
        run: folder made by train.py fit.
        model: a network without a run: timm:NAME, torchvision:NAME, or package.module:function.
        weights: of that model: a file, or random; the library's own where not given.
        model_args: arguments of the function or architecture.
        image_size: side of the square input of a model that takes any.
        root: data folder of a run, where it has moved since training.
        out: folder for what is written; the run's, or dissections/NAME.
        device: cpu, cuda, cuda:1 ...; auto takes the GPU where there is one.
        winners_only: compute what reads a competition from its winners alone, where that is measured to be
            faster; says where.
    """

    run: str | None = None
    model: str | None = None
    weights: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    root: str | None = None
    out: str | None = None
    device: str = "auto"
    winners_only: bool = False


@dataclass(frozen=True)
class LabelOptions:
    """How units are labelled.

    Args:
        readout: cls, mean, max, or patches (a token's best patch, looked at alone); what the network's head
            reads where not given.
        probe: images to label on: a split of the run's data (train, validate, test, or by its name), a
            folder, a .tar, a folder of parquet files, or a timm dataset as NAME:SPLIT; each also as
            PROBE[:2000]. The run's validation split where not given.
        probe_args: further arguments of timm's dataset factory, such as input_key.
        keep_back: share of those images, drawn from all over, that no label is chosen from; evaluate judges
            the labels on them.
        concepts: lists to choose words from, together: a .txt file (a word per line), classes, shapes,
            imagenet, imagenet12k, imagenet22k, english:20000; or one file that says by itself what the
            images show (.csv or .parquet table with a row per image, .npz or .safetensors of embeddings).
            Where not given: shapes for its own data, else classes.
        clip: open_clip model that looks for the words: an architecture with its tag, hf-hub:OWNER/NAME,
            a folder, or shapes. Where not given: shapes for its own data.
        tag: weights of the architecture, by open_clip's name or a file.
        templates: prompts around a word, such as "a photo of a {}."; or open_clip's sets simple and imagenet.
        image_embeddings: file with a row per probe image, in place of the encoder.
        text_embeddings: file with a row per word, in place of the encoder.
        similarity: soft_wpmi, wpmi, rank_reorder, cos, cos_cubed, or jensen_shannon.
        prior: how much a concept counts less where other units show it too, 0 to 1; as published where not
            given.
    """

    readout: str | None = None
    probe: str | None = None
    probe_args: dict[str, Any] = field(default_factory=dict)
    keep_back: float = 0.0
    concepts: str | list[str] | None = None
    clip: str | None = None
    tag: str | None = None
    templates: str | list[str] = "{}"
    image_embeddings: str | None = None
    text_embeddings: str | None = None
    similarity: str = "soft_wpmi"
    prior: float | None = None

    def asked(self) -> dict[str, Any]:
        """Those that were given, by name."""
        defaults = LabelOptions()
        return {k: v for k, v in asdict(self).items() if v != getattr(defaults, k)}

    @staticmethod
    def names() -> list[str]:
        """The options by name."""
        return [f.name for f in fields(LabelOptions)]


@dataclass(frozen=True)
class JudgeOptions:
    """What tells which of the images show a concept.

    Args:
        annotations: .csv or .parquet table: a column image and one for each concept (0 to 1), or the columns
            image, concept and present. Where neither it nor a judge is given: the factors of the embedded
            world, or the classes of the images where labels are classes.
        judge: open_clip model, another than the one that chose the labels: an architecture with its tag,
            hf-hub:OWNER/NAME, a folder, or shapes.
        judge_tag: weights of the architecture, by open_clip's name or a file.
        judge_templates: prompts around a word.
        shown: images of the highest cosine that a judge takes to show a concept, as a share of all.
        generated: folder with a folder of images for each concept, as a generator made them; CoSy's AUC and
            MAD of these against the images judged on come beside the others.
    """

    annotations: str | None = None
    judge: str | None = None
    judge_tag: str | None = None
    judge_templates: str | list[str] = "{}"
    shown: float = 0.05
    generated: str | None = None


@dataclass(frozen=True)
class EvidenceOptions:
    """What is asked about a decision.

    Args:
        layers: glob, or list of globs, over layer names; the layers that compete where not given, or the last
            where none does.
        target: class to explain, by name or number; the predicted one where not given.
        against: class to set it against ("why cat and not dog"); the mean over all classes where not given.
        top: units of each layer that are silenced and excluded one by one, those that contribute most.
        samples: how often the winners are drawn as well, to see how stable the decision is.
        silence: LAYER:UNIT, or a list of them, to run the image once more without.
        winner: LAYER:BLOCK=UNIT, or a list of them, to run the image once more with another unit winning.
    """

    layers: str | list[str] | None = None
    target: str | None = None
    against: str | None = None
    top: int = 16
    samples: int = 0
    silence: str | list[str] | None = None
    winner: str | list[str] | None = None


@dataclass(frozen=True)
class PassOptions:
    """How images are run through networks.

    Args:
        batch_size: images per pass.
        num_workers: loader processes.
        devices: processes, each with a device of its own.
        num_nodes: machines, started alike on each; they share the cache folder.
        cache: folder for what is expensive to make; lwta in the user's cache folder where not given.
        save_every: seconds between two states of the pass, from which it goes on where it was killed.
        force: make everything anew.
    """

    batch_size: int = 128
    num_workers: int = 0
    devices: int = 1
    num_nodes: int = 1
    cache: str | None = None
    save_every: float = 30.0
    force: bool = False
