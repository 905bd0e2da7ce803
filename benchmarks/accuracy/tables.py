"""What a study found, as tables and plots made from its rows alone."""

import pandas as pd

from benchmarks.accuracy.findings import difference, evaluations, served
from benchmarks.accuracy.plots import plot_curves
from benchmarks.accuracy.rows import read_right, read_rows, write_rows
from benchmarks.accuracy.study import Study
from lwta.errors import InputError


def write_tables(study: Study) -> str:
    """Write STUDY.md, and STUDY.png where the study has curves; returns the text."""
    write_rows(study)
    rows = pd.DataFrame([row for row in read_rows(study) if "validate images" in row])
    if rows.empty:
        raise InputError(f"the study {study.name} has no trained and judged trial yet; run fit first")
    rows = rows[rows["validate images"].notna()]
    parts = [
        f"# {study.name}",
        "Made by `python -m benchmarks.accuracy table`. Top-1 in percent; the rows it is made from, with "
        f"commands, commits and hardware: `{study.name}.csv`.",
        "## Validation images",
        _markdown(_validation(rows)),
    ]
    if any(column.startswith("test ") for column in rows):
        parts += ["## Test images", _markdown(_final(study, rows)), _markdown(_differences(study, rows))]
    if study.curves:
        parts.append(f"![Top-1 against the number of competitors]({study.name}.png)")
        plot_curves(study, rows, study.results / f"{study.name}.png")
    text = "\n\n".join(parts) + "\n"
    (study.results / f"{study.name}.md").write_text(text)
    return text


def _validation(rows: pd.DataFrame) -> pd.DataFrame:
    shown = {f"validate top1 {name}": name.replace("_", " ") for name in evaluations(rows, "validate")}
    table = rows[["variant", "seed", *shown]].rename(columns=shown)
    for name in shown.values():
        table[name] = [_percent(value) for value in table[name]]
    return table.assign(
        **{
            "winners that differ": [_percent(v, 0) for v in rows["validate winners that differ, mean layer"]],
            "dead, worst layer": [_percent(v) for v in rows["validate dead, worst layer"]],
        }
    )


def _final(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """A line for each row of the final table: means over its seeds."""
    lines = []
    for row, variant in study.final.items():
        own = rows[(rows["variant"] == variant) & rows["test images"].notna()]
        if own.empty:
            continue
        mean = own.mean(numeric_only=True)
        top1 = {n.replace("_", " "): _percent(mean[f"test top1 {n}"]) for n in evaluations(rows, "test")}
        lines.append(
            {
                "": row,
                "seeds": len(own),
                **top1,
                "range over seeds": _range(own[f"test top1 {served(own)}"]),
                "calibration error": _percent(mean[f"test calibration {served(own)}"]),
                "active, competing / all sites": f"{_percent(mean['test active, competing sites'])} / "
                f"{_percent(mean['test active, all sites'])}",
                "participation ratio": f"{mean['test participation ratio']:.3f}",
                "winners that differ": _percent(mean["test winners that differ, mean layer"], 0),
                "dead, worst layer": _percent(own["validate dead, worst layer"].max()),
            }
        )
    return pd.DataFrame(lines)


def _differences(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """Points of each final row above each of ``against``, with 95 % intervals over seeds and images."""
    right = read_right(study)
    lines = []
    for row, variant in study.final.items():
        line = {"": row}
        for other in study.against:
            if other != row and (found := difference(rows, right, variant, study.final[other])):
                line[f"above {other}"] = f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def _range(values: pd.Series) -> str:
    return f"{_percent(values.min())} to {_percent(values.max())}"


def _percent(value: float, digits: int = 2) -> str:
    return "" if pd.isna(value) else f"{100 * value:.{digits}f}"


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
