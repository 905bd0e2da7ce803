"""How often two samples of a trained network's competition name different winners.

python benchmarks/winner_agreement.py runs/NAME [--root FOLDER]: per layer, over 500 validation images.
"""

import argparse

import torch
from torch.utils.data import DataLoader, Subset

from lwta.layers import competitions, sampled, watch
from models.images import IndexedImages
from models.run import load_run


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--root", help="data folder, where it has moved since training")
    parser.add_argument("--images", type=int, default=500)
    args = parser.parse_args()
    run = load_run(args.run, args.root)
    images = IndexedImages(run.data.dataset("validate"), run.data.eval_transform())
    loader = DataLoader(Subset(images, range(args.images)), args.images, collate_fn=images.collate_indexed)
    _, pixels, _ = next(iter(loader))
    winners = []
    for seed in (1, 2):
        with sampled(run.model.backbone, seed), watch(run.model.backbone, run.model.sparsity.dims) as calls:
            run.model.backbone(pixels.to(run.model.device))
        winners.append({name: firing.winner for name, (firing,) in calls.items()})
    for name, competition in competitions(run.model.backbone).items():
        first, second = (found[name] for found in winners)
        share = (first != second).float().mean()
        print(f"{name}: noise {competition.noise:.2f}, two samples differ in {100 * share:.1f} % of winners")


if __name__ == "__main__":
    main()
