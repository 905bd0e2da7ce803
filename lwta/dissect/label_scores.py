"""Labels of a layer scored by all metrics, and so three labelings that mean nothing.

| control | what it is |
|---|---|
| constant | one concept for all units of the layer: the one of the highest mean correlation here |
| shuffled | the layer's labels, dealt out anew among its units |
| random | a concept drawn for each unit |

What cannot be judged is missing, with the reason, and never 0: a label the annotations do not know, or that
fewer than ten of the images show (or lack); a unit that has the same value on all of them.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lwta.dissect.judged_layer import CONTROLS, UNKNOWN, Judge, JudgedLayer
from lwta.dissect.labels import texts_of
from lwta.dissect.metrics import GENERATED, REPORTED
from lwta.dissect.presence import Matrix
from lwta.dissect.responses import TOP
from lwta.errors import InputError

_SAME = "the same value on every image judged on"
DRAWS = 10  # of labels dealt out anew, and of random concepts


def judge_layer(
    rows: pd.DataFrame,
    values: np.ndarray,
    judge: Judge,
    images: Tensor | None = None,
    *,
    top: float = TOP,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge the labels of a layer.

    Args:
        rows: of the label table (:data:`lwta.dissect.labels.COLUMNS`), all units of the layer. One whose
            label describes its negative wins is judged by -value.
        values: (N, D), what the readout reads of each image.
        judge: what tells which of the N images show a concept.
        images: int64, those of the N that are judged on, all where not given.
        top: share of the images that a unit responds to, for f1 and iou.
        draws: of shuffled and of random labels, whose mean is taken.
        seed: of those.

    Returns:
        A row for each unit: layer, unit, label; the metrics of its label; those of each control, as
        ``constant_correlation``; p_value, how likely a label that means nothing has as high an AUROC, and so
        ``constant_p_value`` and others, of the first draw of each control; place, that of the label among the
        concepts by correlation; shown, images that show it; and unscored, why there is nothing of all this.

    Raises:
        InputError: the label table is of another number of units.
    """
    rows = rows.sort_values("unit")
    if len(rows) != values.shape[1]:
        raise InputError(
            f"the labels tell {len(rows)} units of {rows['layer'].iloc[0]}, which has {values.shape[1]}"
        )
    seen = torch.arange(len(values)) if images is None else images
    sign = np.where(rows["negative"].to_numpy(dtype=bool), -1, 1)
    layer = JudgedLayer(values[seen.numpy()] * sign, judge, seen, top)
    labels = texts_of(rows)
    told = layer.places(labels)
    reasons = layer.reasons(labels, told)
    scored = np.array([unit for unit, reason in enumerate(reasons) if reason is None], dtype=np.int64)
    columns = {name: np.full(len(rows), np.nan) for name in _columns()}
    if len(scored):
        for name, column in layer.scores(scored, told[scored], draws, np.random.default_rng(seed)).items():
            columns[name][scored] = column
    # Of those whose label is known of some images only.
    for unit in scored[np.isnan(columns[REPORTED[0]][scored])].tolist():
        reasons[unit] = "the same value on the images that tell of it"
        for column in columns.values():
            column[unit] = np.nan
    table = rows[["layer", "unit", "label"]].reset_index(drop=True)
    return table.assign(unscored=pd.array(reasons, dtype="string"), **columns)


def judge_generated(
    rows: pd.DataFrame,
    values: np.ndarray,
    made: np.ndarray,
    names: list[str],
    shown: np.ndarray,
    *,
    draws: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """AUROC and MAD of images made of a concept against those judged on, of which none counts as showing it.

    Args:
        rows: of the label table, all units of the layer.
        values: (N, D), of the images judged on.
        made: (G, D), of the generated images.
        names: K concepts that images were made of.
        shown: bool (G, K), which each was made of.
        draws, seed: as in :func:`judge_layer`.

    Returns:
        A row for each unit, in order: generated_auroc and generated_mad, those of each control, and
        generated_unscored, why there is nothing of this: such as a unit that has the same value on all images
        judged on, of which published code makes a MAD of 0.
    """
    # What was made of other concepts is left out, as what nobody looked at.
    presence = np.concatenate([np.zeros((len(values), len(names))), np.where(shown, 1, np.nan)])
    judge = Judge(names, Matrix(presence.astype(np.float32)))
    found = judge_layer(rows, np.concatenate([values, made]), judge, draws=draws, seed=seed)
    plain = [name.removeprefix("generated_") for name in GENERATED]
    own = dict(zip(plain, GENERATED, strict=True))
    controls = {f"{c}_{name}": f"{c}_{new}" for c in CONTROLS for name, new in own.items()}
    judged = pd.DataFrame({new: found[name] for name, new in (own | controls).items()})
    unscored = found["unscored"].replace(UNKNOWN, "no images were generated of the label")
    unscored = unscored.mask(unscored.isna() & (np.ptp(values, axis=0) == 0), _SAME)
    judged.loc[unscored.notna().to_numpy()] = np.nan
    return judged.assign(generated_unscored=unscored)


def _columns() -> list[str]:
    controls = [f"{control}_{metric}" for control in CONTROLS for metric in REPORTED]
    tests = ["p_value", *(f"{control}_p_value" for control in CONTROLS)]
    return [*REPORTED, *tests, "place", "concepts", "shown", *controls]
