"""Tables and plots of a study of labels, from its rows."""

import math
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.accuracy.study import REPOSITORY, Study
from lwta.dissect.label_scores import CONTROLS

_KEY = ["variant", "seed"]
_FIRST = "cos_cubed"  # the similarity shown for every network beside soft_wpmi


def write_tables(study: Study) -> Path:
    """Write STUDY.md and its plots beside the rows; returns the page."""
    folder = REPOSITORY / study.results
    labels, fired, trained = (
        pd.read_csv(folder / f"{study.name}{end}.csv") for end in ("-labels", "-firing", "")
    )
    order = [name for name in study.variants if name in set(labels["variant"])]
    whole = _whole(labels)
    readouts = labels["readout"].unique().tolist()
    parts = [
        f"# Labels of the networks of [{study.name}.yaml](../../labels/{study.name}.yaml)",
        "Made by `python -m benchmarks.labels table`; means over the units of a layer, and then over layers "
        "and seeds, plus or minus the standard error over units. What each column is: "
        "[docs/study.md](../../../docs/study.md).",
        f"## Summary, labels by {_FIRST}",
        _table(_summary(order, readouts[:2], whole, trained, fired)),
        "## Networks",
        _table(_networks(order, trained, fired)),
    ]
    for readout in readouts:
        for similarity in ("soft_wpmi", _FIRST):
            part = whole[(whole["readout"] == readout) & (whole["similarity"] == similarity)]
            if len(part):
                parts += [f"## Labels by {similarity}, readout {readout}", _table(_labels(order, part))]
    for readout in readouts:
        parts += [
            f"## Correlation by similarity, readout {readout}",
            _table(_similarities(order, whole[whole["readout"] == readout])),
        ]
    page = folder / f"{study.name}.md"
    page.write_text("\n\n".join(parts) + "\n")
    _plot(order, readouts[:2], whole, folder / f"{study.name}.png")
    return page


def _whole(labels: pd.DataFrame) -> pd.DataFrame:
    """Rows of all layers together, in whose means each layer counts alike.

    Where every unit counts alike, a network whose early units cannot be labelled seems better by what is
    missing: labels fit late layers best in every network.
    """
    key = [*_KEY, "readout", "similarity", "reading"]
    whole = labels[labels["layer"] == "all"].set_index(key).sort_index()
    layers = labels[labels["layer"] != "all"]
    errors = [name for name in labels if " " in name and name.endswith("_error")]
    means = [name.removesuffix("_error") for name in errors]
    whole[means] = layers.groupby(key)[means].mean()
    squares = layers.set_index(key)[errors].pow(2).groupby(key)
    whole[errors] = squares.sum(min_count=1).pow(0.5) / squares.count()
    order = labels.drop_duplicates(key).set_index(key).index
    return whole.loc[order].reset_index()


def _table(frame: pd.DataFrame) -> str:
    head = ["| " + " | ".join(frame.columns) + " |", "|" + "---|" * len(frame.columns)]
    return "\n".join(
        [*head, *("| " + " | ".join(row) + " |" for row in frame.astype(str).to_numpy().tolist())]
    )


def _summary(
    order: list[str], readouts: list[str], labels: pd.DataFrame, trained: pd.DataFrame, fired: pd.DataFrame
) -> pd.DataFrame:
    """What the study is read by; the first readout is the one that counts units."""
    both = trained.merge(fired, on=_KEY)
    rows = []
    for variant in order:
        mean = both[both["variant"] == variant].mean(numeric_only=True)
        own = labels[(labels["variant"] == variant) & (labels["similarity"] == _FIRST)]
        told = own.groupby(["readout", "reading"]).mean(numeric_only=True)
        first = told.loc[(readouts[0], "all")]
        narrow = [told.loc[key] for key in told.index if key[0] == readouts[0] and key[1] != "all"]
        best = max(CONTROLS, key=lambda name: first[f"correlation {name}"])
        rows.append(
            {
                "network": variant,
                "seeds": own["seed"].nunique(),
                "top-1": f"{100 * mean['validate top1 argmax']:.1f} %",
                "active": f"{100 * mean['validate active, competing sites']:.1f} %",
                f"correlation, {readouts[0]}": _pm(first, "correlation label"),
                "at their top 4 %": _pm(narrow[0], "correlation label") if narrow else "",
                "best control": f"{first[f'correlation {best}']:.3f} ({best})",
                f"correlation, {readouts[1]}": _pm(told.loc[(readouts[1], "all")], "correlation label"),
                "units labelled": f"{100 * first['labelled'] / first['units']:.0f} %",
                "with a true label": f"{_percent(first['selective'] * first['true_share'] / first['units'])}",
                "distinct": f"{first['distinct']:.0f}",
                "units for 90 % of a logit": f"{mean['units for 90 %']:.0f} of {mean['last layer']:.0f}",
            }
        )
    return pd.DataFrame(rows)


def _networks(order: list[str], trained: pd.DataFrame, fired: pd.DataFrame) -> pd.DataFrame:
    both = trained.merge(fired, on=_KEY)
    rows = []
    for variant in order:
        mean = both[both["variant"] == variant].mean(numeric_only=True)
        rows.append(
            {
                "network": variant,
                "top-1": f"{100 * mean['validate top1 argmax']:.1f} %",
                "active at a position": f"{100 * mean['validate active, competing sites']:.1f} %",
                "participation ratio": f"{100 * mean['validate participation ratio']:.1f} %",
                "fire in an image": f"{100 * mean['fired in an image']:.1f} %",
                "overlap within / between classes": f"{mean['overlap within']:.2f} / "
                f"{mean['overlap between']:.2f}",
                "at their top 4 %": f"{mean['overlap within at top 4%']:.3f} / "
                f"{mean['overlap between at top 4%']:.3f}",
                "units for 90 % of a logit": f"{mean['units for 90 %']:.0f} of {mean['last layer']:.0f}",
            }
        )
    return pd.DataFrame(rows)


def _labels(order: list[str], rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for variant in order:
        for reading in rows.loc[rows["variant"] == variant, "reading"].unique():
            mean = rows[(rows["variant"] == variant) & (rows["reading"] == reading)].mean(numeric_only=True)
            correlations = [_pm(mean, f"correlation {name}") for name in ("label", *CONTROLS)]
            found.append(
                {
                    "network": variant + ("" if reading == "all" else f", at its {reading}"),
                    **dict(zip(("correlation", *CONTROLS), correlations, strict=True)),
                    "AUROC": _pm(mean, "auroc label"),
                    "selective": f"{100 * mean['selective'] / mean['units']:.0f} %",
                    "best AUROC": f"{mean['mean_auroc']:.3f}",
                    "true labels (shuffled)": f"{_percent(mean['true_share'])} "
                    f"({_percent(mean['shuffled_share'])})",
                    "labelled": f"{100 * mean['labelled'] / mean['units']:.0f} %",
                    "distinct": f"{mean['distinct']:.0f}",
                }
            )
    return pd.DataFrame(found)


def _similarities(order: list[str], rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for variant in order:
        own = rows[(rows["variant"] == variant) & (rows["reading"] == "all")]
        means = own.groupby("similarity", sort=False).mean(numeric_only=True)
        cells = {name: _pm(mean, "correlation label") for name, mean in means.iterrows()}
        found.append({"network": variant} | {str(name): cell for name, cell in cells.items()})
    return pd.DataFrame(found)


def _pm(mean: pd.Series, column: str) -> str:
    return f"{mean[column]:.3f} ± {mean[f'{column}_error']:.3f}"


def _percent(share: float) -> str:
    return "none" if math.isnan(share) else f"{100 * share:.0f} %"


def _plot(order: list[str], readouts: list[str], rows: pd.DataFrame, path: Path) -> None:
    """Correlation of labels and of controls, a panel for each readout and similarity."""
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True, sharex=True).flatten()
    kinds = [(readout, similarity) for readout in readouts for similarity in ("soft_wpmi", _FIRST)]
    for axes, (readout, similarity) in zip(panels, kinds, strict=True):
        part = rows[(rows["readout"] == readout) & (rows["similarity"] == similarity)]
        mean = part[part["reading"] == "all"].groupby("variant").mean(numeric_only=True).reindex(order)
        axes.bar(
            range(len(order)),
            mean["correlation label"],
            yerr=mean["correlation label_error"],
            color="0.8",
            ecolor="0.3",
        )
        for control, marker in zip(CONTROLS, "o^x", strict=True):
            axes.plot(range(len(order)), mean[f"correlation {control}"], marker, label=control, markersize=5)
        narrow = part[part["reading"] != "all"].groupby("variant").mean(numeric_only=True).reindex(order)
        axes.plot(
            range(len(order)),
            narrow["correlation label"],
            "D",
            color="0.3",
            label="read at its top 4 %",
            markersize=5,
        )
        axes.set_title(f"{similarity}, readout {readout}", fontsize=10)
        axes.set_xticks(range(len(order)), order, rotation=40, ha="right", fontsize=8)
    panels[0].set_ylabel("correlation with the label")
    panels[2].set_ylabel("correlation with the label")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
