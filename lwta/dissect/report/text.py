"""An explanation as text for a terminal."""

from collections.abc import Iterator

from lwta.dissect.explanation import (
    Counterfactual,
    Explanation,
    FiredUnit,
    LayerExplanation,
    Stability,
    Word,
)

_ROW = "{:>6}  {:<20} {:>8} {:>7} {:>6}  {:<26} {:>12} {:>9} {:>9}"
_HEAD = ("unit", "label", "value", "margin", "wins", "rival", "contribution", "silenced", "excluded")
_NAMED = 8  # units named in a sentence


def explanation_text(e: Explanation) -> str:
    """The decision, then a table of each layer's units that contribute most."""
    classes = ", ".join(f"{name} {p:.2f}" for name, p in e.classes[:3])
    truth = "" if e.truth is None else f"; in truth {e.truth}"
    lines = [f"{e.image}: {classes}{truth}", f"{e.question}: {e.score:+.2f}"]
    if e.stability:
        lines.append(_drawn(e.stability, e.target))
    if e.counterfactual:
        lines += ["", *_counterfactual(e.counterfactual, e)]
    for layer in e.layers:
        lines += ["", *_layer(layer, e.readout, e.stability is not None)]
    return "\n".join(lines) + "\n"


def _layer(layer: LayerExplanation, readout: str, drawn: bool) -> Iterator[str]:
    yield layer.headline(readout)
    yield layer.completeness(readout)
    stable = ["again"] if drawn else []
    yield (_ROW + " {:>6}" * drawn).format(*_HEAD, *stable)
    yield from (_line(unit, drawn) for unit in layer.measured)
    if left := len(layer.fired) - len(layer.measured):
        told = f"and {left} that contribute less" if layer.measured else f"{left} units"
        yield f"   ... {told}; the page and --json list them"
    if layer.drawn:
        shares = [f"{unit} {100 * unit.share:.0f} %" for unit in layer.drawn[:_NAMED]]
        yield f"   at times, when drawn: {', '.join(shares)}"


def _line(u: FiredUnit, drawn: bool) -> str:
    label = (u.label or f"({u.reason or 'no label'})") + (" (other sign)" if u.sign_differs else "")
    return (
        (_ROW + " {:>6}" * drawn)
        .format(
            u.unit,
            label,
            f"{u.value:+.2f}",
            "" if u.margin is None else f"{u.margin:.2f}",
            "" if u.probability is None else f"{100 * u.probability:.0f} %",
            str(u.rivals[0]) if u.rivals else "",
            f"{u.contribution:+.3f}",
            _change(u.silenced),
            _change(u.excluded),
            *([f"{100 * (u.stability or 0):.0f} %"] if drawn else []),
        )
        .rstrip()
    )


def _change(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _drawn(s: Stability, target: str) -> str:
    classes = ", ".join(f"{name} {100 * share:.0f} %" for name, share in s.classes[:3])
    return (
        f"winners drawn {s.samples} times: predicted {classes}; {target} {s.probability:.2f} on average, "
        f"score {s.score:+.2f}, standard deviation {s.deviation:.2f}"
    )


def _counterfactual(c: Counterfactual, e: Explanation) -> Iterator[str]:
    yield f"where {' and '.join(c.told)}:"
    yield "  " + ", ".join(
        f"{name} {after:.2f} ({after - before:+.2f})" for name, before, after in c.classes[:3]
    )
    yield f"  {e.question}: {c.score:+.2f} ({c.score - e.score:+.3f})"
    for layer in c.layers:
        told = [] if layer.positions is None else [f"{100 * layer.positions:.1f} % of the winners are others"]
        told += [f"fire now: {_named(layer.gained)}"] if layer.gained else []
        told += [f"no longer: {_named(layer.lost)}"] if layer.lost else []
        yield f"  {layer.layer}: {'; '.join(told)}"


def _named(units: list[Word]) -> str:
    more = f" and {len(units) - _NAMED} more" if len(units) > _NAMED else ""
    return ", ".join(map(str, units[:_NAMED])) + more
