"""The comparison of runs: a table, what it says in sentences, a CSV file and a plot.

A comparison is a DataFrame with a row for each run, the first being the one that the others are tested
against.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from lwta.dissect.evaluate import percent, plus_minus
from lwta.dissect.evaluation import Evaluation, read_evaluation
from lwta.dissect.judged_layer import CONTROLS
from lwta.dissect.labels import Labels, labels_for
from lwta.dissect.report.pareto import draw_pareto
from lwta.errors import InputError

_WIDTH = 110  # characters of a printed table

Row = dict[str, Any]


def _percent(row: Row, column: str) -> str:
    return "unknown" if math.isnan(row[column]) else f"{100 * row[column]:.2f} %"


def _top1(row: Row, evaluation: str) -> str:
    value, low, high = (100 * row[f"top1_{evaluation}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.2f} % [{low:.2f}, {high:.2f}]"


def _competitors(row: Row) -> str:
    count = "none" if pd.isna(row["competitors"]) else f"{row['competitors']:.3g}"
    return count if row["activation"] == "LWTA" else f"{count} ({row['activation']})"


def _label_score(row: Row) -> str:
    return "none labelled" if math.isnan(row["label_score"]) else f"{row['label_score']:.3f}"


def _judged(row: Row, column: str) -> str:
    return "" if math.isnan(row[column]) else _percent(row, column)


def _held_out(row: Row, name: str) -> str:
    mean = row[f"correlation_{name}"]
    return "" if pd.isna(mean) else plus_minus(mean, row[f"correlation_{name}_error"])


def _discovered(row: Row, column: str) -> str:
    count = row[column]
    return "" if math.isnan(count) else f"{count:,.0f} of {row['judged_units']:,.0f}"


def _share(row: Row, name: str) -> str:
    share = row[f"{name}_share"]
    return "" if math.isnan(share) else percent(share, row[f"{name}_error"])


#: What each line of the table shows of a run.
_LINES: dict[str, Callable[[Row], str]] = {
    "backbone": lambda r: r["backbone"],
    "competitors": _competitors,
    "parameters": lambda r: f"{r['parameters']:,}",
    "top-1, argmax": lambda r: _top1(r, "argmax"),
    "top-1, 1 sample": lambda r: _top1(r, "1_sample"),
    "top-1, 10 samples": lambda r: _top1(r, "10_samples"),
    "calibration error, argmax": lambda r: _percent(r, "calibration_error_argmax"),
    "winners that differ, two samples": lambda r: _judged(r, "winners_differ"),
    "activation sites, competing of all": lambda r: f"{r['sites_competing']} of {r['sites_all']}",
    "fire at a position, competing sites": lambda r: _percent(r, "position_competing"),
    "fire at a position, all sites": lambda r: _percent(r, "position_all"),
    "fire anywhere in an image, competing": lambda r: _percent(r, "ever_competing"),
    "fire anywhere in an image, all sites": lambda r: _percent(r, "ever_all"),
    "participation ratio, competing": lambda r: _percent(r, "participation_ratio"),
    "dead units, competing": lambda r: f"{r['dead_units']:,} of {r['units']:,}",
    "images per second": lambda r: f"{r['images_per_second']:,.0f} on {r['device']}",
    "label score": _label_score,
    "units labelled": lambda r: f"{r['labelled_units']:,} of {r['label_units']:,}",
}

_CONTROLS = {"constant": "one label for all", "shuffled": "labels shuffled", "random": "random concepts"}

#: Those of labels that were judged.
_JUDGED_LINES: dict[str, Callable[[Row], str]] = {
    **{
        f"correlation of {what}, other images": partial(_held_out, name=name)
        for name, what in {"label": "labels", **_CONTROLS}.items()
    },
    "better than chance, of labels judged": partial(_discovered, column="discoveries"),
    **{
        f"better than chance, {what}": partial(_discovered, column=f"discoveries_{name}")
        for name, what in _CONTROLS.items()
    },
}

#: Those of labels that were judged where the truth is known.
_TRUTH_LINES: dict[str, Callable[[Row], str]] = {
    "true labels, of selective units": lambda r: _share(r, "true"),
    "the same, labels shuffled": lambda r: _share(r, "shuffled"),
    "selective units": lambda r: "" if math.isnan(r["true_share"]) else f"{r['selective_units']:,.0f}",
}

_MEANS = [f"{name}{end}" for name in ("label", *CONTROLS) for end in ("", "_error")]

_TRUTH = ["true_share", "true_error", "shuffled_share", "shuffled_error", "selective_units"]
_COUNTS = ["discoveries", *(f"discoveries_{name}" for name in CONTROLS), "judged_units"]
_NUMBERS = [*(f"correlation_{name}" for name in _MEANS), *_COUNTS, *_TRUTH]

#: Columns that an evaluation fills.
JUDGEMENT = [*_NUMBERS, "judge", "judge_identity"]


def output_folder(out: str | None, first_run: str) -> Path:
    """Where a comparison goes: ``out``, else the folder ``comparison`` beside the first run."""
    folder = Path(out) if out else Path(first_run).resolve().parent / "comparison"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder with --out")
    return folder


def labels_to_compare(folder: Path, weights: str) -> Labels:
    """A run's labels.

    Raises:
        InputError: where it has none, or of other weights than ``weights``, a hash, or of some units only.
    """
    labels = labels_for(folder, weights, whole=True)
    if labels is None:
        raise InputError(f"{folder} has no labels to compare; make them with dissect.py label --run {folder}")
    return labels


def label_quality(folder: Path, weights: str) -> tuple[Row, dict[str, Any]]:
    """Of a run's labels: columns of the comparison, and what they were made from.

    The columns are ``label_score``, the mean over the ``labelled_units`` of all ``label_units``; and where
    these labels were judged (else None) the correlation of labels and of controls on other images, each with
    its standard error, ``discoveries`` among the ``judged_units`` and those of the controls, and
    ``true_share``, the share of true labels among the ``selective_units``, and with them shuffled.

    Raises:
        InputError: as :func:`labels_to_compare`.
    """
    told = labels_to_compare(folder, weights)
    labels, identity = told.table, told.identity
    judged = read_evaluation(folder, identity)
    scores = labels.dropna(subset=["label"])["score"].tolist()
    row = {
        "label_score": fmean(scores) if scores else math.nan,
        "labelled_units": len(scores),
        "label_units": len(labels),
        **dict.fromkeys(JUDGEMENT),
    }
    if judged is not None:
        row |= _judgement(judged)
    return row, identity


def _judgement(judged: Evaluation) -> Row:
    mean, truth = judged.mean("correlation"), judged.truth
    row = {f"correlation_{name}": mean[name] for name in _MEANS} | {
        "discoveries": judged.discoveries,
        **{f"discoveries_{name}": count for name, count in judged.by_control.items()},
        "judged_units": judged.scored,
        "judge": f"{judged.judge}{' (circular)' if judged.circular else ''} on {judged.probe}",
        "judge_identity": judged.judge_identity,
    }
    if truth is None:
        return row
    return row | {
        "true_share": truth.true_share,
        "true_error": truth.true_error,
        "shuffled_share": truth.shuffled_share,
        "shuffled_error": truth.shuffled_error,
        "selective_units": truth.selective,
    }


def comparison_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """A comparison from the rows of its runs; what only an evaluation tells, only where some run has it."""
    comparison = pd.DataFrame(list(rows)).astype(
        {"competitors": "float64"} | dict.fromkeys(_NUMBERS, "float64")
    )
    if comparison["judge"].isna().to_numpy().all():
        return comparison.drop(columns=JUDGEMENT)
    return comparison.drop(columns=_TRUTH if comparison["selective_units"].isna().to_numpy().all() else [])


def comparison_text(comparison: pd.DataFrame, identities: list[dict[str, Any]]) -> str:
    """The table, what must be said beside it, and the paired tests.

    Args:
        identities: what each run's labels were made from, as kept beside them.
    """
    said = sentences(comparison, identities)
    return "\n".join([_table(comparison), *([""] if said else []), *said])


def sentences(comparison: pd.DataFrame, identities: list[dict[str, Any]]) -> list[str]:
    """What must be said beside the table, and the paired tests; ``identities`` as :func:`comparison_text`."""
    return [
        *_uncounted(comparison),
        *_labels_differ(identities),
        *_judges_differ(comparison),
        *_paired_tests(comparison),
    ]


def summaries(comparison: pd.DataFrame) -> list[list[tuple[str, str]]]:
    """Of each run, titles and values as the table shows them."""
    lines = _LINES | (_JUDGED_LINES if "judge" in comparison else {})
    lines |= _TRUTH_LINES if "selective_units" in comparison else {}
    return [[(title, show(row)) for title, show in lines.items()] for row in comparison.to_dict("records")]


def _table(comparison: pd.DataFrame) -> str:
    """A column for each run, in blocks of columns where they are too wide for one."""
    told = summaries(comparison)
    titles = ["", *(title for title, _ in told[0])]
    columns = [
        [run, *(value for _, value in lines)] for run, lines in zip(comparison["run"], told, strict=True)
    ]
    blocks, used = [[titles]], max(map(len, titles))
    for column in columns:
        width = 2 + max(map(len, column))
        if used + width > _WIDTH and len(blocks[-1]) > 1:
            blocks.append([titles])
            used = max(map(len, titles))
        blocks[-1].append(column)
        used += width
    return "\n\n".join("\n".join(_aligned(block)) for block in blocks)


def _aligned(columns: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        )
        for cells in zip(*columns, strict=True)
    ]


def _uncounted(comparison: pd.DataFrame) -> list[str]:
    return [
        f"{row['run']}: {row['sites_uncounted']} of {row['sites_all']} sites count at a position only; "
        "their axis of units or of images is not known"
        for row in comparison.to_dict("records")
        if row["sites_uncounted"]
    ]


def _labels_differ(identities: list[dict[str, Any]]) -> list[str]:
    keys = sorted({key for identity in identities for key in identity} - {"weights"})
    told = {key: list(dict.fromkeys(str(identity.get(key)) for identity in identities)) for key in keys}
    differing = [f"{key} ({' / '.join(values)})" for key, values in told.items() if len(values) > 1]
    if not differing:
        return []
    return [f"label scores do not compare: the labels were made from different {', '.join(differing)}"]


def _judges_differ(comparison: pd.DataFrame) -> list[str]:
    if "judge" not in comparison or len(comparison["judge_identity"].dropna().unique().tolist()) < 2:
        return []
    judges = comparison["judge"].dropna().unique().tolist()
    changed = ", or the images, of other content" if len(judges) < 2 else ""
    return [f"correlations on other images do not compare: judged by {' / '.join(judges)}{changed}"]


def _paired_tests(comparison: pd.DataFrame) -> list[str]:
    first, *others = comparison.to_dict("records")
    return [
        f"{row['run']} against {first['run']}: {row['difference']:+.2f} points "
        f"(standard error {row['difference_error']:.2f}), alone right on {row['right_alone']:,} images, "
        f"alone wrong on {row['wrong_alone']:,}, McNemar p = {row['p_value']:.3g}"
        for row in others
    ]


def write_comparison(folder: Path, comparison: pd.DataFrame) -> list[Path]:
    """Write ``comparison.csv`` and ``comparison.png`` into a folder, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "comparison.csv", folder / "comparison.png"]
    parts = [path.with_suffix(path.suffix + ".part") for path in paths]
    comparison.to_csv(parts[0], index=False)
    draw_pareto(comparison.to_dict("records"), parts[1])
    for part, path in zip(parts, paths, strict=True):
        part.replace(path)
    return paths
