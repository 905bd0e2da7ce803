"""What training minimises."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwta.errors import InputError
from lwta.functional import kl_to_uniform, usage_entropy
from lwta.layers import Firing, competitions, watch

#: Term of the loss -> what a competition is asked for.
_STATISTIC = {"kl": "kl", "usage_entropy": "usage"}


def training_loss(
    backbone: nn.Module,
    images: Tensor,
    target: Tensor,
    dims: Mapping[str, int],
    smoothing: float,
    weights: Mapping[str, float],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy and weighted terms of the competition.

    Args:
        images: (N, 3, H, W).
        target: classes (N,), or their shares (N, C).
        dims: competing layer -> axis of its units.
        smoothing: of the target.
        weights: ``kl`` and ``usage_entropy`` -> what they weigh; a term that weighs nothing is not computed.

    Returns:
        Their sum, and each term that was computed, averaged over layers.
    """
    wanted = [name for name, weight in weights.items() if weight]
    if strange := set(wanted) - set(_STATISTIC):
        raise InputError(f"the loss has no term {', '.join(strange)}; its terms are {', '.join(_STATISTIC)}")
    if wanted and not set(dims) & set(competitions(backbone)):
        raise InputError(f"{' and '.join(wanted)} need competing units; none of dims competes")
    if not wanted:
        return F.cross_entropy(backbone(images), target, label_smoothing=smoothing), {}
    with watch(backbone, dims, [_STATISTIC[name] for name in wanted]) as calls:
        loss = F.cross_entropy(backbone(images), target, label_smoothing=smoothing)
    terms = {name: _term(name, backbone, calls) for name in wanted}
    for name, term in terms.items():
        loss = loss + weights[name] * term
    return loss, terms


def _term(name: str, backbone: nn.Module, calls: Mapping[str, list[Firing]]) -> Tensor:
    found = []
    for layer, competition in competitions(backbone).items():
        for f in calls.get(layer, []):
            assert f.inputs is not None
            if name == "kl" and f.kl is None:
                found.append(kl_to_uniform(competition.probabilities(f.inputs), dim=f.dim + 1))
            elif name == "kl":
                found.append(f.kl)
            else:
                usage = competition.mean_usage(f.inputs) if f.usage is None else f.usage
                found.append(usage_entropy(usage))
    return torch.stack(found).mean()
