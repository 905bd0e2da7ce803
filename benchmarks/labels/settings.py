"""What the networks of each study are labelled from, and what judges them."""

from hashlib import sha256
from pathlib import Path

from benchmarks.accuracy.study import Study
from benchmarks.labels import photographs
from benchmarks.labels.measure import Setting
from commands.sources import Source
from lwta.errors import InputError
from models.probes import open_probe, true_presence
from models.shapes import CONCEPTS, HELD_OUT, Shapes

LABELLED = "validation[2000:4000]"  # 5 % of them, as rank_reorder reads, are the 100 exemplars of the others
ENCODER = "encoder"  # the variant that makes embeddings


def setting(study: Study, root: str) -> Setting:
    """What the networks of a study are labelled from and judged by.

    Args:
        root: data folder of its networks.
    """
    kinds = {"embedded": _embedded, "cifar10": lambda: _cifar10(study, root)}
    if study.name not in kinds:
        raise InputError(f"{study.name} is no study of labels; there are {', '.join(kinds)}")
    return kinds[study.name]()


def _embedded() -> Setting:
    """The embedded world: labels by its own words and CLIP, judged by its factors."""
    presence = true_presence(Shapes(HELD_OUT))
    assert presence is not None
    return Setting(
        "blocks.*.mlp.act",
        ("cls", "mean", "patches"),
        {"probe": LABELLED, "concepts": "shapes", "clip": "shapes"},
        {"probe": HELD_OUT},
        Source(CONCEPTS, {"concepts": "factors"}, images=presence.numpy()),
    )


def _cifar10(study: Study, root: str) -> Setting:
    """Photographs: labels from embeddings in a file, judged by their classes and pixels."""
    encoder = study.trial(ENCODER, study.seeds[0])
    if encoder.read("trained") is None:
        raise InputError(
            f"{study.name} needs the network of its {ENCODER}: run python -m benchmarks.accuracy fit, after "
            f"deleting its row of {study.results}/{study.name}.csv where it has one"
        )
    labelled, judged = f"{root}:test[:5000]", f"{root}:test[5000:]"
    code = sha256(Path(photographs.__file__).read_bytes()).hexdigest()[:8]  # it decides what a concept is
    file = encoder.folder / f"embeddings-{code}.npz"
    if not file.exists():
        photographs.write_embeddings(file, encoder.folder, root, labelled)
    presence = photographs.annotations(open_probe(judged))
    return Setting(
        "layer*.act2",
        ("mean", "max"),  # no class token, and no encoder that would look at a patch
        {"probe": labelled, "concepts": str(file)},
        {"probe": judged},
        Source(photographs.CONCEPTS, {"concepts": "annotations"}, images=presence),
    )
