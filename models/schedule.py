"""Values that change over training: noise, temperature, loss weights."""

import math
from dataclasses import dataclass


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
