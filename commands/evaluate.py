"""``evaluate``: labels against the truth."""

from torch.utils.data import DataLoader
from tqdm import tqdm

from lwta.dissect.activations import Readout
from lwta.dissect.evaluate import read_values, score_labels, write_evaluation
from lwta.dissect.labels import labels_for
from lwta.errors import InputError
from models.images import IndexedImages
from models.run import head_readout, load_run
from models.shapes import HELD_OUT, Shapes


def evaluate(
    run: str,
    split: str | None = None,
    root: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str = "auto",
) -> None:
    """Judge the labels of a run against the truth, where the data knows its concepts.

    A unit's true concepts are those whose AUROC on held-out images is at least .8 and within .02 of its
    best. Prints how many units have any, and how many of those carry one as their label; writes
    evaluation.json into the run folder.

    Args:
        run: folder made by train.py fit, labelled by dissect.py label.
        split: held-out images; other images of the embedded world where not given.
        root: data folder, where it has moved since training.
        batch_size: images per pass.
        num_workers: loader processes.
        device: cpu, cuda, cuda:1 ...; auto takes the GPU where there is one.
    """
    if batch_size < 1 or num_workers < 0:
        raise InputError("batch_size is at least 1 and num_workers at least 0")
    opened = load_run(run, root, device)
    known = labels_for(opened.folder, opened.weights, whole=True)
    if known is None:
        raise InputError(f"{run} has no labels to judge; make them with dissect.py label --run {run}")
    split, made = split or HELD_OUT, known.options.get("probe", "validate")
    if opened.data.config["name"] != "shapes":
        raise InputError("only the embedded world (data.name shapes) knows which concepts its images show")
    dataset, probe = opened.data.dataset(split), opened.data.dataset(made)
    assert isinstance(dataset, Shapes)
    assert isinstance(probe, Shapes)
    if dataset.shares(probe):
        raise InputError(
            f"the labels were made from the split {made}, which shares images with "
            f"{split}; judge them on others with --split"
        )
    images = IndexedImages(dataset, opened.data.eval_transform())
    loader = DataLoader(images, batch_size, num_workers=num_workers, collate_fn=images.collate_indexed)
    pairs = ((indices, pixels) for indices, pixels, _ in tqdm(loader, "judge", disable=None))
    sites = {n: d for n, d in opened.model.sparsity.dims.items() if n in known.units}
    readout = Readout(known.identity["readout"], head_readout(opened.model.backbone)[1])
    indices, values = read_values(opened.model.backbone, pairs, sites, readout)
    score = score_labels(known.table, values, dataset.concepts, dataset.presence()[indices])
    path = write_evaluation(opened.folder, score, split, known.identity)
    print(f"{score}; on {len(indices)} images of the split {split}; wrote {path}")
