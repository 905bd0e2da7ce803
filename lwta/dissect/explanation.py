"""What an explanation holds, as plain values and as text."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class FiredUnit:
    """A unit that fired on the input.

    Attributes:
        unit: channel of the layer.
        label, runner_up: its words, None where it has none; ``reason`` then says why.
        value: what the readout reads of it.
        margin: by how much its logit beat the block's runner-up, at the position read; where positions are
            pooled, at the one that ``max`` shows, or where it fired hardest. None where nothing competes.
        rival, rival_label: that runner-up.
        win_rate: share of the positions read at which it fired.
        contribution: first-order share of the target logit, sum of gradient x activation over positions.
        change: exact change of the target logit when the unit is silenced: its output is zeroed at
            every position, the competition unchanged. None before it was measured.
        sign_differs: its value has the other sign than the exemplars its label describes.
        map: its value at each patch or pixel, rows of the grid, 0 where it did not fire; None where
            the layer has no grid, or a single position.
    """

    unit: int
    label: str | None
    runner_up: str | None
    reason: str | None
    value: float
    margin: float | None
    rival: int | None
    rival_label: str | None
    win_rate: float
    contribution: float
    change: float | None
    sign_differs: bool
    map: list[list[float]] | None = field(repr=False)


@dataclass
class LayerExplanation:
    """What fired in one layer.

    Attributes:
        fired_per_position: fraction of the units that fire at a position read, averaged.
        fired_ever: fraction that fires at any position read; equal to it for ``cls``.
        contribution: of all units of the layer together, first order; the rest of the logit comes by other
            ways (the residual stream, attention, biases).
        fired: the units, by the magnitude of their contribution, largest first.
    """

    layer: str
    units: int
    competitors: int | None
    fired_per_position: float
    fired_ever: float
    contribution: float
    fired: list[FiredUnit]

    def headline(self, readout: str) -> str:
        """One sentence: how many of how many units fired."""
        count = round(self.fired_ever * self.units)
        text = f"{self.layer}: {count} of {self.units} units fired ({100 * self.fired_ever:.2f} %)"
        where = "at the class token"
        if readout != "cls":
            where = f"somewhere, {100 * self.fired_per_position:.2f} % per position, read as their {readout}"
        return f"{text} {where}; its units together contribute {self.contribution:+.2f}"


@dataclass
class Explanation:
    """Evidence for the decision on one image.

    Attributes:
        classes: the most probable classes with their probabilities.
        target: class whose logit is explained.
        logit: that logit against its mean over classes; contributions and changes are of this number.
        readout: what was read of each layer.
    """

    image: str
    classes: list[tuple[str, float]]
    target: str
    logit: float
    readout: str
    layers: list[LayerExplanation]

    def table(self) -> str:
        """The explanation as text."""
        classes = ", ".join(f"{name} {p:.2f}" for name, p in self.classes[:3])
        lines = [
            f"{self.image}: {classes}",
            f"logit of {self.target} above the mean of all: {self.logit:+.2f}",
        ]
        for layer in self.layers:
            lines += ["", layer.headline(self.readout), _HEAD, *map(_line, layer.fired)]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


_ROW = "{:>6}  {:<20} {:>8} {:>8}  {:<26} {:>12} {:>9}"
_HEAD = _ROW.format("unit", "label", "value", "margin", "rival", "contribution", "silenced")


def _line(u: FiredUnit) -> str:
    label = (u.label or f"({u.reason or 'no label'})") + (" (other sign)" if u.sign_differs else "")
    rival = "" if u.rival is None else f"{u.rival} ({u.rival_label or 'no label'})"
    margin = "" if u.margin is None else f"{u.margin:.2f}"
    change = "" if u.change is None else f"{u.change:+.3f}"
    value, contribution = f"{u.value:+.2f}", f"{u.contribution:+.3f}"
    return _ROW.format(u.unit, label, value, margin, rival, contribution, change)
