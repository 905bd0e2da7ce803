"""What the app asks of a network: explanations of uploads and examples, one at a time."""

import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from PIL import Image

from commands.evidence import Evidence
from commands.options import EvidenceOptions
from commands.subject import Subject
from lwta.dissect.explanation import Explanation
from lwta.dissect.labels import Labels
from lwta.errors import InputError
from lwta.layers import competitions
from models.images import UNDECODABLE

_PIXELS = 50_000_000  # of an upload; as RGB they take 150 MB
#: What an upload may be: PIL would hand some other formats to programs of their own.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


class Answers:
    """Explanations of one network's decisions, one at a time.

    What silences a unit hangs on the network that all users share, so no two passes may run at once.

    Args:
        subject: the network, a classifier.
        labels: of its units, None where it has none.

    Attributes:
        names: of the classes.
        layers: that can be chosen; ``default`` is the last that competes.
        draws: whether its winners can be drawn.
    """

    def __init__(self, subject: Subject, labels: Labels | None = None) -> None:
        evidence = Evidence(subject, EvidenceOptions())
        self.subject, self.labels = subject, labels
        self.names = evidence.names
        self.layers, self.default = list(subject.layers(None)), list(evidence.sites)[-1]
        self.draws = any(competition.noise for competition in competitions(subject.model).values())
        self._lock = Lock()

    def explain(
        self,
        source: str,
        layer: str,
        target: str | None = None,
        against: str | None = None,
        samples: int = 0,
        silenced: Sequence[int] = (),
    ) -> Explanation:
        """Evidence for one decision.

        Args:
            source: absolute path of an upload, or ``SPLIT:INDEX``.
            silenced: units of the layer that the image is run once more without.

        Raises:
            InputError: for whatever the command ``explain`` would refuse, and too large an image.
        """
        options = EvidenceOptions(
            layers=layer,
            target=target or None,
            against=against or None,
            samples=samples,
            silence=[f"{layer}:{unit}" for unit in silenced],
        )
        with self._lock:
            picture = read_upload(source) if Path(source).is_absolute() else self.subject.image(source)
            found = Evidence(self.subject, options).explain(picture, Path(source).name)
        return found if self.labels is None else found.label(self.labels.table)


def read_upload(path: str) -> Image.Image:
    """An uploaded image as RGB, its pixels as :func:`models.run.open_image` reads them from a file.

    Raises:
        InputError: where it is gone, does not decode, or has too many pixels, before they are decoded.
    """
    name = Path(path).name
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height <= _PIXELS:
                return image.convert("RGB")
            size = f"{image.width} x {image.height} pixels"
    except Image.DecompressionBombError:
        size = "far too many pixels"
    except FileNotFoundError:  # uploads are kept for an hour
        raise InputError(f"{name} is no longer here; upload it again") from None
    except UNDECODABLE:
        kinds = ", ".join(_FORMATS)
        raise InputError(f"{name} does not decode as an image; give one of {kinds}") from None
    raise InputError(f"{name} has {size}, and at most {_PIXELS // 10**6} million are taken; make it smaller")


def example_images(subject: Subject, count: int) -> list[tuple[Image.Image, str]]:
    """Images spread over the run's test split, with their names as ``SPLIT:INDEX``; none without a run."""
    if subject.run is None or not count:
        return []
    try:
        images = len(subject.probe("test"))  # type: ignore[arg-type]
        shown = min(count, images)
        names = [f"test:{i * images // shown}" for i in range(shown)]
        return [(subject.image(name), name) for name in names]
    except (InputError, TypeError) as error:
        print(f"no examples: {error}", file=sys.stderr)
        return []
