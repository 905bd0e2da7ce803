"""Time and memory of judging labels: 12 layers of 768 units on 10,000 images, beside all controls.

python benchmarks/evaluate.py [--layers 12 --units 768 --images 10000 --concepts 1000 --resamples 10]

Values lie in files, as a pass leaves them: of competing units (one of 24 fires). Labels are judged by
annotations and by a CLIP's cosines; then each unit is labelled anew by soft_wpmi on resampled images and
concepts. Passes over images are not in it. Memory is the most that the process held, files that it maps
included.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lwta.dissect.evaluate import discoveries, means
from lwta.dissect.judged_layer import Judge
from lwta.dissect.label_scores import judge_layer
from lwta.dissect.labelers import LayerData
from lwta.dissect.labelers.clip import ClipLabeler
from lwta.dissect.presence import Cosines, Matrix
from lwta.dissect.resampling import kept_labels
from lwta.dissect.similarity import exemplars_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (
        ("layers", 12),
        ("units", 768),
        ("images", 10_000),
        ("concepts", 1000),
        ("resamples", 10),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    names = [f"concept {k}" for k in range(args.concepts)]
    shown = (rng.random((args.images, args.concepts)) < 0.05).astype(np.float32)
    images = rng.standard_normal((args.images, 512), dtype=np.float32)
    cosines = Cosines(images, torch.from_numpy(rng.standard_normal((args.concepts, 512), dtype=np.float32)))
    gaps = np.where(rng.random(shown.shape) < 0.01, np.nan, shown).astype(np.float32)
    judges = {
        "annotations": Judge(names, Matrix(shown)),
        "annotations, 1 in 100 unknown": Judge(names, Matrix(gaps)),
        "another CLIP": Judge(names, cosines, 0.05),
    }
    took = dict.fromkeys([*judges, "resamples"], 0.0)
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in judges}
    with tempfile.TemporaryDirectory() as folder:
        for layer in range(args.layers):
            path = Path(folder) / f"{layer}.npy"
            fired = rng.random((args.images, args.units)) < 1 / 24
            np.save(path, np.where(fired, rng.standard_normal(fired.shape), 0).astype(np.float32))
            values = np.load(path, mmap_mode="r")
            rows = pd.DataFrame({"layer": f"layer {layer}", "unit": range(args.units), "negative": False})
            rows["label"] = rng.choice(names, args.units)
            for name, judge in judges.items():
                start = time.perf_counter()
                tables[name].append(judge_layer(rows, values, judge))
                took[name] += time.perf_counter() - start
            if args.resamples:
                took["resamples"] += _resampled(values, cosines, names, args.resamples)
        for name, parts in tables.items():
            start = time.perf_counter()
            table = discoveries(pd.concat(parts, ignore_index=True))
            told = means(table).query("layer == 'all' and metric == 'auroc'").iloc[0]
            took[name] += time.perf_counter() - start
            print(
                f"{name}: {took[name]:.0f} s; AUROC {told['label']:.4f} beside {told['shuffled']:.4f} "
                "shuffled"
            )
    print(f"{args.resamples} resamples of images and of concepts: {took['resamples']:.0f} s")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at most")


def _resampled(values: np.ndarray, presence: Cosines, names: list[str], times: int) -> float:
    """Seconds of labelling a layer on resamples."""
    read = torch.from_numpy(np.array(values))
    exemplars = exemplars_of(read, 100, read != 0)
    layer = LayerData(
        layer="",
        exemplars=exemplars,
        evidence=exemplars,
        constant=torch.zeros(values.shape[1], dtype=torch.bool),
        presence=presence,
        competitors=24,
        values=None,
        seen=torch.arange(len(values)),
        key="",
    )
    start = time.perf_counter()
    kept_labels(ClipLabeler(names), layer, [names[0]] * values.shape[1], times)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
