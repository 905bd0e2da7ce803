"""``report``: the pages of a labelled network."""

from pathlib import Path

from commands.compare import compare_runs
from commands.evidence import Evidence
from commands.explain import expanded, explained, first_images
from commands.options import EvidenceOptions, NetworkOptions
from commands.subject import open_subject
from commands.survey import SAMPLE, gather
from lwta.dissect.evaluation import read_evaluation
from lwta.dissect.labels import labels_for
from lwta.dissect.report.comparison import summaries
from lwta.dissect.report.site import check_folder, write_site
from lwta.errors import InputError

_IMAGES, _ERRORS = 8, 4  # explained where none are named, and how many of them it gets wrong


def report(
    network: NetworkOptions,
    images: list[str],
    split: str = "test",
    sample: int = SAMPLE,
    batch_size: int = 128,
    num_workers: int = 0,
) -> None:
    """Write the pages of a labelled network: what it scores, what its units mean, and images explained.

    Writes the folder report, to be opened at its index.html. Of a run it also prints the table that compare
    prints, and writes the same numbers to report/summary.csv.

    Args:
        images: image files, folders of them, or SPLIT:INDEX of the run's data; where not given eight of the
            split, the first ones and the first that it gets wrong.
        split: of the run's data that it is judged on: train, validate, test, or any split by its name.
        sample: images of those it was labelled on, evenly spaced, that histograms, rivals and classes are
            counted on.
        batch_size: images per pass.
        num_workers: loader processes.
    """
    if batch_size < 1 or num_workers < 0 or sample < 1:
        raise InputError("batch_size and sample are at least 1 and num_workers at least 0")
    subject = open_subject(network)
    known = labels_for(subject.folder, subject.identity["weights"], whole=True)
    if known is None:
        named = f"--run {network.run}" if network.run else f"--model {network.model}"
        raise InputError(f"{subject.folder} has no labels to show; make them with dissect.py label {named}")
    check_folder(subject.folder / "report")
    asked = Evidence(subject, EvidenceOptions(), known.identity["readout"])
    for source in images:
        if not Path(source).is_dir():
            subject.image(source)  # all, before any work
    if subject.run is not None:
        subject.probe(split)
    sources = [source for image in images for source in expanded(subject, image)]
    summary = []
    if subject.run is not None:
        runs = [subject.run], [subject.name]
        comparison, told, wrong = compare_runs(*runs, split, batch_size, num_workers)
        summary = summaries(comparison)[0]
        print(told)
        if not sources:
            errors = [f"{split}:{index}" for index in wrong[:_ERRORS]]
            first = [source for source in first_images(subject, split, _IMAGES) if source not in errors]
            sources = first[: _IMAGES - len(errors)] + errors
    site = gather(
        subject,
        known,
        summary=summary,
        score=read_evaluation(subject.folder, known.identity),
        explained=[explanation.label(known.table) for explanation in explained(asked, sources)],
        sample=sample,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    page = write_site(subject.folder / "report", site)
    if subject.run is not None:
        comparison.to_csv(page.with_name("summary.csv"), index=False)
    print(f"page: {page}")
