"""Values that change over training: noise, temperature, loss weights, and how many units compete."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lwta.errors import InputError
from lwta.functional import nearest_divisors
from lwta.layers import Competition


@dataclass
class Schedule:
    """A value that goes linearly from ``start`` to ``end`` over the first ``epochs``, then stays.

    >>> Schedule(1.0, 0.0, epochs=4).at(1.0)
    0.75
    """

    start: float
    end: float
    epochs: float

    def at(self, epoch: float) -> float:
        """The value after ``epoch`` epochs, a fraction included."""
        done = min(epoch / self.epochs, 1.0) if self.epochs > 0 else 1.0
        return self.start + (self.end - self.start) * done

    @property
    def finite(self) -> bool:
        """Whether it has a value at every epoch."""
        return math.isfinite(self.start) and math.isfinite(self.end) and 0 <= self.epochs < math.inf

    @property
    def peak(self) -> float:
        """The largest magnitude it takes."""
        return max(abs(self.start), abs(self.end))

    @classmethod
    def of(cls, value: "float | dict[str, float] | Schedule") -> "Schedule":
        """A schedule from a constant, from its fields (as checkpoints hold it), or itself."""
        if isinstance(value, Schedule):
            return value
        return cls(**value) if isinstance(value, dict) else cls(value, value, 0)


class Stages:
    """Fewer competitors at first: blocks have no weights, so U can grow while a network trains.

    Args:
        layers: competition -> number of its units; they have the U they are to have in the end.
        until: epoch -> U before that epoch.

    Raises:
        InputError: stages of a network without competing units.
    """

    def __init__(self, layers: Mapping[Competition, int], until: Mapping[int, int]) -> None:
        if until and not layers:
            raise InputError("staged_competitors needs competing units; this network has none")
        final = max((layer.competitors for layer in layers), default=0)
        if any(u >= final for u in until.values()):
            raise InputError(
                f"staged_competitors are fewer than the {final} of the end, not {max(until.values())}"
            )
        self._until = sorted((int(epoch), u) for epoch, u in until.items())  # YAML's keys may be texts
        self._layers = {layer: (units, layer.competitors) for layer, units in layers.items()}

    @property
    def end(self) -> int:
        """The epoch from which units compete as in the end."""
        return self._until[-1][0] if self._until else 0

    def set(self, epoch: int) -> None:
        """Let each layer compete as in an epoch: by the divisor of its width nearest to that stage's U."""
        stage = next((u for end, u in self._until if epoch < end), None)
        for layer, (units, final) in self._layers.items():
            near = final if stage is None else nearest_divisors(units, stage, 1)[0]
            layer.competitors = min(near, final)

    def finish(self) -> None:
        """Let each layer compete as in the end."""
        for layer, (_, final) in self._layers.items():
            layer.competitors = final
