"""What an explanation holds, as plain values, as text, and as HTML in a notebook."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image


@dataclass
class Word:
    """A unit by what it means.

    Attributes:
        unit: channel of the layer.
        label, runner_up: its words, None where it has none; ``reason`` then says why.
        negative: its label describes wins with negative values.
    """

    unit: int
    label: str | None = None
    runner_up: str | None = None
    reason: str | None = "not labelled"
    negative: bool = False

    def __str__(self) -> str:
        return f"{self.unit} ({self.label or self.reason or 'no label'})"


@dataclass
class Rival(Word):
    """A unit of the same block that lost.

    Attributes:
        margin: by how much its logit fell short of the winner's.
        probability: of winning there, were the winner drawn at the layer's noise.
    """

    margin: float = 0.0
    probability: float = 0.0


@dataclass
class FiredUnit(Word):
    """A unit that fired on the input.

    Winner probability and rivals are those at the position read; where positions are pooled, at the one that
    ``max`` shows, or where it fired hardest. They are None and empty where nothing competes.

    Attributes:
        value: what the readout reads of it.
        win_rate: share of the positions read at which it fired.
        contribution: first-order share of the target score, sum of gradient x activation over positions.
        probability: of winning, were the winner drawn at the layer's noise.
        rivals: of its block, the nearest first.
        silenced: exact change of the target score when its output is zeroed at every position and the
            competition is unchanged. None where it was not measured.
        excluded: exact change when it leaves the competition at every position and others win.
        stability: of the positions at which it won, the share at which it wins again when the winners are
            drawn. None where nothing was drawn.
        map: (rows, columns) of the grid, its value at each patch or pixel, 0 where it did not fire; None
            where the layer has no grid, or a single position, or the unit was not measured.
    """

    value: float = 0.0
    win_rate: float = 0.0
    contribution: float = 0.0
    probability: float | None = None
    rivals: list[Rival] = field(default_factory=list)
    silenced: float | None = None
    excluded: float | None = None
    stability: float | None = None
    map: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def margin(self) -> float | None:
        """By how much its logit beat the block's runner-up; None where nothing competes."""
        return self.rivals[0].margin if self.rivals else None

    @property
    def sign_differs(self) -> bool:
        """Its value has the other sign than the exemplars that its label describes."""
        return bool(self.label) and (self.value > 0 if self.negative else self.value < 0)


@dataclass
class Drawn(Word):
    """A unit that does not win by the argmax, and does when the winners are drawn.

    Attributes:
        share: of draws and positions read, those at which it wins.
    """

    share: float = 0.0


@dataclass
class LayerExplanation:
    """What fired in one layer.

    Attributes:
        units, competitors: D and U; None where nothing competes.
        fired_per_position: fraction of the units that fire at a position read, averaged.
        fired_ever: fraction that fires at any position read; equal to it for ``cls``.
        contribution: of all units of the layer together, first order.
        silenced: exact change of the target score when all units of the layer are silenced. To first order it
            is minus the contribution; by how much it is not, the layers after this one are not linear.
        fired: all units that fired, by the magnitude of their contribution, largest first.
        drawn: units that fire only when the winners are drawn, the most frequent first.
        noise: noise scale at which winners are drawn and winner probabilities hold; where it is 0 they hold
            at 1. None where nothing competes.
    """

    layer: str
    units: int
    competitors: int | None
    fired_per_position: float
    fired_ever: float
    contribution: float
    silenced: float
    fired: list[FiredUnit]
    drawn: list[Drawn] = field(default_factory=list)
    noise: float | None = None

    @property
    def measured(self) -> list[FiredUnit]:
        """The fired units whose silencing was measured: those that contribute most."""
        return [unit for unit in self.fired if unit.silenced is not None]

    def headline(self, readout: str) -> str:
        """One sentence: how many of how many units fired."""
        text = f"{self.layer}: {len(self.fired)} of {self.units} units fired ({100 * self.fired_ever:.2f} %)"
        where = "at the class token"
        if readout != "cls":
            where = f"somewhere, {100 * self.fired_per_position:.2f} % per position, read as their {readout}"
        return f"{text} {where}"

    def completeness(self, readout: str) -> str:
        """One sentence: what the attributions sum to, against what silencing all of them changes."""
        listed = sum(unit.contribution for unit in self.fired)
        of_these = f", {listed:+.3f} those that fired there" if readout == "cls" else ""
        return (
            f"its units together contribute {self.contribution:+.3f} to first order{of_these}; "
            f"silencing all of them changes it by {self.silenced:+.3f}"
        )


@dataclass
class Stability:
    """How a decision varies when the winners are drawn.

    Attributes:
        samples: forward passes, each with its own winners in all competing layers.
        classes: predicted class -> share of the samples.
        probability: of the class explained, mean over samples.
        score, deviation: of the target score, mean and standard deviation over samples.
    """

    samples: int
    classes: list[tuple[str, float]]
    probability: float
    score: float
    deviation: float


@dataclass
class LayerChange:
    """Units that fire otherwise after a change.

    Attributes:
        gained, lost: units that fire at a position read only after, and only before.
        positions: share of the blocks, over the positions read, in which another unit wins; None where
            nothing competes.
    """

    layer: str
    gained: list[Word]
    lost: list[Word]
    positions: float | None


@dataclass
class Counterfactual:
    """The decision after a change.

    Attributes:
        told: what was changed, a sentence each.
        classes: (name, probability before, probability after) of the most probable before or after.
        score: the target score after.
        layers: those explained in which other units fire.
    """

    told: list[str]
    classes: list[tuple[str, float, float]]
    score: float
    layers: list[LayerChange]


@dataclass
class Explanation:
    """Evidence for the decision on one image; shows itself in a notebook.

    Attributes:
        image: its name, for the reader.
        classes: the most probable classes with their probabilities.
        target, against: class explained, and the one it is set against; None for the mean over classes.
        score: the target's logit minus the mean of all, or minus that of ``against``; contributions and
            changes are of this number.
        readout: what was read of each layer.
        truth: name of the class that the image is of, where that is known.
        stability: where winners were drawn as well.
        counterfactual: where a change was asked for.
        picture: the image as the network saw it, for the reader.
    """

    image: str
    classes: list[tuple[str, float]]
    target: str
    against: str | None
    score: float
    readout: str
    layers: list[LayerExplanation]
    truth: str | None = None
    stability: Stability | None = None
    counterfactual: Counterfactual | None = None
    picture: Image.Image | None = field(default=None, repr=False, compare=False)

    @property
    def question(self) -> str:
        """What the score is, in words."""
        other = f"above that of {self.against}" if self.against else "above the mean of all"
        return f"logit of {self.target} {other}"

    def words(self) -> Iterator[tuple[str, Word]]:
        """All units it names, each with its layer."""
        for layer in self.layers:
            for unit in layer.fired:
                yield layer.layer, unit
                yield from ((layer.layer, rival) for rival in unit.rivals)
            yield from ((layer.layer, unit) for unit in layer.drawn)
        for change in self.counterfactual.layers if self.counterfactual else []:
            yield from ((change.layer, unit) for unit in (*change.gained, *change.lost))

    def label(self, table: pd.DataFrame) -> "Explanation":
        """Name its units by a label table (:data:`lwta.dissect.labels.COLUMNS`); returns itself."""
        rows: Mapping[Any, Any] = {(row["layer"], row["unit"]): row for row in table.to_dict("records")}
        for layer, word in self.words():
            if row := rows.get((layer, word.unit)):
                known = {key: None if pd.isna(value) else value for key, value in row.items()}
                word.label, word.runner_up = known["label"], known["label_2"]
                word.reason, word.negative = known["reason"], bool(known["negative"])
        return self

    def frame(self) -> pd.DataFrame:
        """A row for each unit that fired, layer by layer, by the magnitude of its contribution."""
        columns = ["unit", "label", "value", "win_rate", "probability", "margin", "contribution", "silenced"]
        columns += ["excluded", "stability", "sign_differs"]
        rows = [
            [layer.layer, *(getattr(unit, name) for name in columns)]
            for layer in self.layers
            for unit in layer.fired
        ]
        return pd.DataFrame(rows, columns=["layer", *columns])

    def table(self) -> str:
        """The explanation as text."""
        from lwta.dissect.report.text import explanation_text

        return explanation_text(self)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        from lwta.dissect.report.page import render_explanation

        return render_explanation(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {key: value for key, value in _plain(self).items() if key != "picture"}


def _plain(value: Any) -> Any:
    """Values of dataclasses and of the properties that the reader of JSON wants beside them."""
    if is_dataclass(value):
        found = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, FiredUnit):
            found |= {"margin": value.margin, "sign_differs": value.sign_differs}
        return found
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value
