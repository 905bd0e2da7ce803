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
_TITLES = {"shuffled": "shuffled labels", "constant": "the constant label", "random": "random concepts"}
_NOTE = """Made by `python -m benchmarks.labels table`. Means over the units of a layer that could be judged,
then over layers, each alike, and over seeds. Plus or minus the standard error: over seeds where there are
several, over the units of the one network where there is one, which leaves out how trainings differ.
*Shuffled*, *constant* and *random* are labels that mean nothing; numbers in brackets are of labels
shuffled. Readout `patches` is of the last layer alone. What each column is:
[docs/study.md](../../../docs/study.md)."""


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
        _table([_summary(name, readouts[0], whole, networks) for name in order]),
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
        for control, title in _TITLES.items():
            title = f"## Correlation over {title} by similarity, readout {readout}"
            parts += [title, _table(_similarities(order, part, control))]
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
    for end in ("", "_error"):
        told[f"over shuffled{end}"] = told[f"correlation ahead{end}"]
    for name in ("constant", "random"):  # of these the rows have no differences unit by unit
        told[f"over {name}"] = told["correlation label"] - told[f"correlation {name}"]
        squares = (told[f"correlation {what}_error"] ** 2 for what in ("label", name))
        told[f"over {name}_error"] = sum(squares) ** 0.5
    for name in ("selective", "labelled"):
        told[name] = told[name] / units
    told["selective_error"] = (told["selective"] * (1 - told["selective"]) / (units - 1)) ** 0.5
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


def _mean(rows: pd.DataFrame, column: str) -> tuple[float, float]:
    """Mean over the seeds, each a row, and its error."""
    values = rows[column]
    return values.mean(), values.sem() if len(rows) > 1 else float(rows[f"{column}_error"].iloc[0])


def _pm(rows: pd.DataFrame, column: str) -> str:
    return plus_minus(*_mean(rows, column))


def _controls(rows: pd.DataFrame, metric: str, title: str = "") -> dict[str, str]:
    return {f"{name}{title}": _pm(rows, f"{metric} {name}") for name in CONTROLS}


def _share(rows: pd.DataFrame, column: str) -> str:
    mean, error = _mean(rows, column)
    return f"{100 * mean:.1f} ± {100 * error:.1f} %"


def _percent(rows: pd.DataFrame, column: str, digits: int = 0) -> str:
    share = rows[column].mean()
    return "" if math.isnan(share) else f"{100 * share:.{digits}f} %"


def _true(rows: pd.DataFrame) -> str:
    """Units with a true label, of all; and with labels shuffled."""
    return f"{_share(rows, 'true of all')} ({_share(rows, 'shuffled of all')})"


def _summary(variant: str, readout: str, whole: pd.DataFrame, networks: pd.DataFrame) -> dict[str, str]:
    """What the study is read by, of one readout."""
    own = networks[networks["variant"] == variant]
    rows = whole[(whole["variant"] == variant) & (whole["similarity"] == _FIRST)]
    rows = rows[(rows["readout"] == readout) & (rows["reading"] == "all")]
    return {
        "network": variant,
        "seeds": str(own["seed"].nunique()),
        "top-1": _percent(own, "validate top1 argmax", 1),
        "active": _percent(own, "validate active, competing sites", 1),
        "labelled": _percent(rows, "labelled"),
        "fires on": _percent(rows, "fires on"),
        f"correlation, {readout}": _pm(rows, "correlation label"),
        **_controls(rows, "correlation"),
        "of every unit": f"{_pm(rows, 'every unit label')} ({_pm(rows, 'every unit shuffled')})",
        "with a true label": _true(rows),
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
            found.append(
                {
                    "network": variant + ("" if reading == "all" else f", at its {reading}"),
                    "correlation": _pm(part, "correlation label"),
                    **_controls(part, "correlation"),
                    "AUROC": _pm(part, "auroc label"),
                    **_controls(part, "auroc", " AUROC"),
                    "selective": _share(part, "selective"),
                    "with a true label": _true(part),
                    "labelled": _percent(part, "labelled"),
                    "distinct": f"{part['distinct'].mean():.0f}",
                }
            )
    return found


def _similarities(order: list[str], rows: pd.DataFrame, control: str) -> list[dict[str, str]]:
    found = []
    for variant in order:
        own = rows[rows["variant"] == variant].groupby("similarity", sort=False)
        found.append({"network": variant} | {str(name): _pm(part, f"over {control}") for name, part in own})
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
    places = range(len(order))

    def told(reading: str, what: str) -> tuple[pd.Series, pd.Series]:
        mean = read[reading].mean(numeric_only=True).reindex(order)
        between = read[reading][f"correlation {what}"].sem().reindex(order)  # NaN of a single seed
        return mean[f"correlation {what}"], between.fillna(mean[f"correlation {what}_error"])

    mean, error = told("all", "label")
    axes.bar(places, mean, yerr=error, color="0.8", ecolor="0.3")
    for control, marker in zip(CONTROLS, "o^x", strict=True):
        axes.errorbar(places, *told("all", control), fmt=marker, label=control, markersize=5)
    for reading, marker in zip([name for name in read if name != "all"], "Dv", strict=False):
        dark = {"color": "0.3", "label": f"read at its {reading}"}
        axes.errorbar(places, *told(reading, "label"), fmt=marker, markersize=5, **dark)
