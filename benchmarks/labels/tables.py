"""Tables and plots of a study of labels, from its rows."""

import math
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy.study import REPOSITORY, Study
from lwta.dissect.evaluate import plus_minus
from lwta.dissect.judged_layer import CONTROLS

_KEY = ["variant", "seed"]
_FIRST = "cos_cubed"  # the similarity shown for every network beside soft_wpmi
_NOTE = """Made by `python -m benchmarks.labels table`. Means over the units of a layer that could be judged,
then over layers, each alike, and over seeds. Plus or minus the standard error: over seeds where there are
several, over the units of the one network where there is one, which leaves out how trainings differ.
*Shuffled*, *constant* and *random* are labels that mean nothing; numbers in brackets are of labels
shuffled. What each column is: [docs/study.md](../../../docs/study.md)."""


def write_tables(study: Study) -> Path:
    """Write STUDY.md and its plots beside the rows; returns the page."""
    folder = REPOSITORY / study.results
    labels, fired, trained = (
        pd.read_csv(folder / f"{study.name}{end}.csv") for end in ("-labels", "-firing", "")
    )
    order = [name for name in study.variants if name in set(labels["variant"])]
    whole, networks = layers_alike(labels), trained.merge(fired, on=_KEY)
    readouts = labels["readout"].unique().tolist()
    parts = [
        f"# Labels of the networks of [{study.name}.yaml](../../labels/{study.name}.yaml)",
        _NOTE,
        f"## Summary, labels by {_FIRST}",
        _table([_summary(name, readouts[:2], whole, networks) for name in order]),
        "## Networks",
        _table([_network(networks[networks["variant"] == name]) for name in order]),
    ]
    for readout in readouts:
        for similarity in ("soft_wpmi", _FIRST):
            part = whole[(whole["readout"] == readout) & (whole["similarity"] == similarity)]
            if len(part):
                parts += [f"## Labels by {similarity}, readout {readout}", _table(_labels(order, part))]
    for readout in readouts:
        part = whole[(whole["readout"] == readout) & (whole["reading"] == "all")]
        parts += [
            f"## Correlation over shuffled labels by similarity (so the constant label's), readout {readout}",
            _table(_similarities(order, part)),
        ]
    page = folder / f"{study.name}.md"
    page.write_text("\n\n".join(parts) + "\n")
    _plot(order, readouts[:2], whole, folder / f"{study.name}.png")
    return page


def layers_alike(labels: pd.DataFrame) -> pd.DataFrame:
    """Rows of all layers together, in whose means each layer counts alike; NaN where a layer has none.

    Where every unit counted alike, a network whose early units cannot be judged would seem better by what is
    missing: labels fit late layers best in every network. *Every unit* counts those without a score as 0.

    Args:
        labels: a row for each network, readout, similarity, reading and layer.
    """
    key = [*_KEY, "readout", "similarity", "reading"]
    told, units, scored = labels.copy(), labels["units"], labels["scored"]
    for name in ("true", "shuffled"):
        share = told.pop(f"{name}_share").fillna(0) * told["selective"] / units
        told[f"{name} of all"] = share
        told[f"{name} of all_error"] = (share * (1 - share) / (units - 1)) ** 0.5
    for name in ("label", "shuffled"):
        mean, error = (told[f"correlation {name}{end}"].fillna(0) for end in ("", "_error"))
        squares = error**2 * scored * (scored - 1).clip(lower=0) + scored * mean**2
        every = mean * scored / units
        variance = (squares - units * every**2) / (units - 1)
        told[f"every unit {name}"] = every
        told[f"every unit {name}_error"] = (variance / units).clip(lower=0) ** 0.5
    told["constant over"] = told["correlation constant"] - told["correlation shuffled"]
    for name in ("selective", "labelled"):
        told[name] = told[name] / units
    numbers = [name for name in told.select_dtypes("number") if name not in key]
    errors = [name for name in numbers if name.endswith("_error")]
    groups = told.groupby(key, sort=False)
    whole = groups[[n for n in numbers if n not in errors]].agg(lambda column: column.mean(skipna=False))
    whole[errors] = groups[errors].agg(lambda column: (column**2).sum(skipna=False) ** 0.5 / len(column))
    return whole.reset_index()


def _table(rows: list[dict[str, str]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(row.get(name, "") for name in names) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(names) + " |", "|" + "---|" * len(names), *lines])


def _pm(rows: pd.DataFrame, column: str) -> str:
    """Mean over the seeds, each a row, with its error."""
    values = rows[column]
    return plus_minus(
        values.mean(), values.sem() if len(rows) > 1 else float(rows[f"{column}_error"].iloc[0])
    )


def _percent(rows: pd.DataFrame, column: str, digits: int = 0) -> str:
    share = rows[column].mean()
    return "" if math.isnan(share) else f"{100 * share:.{digits}f} %"


def _beside(rows: pd.DataFrame, what: str) -> str:
    """Mean of the labels, and in brackets of labels shuffled, each with its error."""
    return f"{_pm(rows, f'{what} label')} ({_pm(rows, f'{what} shuffled')})"


def _true(rows: pd.DataFrame) -> str:
    """Units with a true label, of all; and with labels shuffled."""
    parts = []
    for name in ("true of all", "shuffled of all"):
        values = rows[name]
        error = values.sem() if len(rows) > 1 else float(rows[f"{name}_error"].iloc[0])
        parts.append(f"{100 * values.mean():.1f} ± {100 * error:.1f} %")
    return f"{parts[0]} ({parts[1]})"


def _summary(
    variant: str, readouts: list[str], whole: pd.DataFrame, networks: pd.DataFrame
) -> dict[str, str]:
    """What the study is read by; the first readout is the one that counts units."""
    own = networks[networks["variant"] == variant]
    rows = whole[(whole["variant"] == variant) & (whole["similarity"] == _FIRST)]
    told = {key: part for key, part in rows.groupby(["readout", "reading"], sort=False)}
    first, second = (told[(readout, "all")] for readout in readouts)
    narrow = {key[1]: part for key, part in told.items() if key[0] == readouts[0] and key[1] != "all"}
    return {
        "network": variant,
        "seeds": str(own["seed"].nunique()),
        "top-1": _percent(own, "validate top1 argmax", 1),
        "active": _percent(own, "validate active, competing sites", 1),
        "labelled": _percent(first, "labelled"),
        "fires on": _percent(first, "fires on"),
        f"correlation, {readouts[0]}": _pm(first, "correlation label"),
        "shuffled": _pm(first, "correlation shuffled"),
        "constant": _pm(first, "correlation constant"),
        "of every unit": _beside(first, "every unit"),
        **{f"at its {name}": _beside(part, "correlation") for name, part in narrow.items()},
        f"correlation, {readouts[1]}": _beside(second, "correlation"),
        "with a true label": _true(first),
        "carry nine tenths": f"{own['units for 90 %'].mean():.0f}{_of(own['contribute'].mean())}",
    }


def _of(count: float) -> str:
    return "" if math.isnan(count) else f" of {count:.0f}"


def _network(own: pd.DataFrame) -> dict[str, str]:
    mean = own.mean(numeric_only=True)
    return {
        "network": str(own["variant"].iloc[0]),
        "top-1": _percent(own, "validate top1 argmax", 1),
        "active at a position": _percent(own, "validate active, competing sites", 1),
        "participation ratio": _percent(own, "validate participation ratio", 1),
        "fire in an image": _percent(own, "fired in an image", 1),
        "overlap within / between classes": f"{mean['overlap within']:.2f} / {mean['overlap between']:.2f}",
        "at their top 4 %": (
            f"{mean['overlap within at top 4%']:.3f} / {mean['overlap between at top 4%']:.3f}"
        ),
        "carry nine tenths in the last layer": f"{mean['units for 90 %']:.0f} of {mean['last layer']:.0f}",
    }


def _labels(order: list[str], rows: pd.DataFrame) -> list[dict[str, str]]:
    found = []
    for variant in order:
        mine = rows[rows["variant"] == variant]
        for reading, part in mine.groupby("reading", sort=False):
            correlations = {name: _pm(part, f"correlation {name}") for name in CONTROLS}
            areas = [_pm(part, f"auroc {name}") for name in ("label", "shuffled")]
            found.append(
                {
                    "network": variant + ("" if reading == "all" else f", at its {reading}"),
                    "correlation": _pm(part, "correlation label"),
                    **correlations,
                    "AUROC": areas[0],
                    "shuffled AUROC": areas[1],
                    "selective": _percent(part, "selective"),
                    "best AUROC": f"{part['mean_auroc'].mean():.3f}",
                    "with a true label": _true(part),
                    "labelled": _percent(part, "labelled"),
                    "distinct": f"{part['distinct'].mean():.0f}",
                }
            )
    return found


def _similarities(order: list[str], rows: pd.DataFrame) -> list[dict[str, str]]:
    found = []
    for variant in order:
        own = rows[rows["variant"] == variant].groupby("similarity", sort=False)
        cells = {
            str(name): f"{_pm(part, 'correlation ahead')} ({part['constant over'].mean():.3f})"
            for name, part in own
        }
        found.append({"network": variant} | cells)
    return found


def _plot(order: list[str], readouts: list[str], rows: pd.DataFrame, path: Path) -> None:
    """Correlation of labels and of controls, a panel for each readout and similarity."""
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True, sharex=True)
    kinds = [(readout, similarity) for readout in readouts for similarity in ("soft_wpmi", _FIRST)]
    for axes, (readout, similarity) in zip(panels.flatten(), kinds, strict=True):
        part = rows[(rows["readout"] == readout) & (rows["similarity"] == similarity)]
        _panel(axes, order, part)
        axes.set_title(f"{similarity}, readout {readout}", fontsize=10)
        axes.set_xticks(range(len(order)), order, rotation=40, ha="right", fontsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel("correlation with the label")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, order: list[str], rows: pd.DataFrame) -> None:
    read = {name: part.groupby("variant") for name, part in rows.groupby("reading", sort=False)}
    mean = read["all"].mean(numeric_only=True).reindex(order)
    between = read["all"]["correlation label"].sem().reindex(order)  # NaN of a single seed
    errors = between.fillna(mean["correlation label_error"])
    places = range(len(order))
    axes.bar(places, mean["correlation label"], yerr=errors, color="0.8", ecolor="0.3")
    for control, marker in zip(CONTROLS, "o^x", strict=True):
        axes.plot(places, mean[f"correlation {control}"], marker, label=control, markersize=5)
    for (name, part), marker in zip([one for one in read.items() if one[0] != "all"], "Dv", strict=False):
        narrow = part["correlation label"].mean().reindex(order)
        axes.plot(places, narrow, marker, color="0.3", label=f"read at its {name}", markersize=5)
