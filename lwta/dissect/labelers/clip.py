"""Label units by similarity with concepts, in CLIP-Dissect's manner."""

import pandas as pd
import torch
from torch import Tensor

from lwta.dissect.activations import Exemplars
from lwta.dissect.concepts import Concepts
from lwta.dissect.labels import COLUMNS
from lwta.dissect.similarity import common, soft_wpmi_likelihood

FEWEST_WINS = 10
_EQUAL = 0.01  # scores that differ by less, of a hundred exemplars' log-likelihood, say the same
_SHOWN = 9  # exemplars kept beside a label


def label_layer(layer: str, exemplars: Exemplars, concepts: Concepts, prior: float = 1.0) -> pd.DataFrame:
    """Rows of the label table (:data:`lwta.dissect.labels.COLUMNS`) for every unit of a layer.

    A unit is labelled by the concept of the highest ``soft_wpmi``, and among equals by the likeliest. One
    that won on fewer than ten probe images gets no label, with the reason; so does a dead one.

    Args:
        prior: lambda of ``soft_wpmi``, 1 as published. Where many units of a small layer share a concept, 1
            leaves it to the best of them and pushes the others to words that fit worse; less does not.
    """
    heard = exemplars.wins >= FEWEST_WINS
    alone = int(heard.sum()) == 1  # its prior is itself: every concept would score 0
    heard &= not alone
    listed = Exemplars(
        exemplars.images.masked_fill(~heard, -1),
        exemplars.values,
        exemplars.wins,
        exemplars.negative,
        exemplars.count,
    )
    likelihood = soft_wpmi_likelihood(listed, concepts.presence)
    scores = (likelihood - prior * common(likelihood)).nan_to_num(-torch.inf)
    likelihood = likelihood.nan_to_num(-torch.inf)
    place = _best_two(scores, likelihood)
    best = scores.gather(1, place)
    rows = []
    for unit, wins in enumerate(exemplars.wins.tolist()):
        row = {
            "layer": layer,
            "unit": unit,
            "alive": wins > 0,
            "wins": wins,
            "win_rate": wins / exemplars.count,
            "negative": bool(exemplars.negative[unit]),
            "exemplars": [i for i in exemplars.images[:_SHOWN, unit].tolist() if i >= 0],
        }
        if heard[unit]:
            row["text"], row["runner_up"] = (concepts.names[k] for k in place[unit].tolist())
            row["score"], row["runner_up_score"] = best[unit].tolist()
        elif wins >= FEWEST_WINS:
            row["reason"] = "the only unit of its layer with enough wins, so nothing to compare it with"
        else:
            row["reason"] = "never won" if not wins else f"won on {wins} images, fewer than {FEWEST_WINS}"
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _best_two(scores: Tensor, likelihood: Tensor) -> Tensor:
    """Places (D, 2) of the best concept of each unit and of the runner-up.

    With the published prior a score cannot exceed log D, and reaches it for every concept of which the unit
    is by far the best account in its layer: there only rounding would choose, so the likelihood does.
    """
    places = []
    for _ in range(2):
        equal = scores >= scores.amax(1, keepdim=True) - _EQUAL
        place = likelihood.masked_fill(~equal, -torch.inf).argmax(1, keepdim=True)
        places.append(place)
        scores = scores.scatter(1, place, -torch.inf)
    return torch.cat(places, 1)
