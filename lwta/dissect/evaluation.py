"""What an evaluation found, as it is kept beside the labels: ``evaluation.json`` and ``evaluation.csv``."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lwta.dissect.evaluate import RATE, percent, plus_minus
from lwta.dissect.final_layer import ClassScore
from lwta.dissect.judged_layer import CONTROLS
from lwta.dissect.metrics import GENERATED, REPORTED
from lwta.dissect.resampling import KEPT
from lwta.dissect.store import write_whole
from lwta.dissect.truth import PairScore, TruthScore
from lwta.errors import InputError

FACTORS = "the factors of the embedded world"  # as a judge
#: Of a mean: itself and its standard error.
COLUMNS = [name for kind in ("label", *CONTROLS, "ahead") for name in (kind, f"{kind}_error")]


class Evaluation(NamedTuple):
    """How good labels are.

    Attributes:
        labels: identity of the labels, so that the scores are never shown beside others.
        judge: what told which images show a concept.
        circular: whether that also chose the labels.
        probe: the images judged on.
        images: how many.
        units: D over all layers.
        scored: units whose label was judged.
        unscored: reason -> units.
        judge_identity: hash of what the judge says, of which images.
        discoveries: units whose label is better than chance, at a false discovery rate of .05.
        by_control: how many one draw of each control has.
        means: a row for each metric of each layer, of :func:`lwta.dissect.evaluate.means`; the labels kept
            where other images and concepts are drawn are of them where that was tried.
        truth, pairs: where the concepts of the images are known by construction.
        classes: of a layer whose units are classes.
        unscored_generated: as unscored, by generated images; None without these.
    """

    labels: dict[str, Any]
    judge: str
    judge_identity: str
    circular: bool
    probe: str
    images: int
    units: int
    scored: int
    unscored: dict[str, int]
    discoveries: int
    by_control: dict[str, int]
    means: list[dict[str, Any]]
    truth: TruthScore | None = None
    pairs: PairScore | None = None
    classes: ClassScore | None = None
    unscored_generated: dict[str, int] | None = None

    def mean(self, metric: str) -> dict[str, Any]:
        """The row of :attr:`means` of a metric over all layers."""
        return [row for row in self.means if row["metric"] == metric][-1]


_PARTS = {"truth": TruthScore, "pairs": PairScore, "classes": ClassScore}


def write_evaluation(folder: Path, found: Evaluation, table: pd.DataFrame) -> list[Path]:
    """Write ``evaluation.csv``, a row for each unit, and ``evaluation.json``, each whole or not at all."""
    told = found._asdict()
    told |= {name: told[name]._asdict() for name in _PARTS if told[name] is not None}
    paths = [folder / "evaluation.csv", folder / "evaluation.json"]
    write_whole(paths[0], lambda part: table.to_csv(part, index=False))
    write_whole(paths[1], lambda part: part.write_text(json.dumps(_plain(told), indent=1), encoding="utf-8"))
    return paths


def _plain(value: Any) -> Any:
    """NaN is no JSON; what is missing is null."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def read_evaluation(folder: str | Path, labels: dict[str, Any]) -> Evaluation | None:
    """The evaluation of a folder's labels, or None where these labels were not judged.

    Raises:
        InputError: where the file cannot be read.
    """
    path = Path(folder) / "evaluation.json"
    if not path.is_file():
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["labels"] != labels:
            return None
        found = Evaluation(**held)
        parts = {
            name: kind(**_floats(held[name], kind)) for name, kind in _PARTS.items() if held[name] is not None
        }
        _check(found)
        return found._replace(means=[_row(row) for row in found.means], **parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read; make it anew with dissect.py evaluate --run {folder}"
        ) from error


def _floats(held: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Fields of a score, missing numbers as NaN and the others of their type."""
    types = kind.__annotations__
    return {k: math.nan if v is None and types[k] is float else types[k](v) for k, v in held.items()}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: math.nan if row[name] is None else float(row[name]) for name in COLUMNS}


def _check(found: Evaluation) -> None:
    if not {row["metric"] for row in found.means} >= set(REPORTED) or not isinstance(found.judge, str):
        raise ValueError("an evaluation of other metrics")


def sentences(found: Evaluation) -> list[str]:
    """What an evaluation found, for the reader; beside the table of :func:`overview`."""
    circular = " (circular: it also chose the labels)" if found.circular else ""
    said = [
        f"{found.scored:,} of {found.units:,} units have a label that {found.judge}{circular} can judge "
        f"on {found.images:,} images of {found.probe}, from which no label was chosen",
        f"{found.discoveries:,} of those labels are better than chance, at a false discovery rate of "
        f"{RATE:g}; so are {_listed(found.by_control)}",
    ]
    for what, reasons in (
        ("not judged", found.unscored),
        ("not judged by generated images", found.unscored_generated),
    ):
        if reasons:
            said.append(f"{what}: {told_reasons(reasons)}")
    told = {row["metric"]: found.mean(row["metric"]) for row in found.means}
    draws = zip(KEPT, ("images", "concepts that hold it"), strict=True)
    kept = [
        f"{percent(row['label'], row['label_error'])} of draws of other {what} (a shuffled one in "
        f"{percent(row['shuffled'], row['shuffled_error'])})"
        for name, what in draws
        if (row := told.get(name)) and row["units"]
    ]
    if kept:
        said.append(f"a label stays the same in {' and in '.join(kept)}")
    own = "" if found.judge == FACTORS else f"by {FACTORS}, not the judge: "
    said += [f"{own}{part}" for part in (found.truth, found.pairs) if part is not None]
    return said + ([] if found.classes is None else [str(found.classes)])


def told_reasons(unscored: dict[str, int]) -> str:
    """Why units are not judged, and how many, in words."""
    return "; ".join(f"{n:,} units, {reason}" for reason, n in unscored.items())


def _listed(counts: dict[str, int]) -> str:
    """Discoveries among labels that mean nothing, in words."""
    words = {
        "constant": "with one label for all",
        "shuffled": "shuffled",
        "random": "of random concepts",
    }
    return ", ".join(f"{counts[name]:,} {said}" for name, said in words.items())


def overview(found: Evaluation) -> pd.DataFrame:
    """Means of the labels beside those of the controls, as text: a row for each metric over all layers, then
    one for the correlation of each layer."""
    layers = [row for row in found.means if row["metric"] == REPORTED[0]]
    told = {row["metric"] for row in found.means}
    rows = [(metric, found.mean(metric)) for metric in (*REPORTED, *GENERATED) if metric in told]
    if len(layers) > 1:
        rows += [(f"{REPORTED[0]}, {row['layer']}", row) for row in layers if row["layer"] != "all"]
    return pd.DataFrame(
        {
            "metric": [title for title, _ in rows],
            "units": [f"{row['units']:,}" for _, row in rows],
            **{
                title: [plus_minus(row[name], row[f"{name}_error"]) for _, row in rows]
                for title, name in {
                    "label": "label",
                    **{c: c for c in CONTROLS},
                    "over shuffled": "ahead",
                }.items()
            },
        }
    )
