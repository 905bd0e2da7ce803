"""Label units by similarity with concepts, in CLIP-Dissect's manner."""

import pandas as pd
import torch

from lwta.dissect.activations import Exemplars
from lwta.dissect.concepts import Concepts
from lwta.dissect.labels import COLUMNS
from lwta.dissect.similarity import soft_wpmi

FEWEST_WINS = 10


def label_layer(layer: str, exemplars: Exemplars, concepts: Concepts) -> pd.DataFrame:
    """Rows of the label table (:data:`lwta.dissect.labels.COLUMNS`) for every unit of a layer.

    A unit is labelled by the concept of the highest ``soft_wpmi``. One that won on fewer than ten
    probe images gets no label, with the reason; so does a dead one.
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
    scores = soft_wpmi(listed, concepts.presence)
    best, place = scores.nan_to_num(-torch.inf).topk(2, dim=1)
    rows = []
    for unit, wins in enumerate(exemplars.wins.tolist()):
        row = {
            "layer": layer,
            "unit": unit,
            "alive": wins > 0,
            "wins": wins,
            "win_rate": wins / exemplars.count,
            "negative": bool(exemplars.negative[unit]),
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
