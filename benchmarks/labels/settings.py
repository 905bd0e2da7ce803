"""What the networks of each study are labelled from, and what judges them."""

from benchmarks.accuracy.study import REPOSITORY, Study
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
    return _embedded() if study.name == "embedded" else _cifar10(study, root)


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
    (encoder,) = study.trials(ENCODER)
    if encoder.read("trained") is None:
        raise InputError(f"{study.name} needs its {ENCODER} trained; run python -m benchmarks.accuracy fit")
    labelled, judged = f"{root}:test[:5000]", f"{root}:test[5000:]"
    file = REPOSITORY / study.runs / "embeddings.npz"
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
