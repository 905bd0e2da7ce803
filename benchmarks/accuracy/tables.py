"""What a study found, as tables and plots made from its rows alone."""

import pandas as pd

from benchmarks.accuracy.findings import difference, served
from benchmarks.accuracy.plots import plot_curves
from benchmarks.accuracy.rows import read_right, read_rows, result_file, write_rows
from benchmarks.accuracy.study import REPOSITORY, Study
from lwta.errors import InputError
from models.measure import evaluation_name


def write_tables(study: Study) -> str:
    """Write STUDY.md, and STUDY.png where curves were tested; returns the text.

    Raises:
        InputError: where no trial is trained and judged yet, or a folder is of another recipe.
    """
    for trial in study.trials():
        trial.check_recipe(trial.recipe(REPOSITORY), trial.read("trained"))
    write_rows(study)
    rows = pd.DataFrame(read_rows(study))
    if rows.empty:
        raise InputError(f"the study {study.name} has no trained and judged trial yet; run fit first")
    parts = [
        f"# {study.name}",
        f"Made by `python -m benchmarks.accuracy table` from `{study.name}.csv`, which has a row for each "
        "run with its command, commit and hardware. All shares in percent.",
    ]
    tested = rows[rows["test images"].notna()] if "test images" in rows else rows[:0]
    if not tested.empty and study.final:
        argmax = evaluation_name(0)
        parts += ["## Test images", _final(study, tested)]
        parts += [_differences(study, tested), _differences(study, tested, argmax)]
    if plot_curves(study, tested, result_file(study, ".png")):
        parts.append(f"![Top-1 against the number of competitors]({study.name}.png)")
    parts += ["## Validation images, for every choice", _validation(rows)]
    text = "\n\n".join(parts) + "\n"
    result_file(study, ".md").write_text(text)
    return text


def _validation(rows: pd.DataFrame) -> str:
    lines = []
    for _, row in rows.iterrows():
        own = rows[rows["variant"] == row["variant"]]
        names = [column for column in rows if column.startswith("validate top1 ")]
        lines.append(
            {"variant": row["variant"], "seed": row["seed"]}
            | {name.removeprefix("validate top1 ").replace("_", " "): _percent(row[name]) for name in names}
            | {
                "judged by": served(own).replace("_", " "),
                "calibration error by it": _percent(row[f"validate calibration {served(own)}"]),
                "fire at a position, competing / all sites": _firing(row, "validate"),
                "winners that differ, least layer": _percent(
                    row["validate winners that differ, least layer"], 1
                ),
                "dead, worst layer": _percent(row["validate dead, worst layer"]),
                "minutes": "" if pd.isna(row.get("minutes")) else row["minutes"],
            }
        )
    return _markdown(lines)


def _final(study: Study, tested: pd.DataFrame) -> str:
    """A line for each row of the final table: means over its seeds; blank where not all were judged so."""
    lines, names = [], [name for name in tested if name.startswith("test top1 ")]
    for name, variant in study.final.items():
        own = tested[tested["variant"] == variant]
        if own.empty:
            continue
        mean, by = own.mean(numeric_only=True, skipna=False), served(own, "test")
        top1 = {n.removeprefix("test top1 ").replace("_", " "): _percent(mean[n]) for n in names}
        best = own[f"test top1 {by}"]
        least = own["test winners that differ, least layer"].min()
        lines.append(
            {"": name, "seeds": len(own), **top1}
            | {
                "judged by": by.replace("_", " "),
                "by it, lowest to highest seed": f"{_percent(best.min())} to {_percent(best.max())}",
                "calibration error by it": _percent(mean[f"test calibration {by}"]),
                "fire at a position, competing / all sites": _firing(mean, "test"),
                "participation ratio": f"{mean['test participation ratio']:.3f}",
                "winners that differ, mean (least layer)": ""
                if pd.isna(least)
                else f"{_percent(mean['test winners that differ, mean layer'], 1)} ({_percent(least, 1)})",
                "dead on validation images, worst layer": _percent(own["validate dead, worst layer"].max()),
            }
        )
    return _markdown(lines)


def _differences(study: Study, tested: pd.DataFrame, by: str | None = None) -> str:
    """Points of each final row above each of ``against``, with 95 % intervals over seeds and images."""
    right = read_right(study)
    title = f"points on the test images, each by {f'the {by}' if by else 'what it is judged by'}"
    lines = []
    for name, variant in study.final.items():
        line = {title: name}
        for other in study.against:
            found = None if other == name else difference(tested, right, variant, study.final[other], by)
            line[f"above {other}"] = ""
            if found:
                mean, low, high = found.interval
                over = "1 seed" if found.seeds == 1 else f"{found.seeds} seeds"
                line[f"above {other}"] = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}], {over}"
        lines.append(line)
    return _markdown(lines)


def _firing(row: pd.Series, split: str) -> str:
    return " / ".join(_percent(row[f"{split} active, {sites} sites"]) for sites in ("competing", "all"))


def _percent(value: float, digits: int = 2) -> str:
    return "" if pd.isna(value) else f"{100 * value:.{digits}f}"


def _markdown(lines: list[dict[str, object]]) -> str:
    cells = [list(lines[0]), ["---"] * len(lines[0]), *([str(v) for v in line.values()] for line in lines)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in cells)
