"""The same images through several runs: what ``compare`` shows under its table."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from commands.evidence import Evidence
from commands.explain import expanded, first_images, true_class
from commands.options import EvidenceOptions
from commands.subject import Subject
from lwta.dissect.labels import Labels
from lwta.dissect.report import ComparedImage
from lwta.dissect.report.comparison import labels_to_compare
from lwta.errors import InputError
from models.run import Run

_FIRST = 4  # images shown where none are named


class SideBySide:
    """Images to explain by every run; everything that can be refused is refused here.

    Args:
        runs: each opened as a subject, with its run.
        images: image files, folders of them, or SPLIT:INDEX of the runs' data; the first four of ``split``
            that decode where there are none.
        split: of the runs' data.

    Raises:
        InputError: where a run has no labels, or an image is missing or not the same for all.
    """

    def __init__(self, runs: Sequence[tuple[Subject, Run]], images: Sequence[str], split: str) -> None:
        self.runs = [run for _, run in runs]
        self.labels: list[Labels] = [labels_to_compare(run.folder, run.weights) for _, run in runs]
        self.asked = [
            Evidence(subject, EvidenceOptions(), labels.identity["readout"])
            for (subject, _), labels in zip(runs, self.labels, strict=True)
        ]
        subject = self.asked[0].subject
        self.sources = [source for image in images for source in expanded(subject, image)]
        for source in self.sources:
            self._check_same(source)
        # Of the split itself, comparing the runs finds out whether they are the same.
        self.sources = self.sources or first_images(subject, split, _FIRST)

    def _check_same(self, source: str) -> None:
        first, *others = (evidence.subject.image(source) for evidence in self.asked)
        for run, other in zip(self.runs[1:], others, strict=True):
            if (first.size, first.tobytes()) != (other.size, other.tobytes()):
                raise InputError(
                    f"the image {source} is not the same in the data of {self.runs[0].folder} and of "
                    f"{run.folder}; name an image file, or compare runs on the same images (--root)"
                )

    def explained(self) -> Iterator[ComparedImage]:
        """Explain the images one by one, by every run."""
        for source in self.sources:
            name = Path(source).name
            found = [
                asked.explain(asked.subject.image(source), name).label(labels.table)
                for asked, labels in zip(self.asked, self.labels, strict=True)
            ]
            truth = true_class(self.asked[0], source)
            for explanation in found:
                explanation.truth = truth
            yield ComparedImage(name, truth, found)
