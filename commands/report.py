"""``report``: the page of a run."""

from commands.compare import compare_runs
from commands.exemplars import no_longer_there
from commands.explain import explanations
from commands.options import NetworkOptions
from commands.subject import open_subject
from lwta.dissect.evaluate import read_evaluation
from lwta.dissect.labels import Labels, labels_for
from lwta.dissect.report import LayerUnits, render_report, strip
from lwta.dissect.report.comparison import summaries
from lwta.errors import InputError
from models.images import UNDECODABLE, IndexedImages, read_image

_STRIP = 6  # exemplars shown of a unit


def report(
    run: str,
    images: list[str],
    split: str = "test",
    units: int = 24,
    root: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str = "auto",
) -> None:
    """Write the page of a labelled run: what it scores, what its units mean, and explanations of images.

    Prints the table that compare prints, and writes report/index.html and, with the same numbers,
    report/summary.csv into the run folder.

    Args:
        run: folder made by train.py fit, labelled by dissect.py label.
        images: image files, or SPLIT:INDEX of the run's data; the first eight test images where not given.
        split: of the run's data that it is judged on: train, validate, test, or any split by its name.
        units: shown of each layer, those with the best label scores.
        root: data folder, where it has moved since training.
        batch_size: images per pass.
        num_workers: loader processes.
        device: cpu, cuda, cuda:1 ...; auto takes the GPU where there is one.
    """
    if batch_size < 1 or num_workers < 0:
        raise InputError("batch_size is at least 1 and num_workers at least 0")
    if units < 1:
        raise InputError(f"units is at least 1, not {units}")
    subject = open_subject(NetworkOptions(run=run, root=root, device=device))
    assert subject.run is not None
    known = labels_for(subject.folder, subject.run.weights, whole=True)
    if known is None:
        raise InputError(f"{run} has no labels to show; make them with dissect.py label --run {run}")
    judged = IndexedImages(subject.probe(split), subject.transform)
    first = [index for index in range(min(8, len(judged))) if judged[index][1] is not None]
    sources = images or [f"{split}:{index}" for index in first]
    pictures = [subject.image(source) for source in sources]
    sites = subject.layers(None)
    last, reading = dict(list(sites.items())[-1:]), subject.readout(known.identity["readout"])
    comparison, told = compare_runs([subject.run], [subject.name], split, batch_size, num_workers)
    print(told)
    made = known.options.get("probe", "validate")
    probe = IndexedImages(subject.probe(made, known.options.get("probe_args")), subject.transform)
    shown = [_layer_units(probe, name, known, units) for name in reversed(known.units)]
    names = subject.class_names or []
    explained = list(explanations(subject, sources, pictures, last, reading, known, names, None, 50))
    page = subject.folder / "report" / "index.html"
    page.parent.mkdir(exist_ok=True)
    score = read_evaluation(subject.folder, known.identity)
    html = render_report(subject.name, summaries(comparison)[0], score, shown, explained)
    page.write_text(html, encoding="utf-8")
    comparison.to_csv(page.with_name("summary.csv"), index=False)
    print(f"page: {page}")


def _layer_units(images: IndexedImages, layer: str, labels: Labels, most: int) -> LayerUnits:
    """The best labelled units of a layer with a strip of their exemplars."""
    rows = labels.table.query("layer == @layer")
    best = rows.dropna(subset=["label"]).sort_values("score", ascending=False).head(most)
    exemplars = (
        labels.exemplars.query("layer == @layer and rank < @_STRIP").groupby("unit")["image"].agg(list)
    )
    try:
        strips = [
            strip([read_image(images.data, index)[0] for index in exemplars[unit]])
            for unit in best["unit"].tolist()
        ]
    except (*UNDECODABLE, IndexError) as error:
        raise no_longer_there(layer) from error
    return LayerUnits(layer, len(rows), len(rows.dropna(subset=["label"])), best.to_dict("records"), strips)
