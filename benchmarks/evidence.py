"""What explanations list and add up to: python benchmarks/evidence.py --run RUN --images 100.

For each layer that competes: how many units are listed against D / U, how many of them won with a negative
value, contributions against the exact change when all units are silenced. For a ViT also the last block by
hand: its MLP without one unit, then norm and head, against what the explanation says of that unit.
"""

import argparse
from collections import defaultdict

import numpy as np
import torch
from timm.models import VisionTransformer

from commands.evidence import Evidence
from commands.options import EvidenceOptions, NetworkOptions
from commands.subject import open_subject


@torch.no_grad()
def by_hand(model: VisionTransformer, image: torch.Tensor, unit: int, target: int) -> float:
    """Change of the target's logit above the mean where the last MLP lacks a unit, from its parts."""
    *before, block = model.blocks
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image[None]))))
    for earlier in before:
        x = earlier(x)
    x = x + block.ls1(block.attn(block.norm1(x)))
    hidden = block.mlp.act(block.mlp.fc1(block.norm2(x)))
    without = hidden.clone()
    without[..., unit] = 0
    scores = []
    for h in (hidden, without):
        logits = model.forward_head(model.norm(x + block.ls2(block.mlp.fc2(h))))
        scores.append(float(logits[0, target] - logits[0].mean()))
    return scores[1] - scores[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--top", type=int, default=8)
    asked = parser.parse_args()
    subject = open_subject(NetworkOptions(run=asked.run))
    evidence = Evidence(subject, EvidenceOptions(top=asked.top))
    listed, sums, differences = defaultdict(list), defaultdict(list), []
    for index in range(asked.images):
        picture = subject.image(f"test:{index}")
        found = evidence.explain(picture, str(index))
        for layer in found.layers:
            negative = sum(unit.value < 0 for unit in layer.fired)
            listed[layer.layer].append((len(layer.fired), layer.fired_per_position, negative))
            sums[layer.layer].append((layer.contribution, -layer.silenced))
        if isinstance(subject.model, VisionTransformer):
            target, pixels = evidence.names.index(found.target), subject.transform(picture)
            for unit in found.layers[-1].measured:
                manual = by_hand(subject.model, pixels, unit.unit, target)
                differences.append(abs(manual - unit.silenced))
    print(f"{asked.images} images, readout {found.readout}; units of D / U = 1 / competitors")
    for layer in found.layers:
        counts, shares, negative = np.array(listed[layer.layer]).T
        own, exact = np.array(sums[layer.layer]).T
        print(
            f"{layer.layer}: D {layer.units}, U {layer.competitors}; listed {counts.min():.0f} to "
            f"{counts.max():.0f} (D / U = {layer.units / (layer.competitors or 1):g}), per position "
            f"{shares.min():.6f} to {shares.max():.6f}; negative winners listed {negative.sum():.0f} of "
            f"{counts.sum():.0f}; contributions {own.mean():+.3f} on average, exactly {exact.mean():+.3f}, "
            f"correlation {np.corrcoef(own, exact)[0, 1]:.3f}, median |difference| "
            f"{np.median(abs(own - exact)):.3f}"
        )
    if differences:
        print(f"last block by hand: {len(differences)} units, largest difference {max(differences):.1e}")


if __name__ == "__main__":
    main()
