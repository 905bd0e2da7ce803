"""The rows of every device as a table."""

from typing import Any

from benchmarks.speed.cases import RESULTS, Case, Target, cases, read_rows

Row = dict[str, Any]


def write_table() -> str:
    """Write benchmarks/results/speed.md and return it."""
    parts = [
        "# Speed",
        "Made by `python -m benchmarks.speed table` from `speed/cpu.json` and `speed/cuda.json`, which hold "
        "each row's command, commit, machine, quartiles, and what winners only chose for which shape. "
        "Times are medians in milliseconds; what is compared took turns in one process.",
    ]
    for device, title in (("cpu", "CPU, float32"), ("cuda", "CUDA GPU, bfloat16")):
        rows = read_rows(device)
        parts += [f"## {title}", *_machines(rows), _table(cases(device), rows)]
    text = "\n\n".join(parts) + "\n"
    RESULTS.with_suffix(".md").write_text(text)
    return text


def _machines(rows: dict[str, Row]) -> list[str]:
    """What the rows come from, a line each, with their names where it is not the same for all."""
    told: dict[str, list[str]] = {}
    for name, row in rows.items():
        m = row["machine"]
        text = (
            f"{m['gpu'] or m['processor']}, {m['threads']} threads, torch {m['torch']}, "
            f"Python {m['python']}, {row['rounds']} rounds, commit {m['commit']}, "
            f"`{_settings(m)}{m['command']}`"
        )
        told.setdefault(text, []).append(name)
    return list(told) if len(told) < 2 else [f"{text}: {'; '.join(names)}." for text, names in told.items()]


def _settings(machine: Row) -> str:
    """The allocator's, as a shell takes them: they change what a fresh tensor costs."""
    return "".join(f"{name}={value} " for name, value in machine["allocator"].items())


def _table(known: list[Case], rows: dict[str, Row]) -> str:
    lines = ["| case | ms | ratio | to reach | reached |", "| --- | --- | --- | --- | --- |"]
    for case in known:
        row = rows.get(case.name)
        if row is None:
            bounds = ", ".join(_bound(target) for target in case.targets)
            lines.append(f"| {case.name} | not run | | {bounds} | |")
            continue
        times = ", ".join(f"{name} {_number(time['median'])}" for name, time in row["times"].items())
        for place, target in enumerate(case.targets or (None,)):
            first = f"{case.name} | {times}" if place == 0 else " | "
            lines.append(f"| {first} | {_reached(target, row)} |")
    return "\n".join(lines)


def _reached(target: Target | None, row: Row) -> str:
    if target is None:
        return " | | "
    value = value_of(target, row)
    if value is None:
        return f"not compared | {_bound(target)} | "
    met = value >= target.bound if target.least else value <= target.bound
    return f"{value:.2f} | {_bound(target)} | {'yes' if met else 'no'}"


def value_of(target: Target, row: Row) -> float | None:
    """What a row has of a target; None where one of the two was not timed."""
    if target.what == "apart":
        return row["apart"]
    if target.what == "held":
        return row["held"]["LWTA"] / row["held"]["GELU"]
    above, below = (row["times"].get(name) for name in target.what.split(" / "))
    return above["median"] / below["median"] if above and below else None


def _bound(target: Target) -> str:
    return f"{target.what} {'at least' if target.least else 'at most'} {target.bound:g}"


def _number(ms: float) -> str:
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"
