"""Where values stand on the axes of the page's pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """A number written on an axis.

    Attributes:
        at: where, in per cent of the axis.
        text: what is written.
    """

    at: float
    text: str


@dataclass(frozen=True)
class Scale:
    """A straight axis from low to high."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Where a value stands, in per cent; the middle of an axis without length."""
        return 50.0 if self.high == self.low else 100 * (value - self.low) / (self.high - self.low)


class StrengthScale:
    """A logarithmic axis of strengths on which 0 and infinity stand a decade beyond the others.

    Args:
        strengths: what it has to hold, at least one.
    """

    def __init__(self, strengths: Sequence[float]) -> None:
        usual = [math.log10(value) for value in strengths if 0 < value < math.inf] or [0.0]
        self._zero, self._infinity = math.floor(min(usual)) - 1.0, math.ceil(max(usual)) + 1.0
        places = [self.place(value) for value in strengths]
        margin = 0.04 * (max(places) - min(places)) or 0.5
        self.low, self.high = min(places) - margin, max(places) + margin
        self._odd = sorted({value for value in strengths if value in (0, math.inf)})

    def place(self, strength: float) -> float:
        """Its power of ten."""
        if strength == 0:
            return self._zero
        return self._infinity if strength == math.inf else math.log10(strength)

    def at(self, strength: float) -> float:
        """Where a strength stands, in per cent."""
        return Scale(self.low, self.high).at(self.place(strength))

    def ticks(self) -> list[Tick]:
        """Powers of ten, about seven at most, and 0 and infinity where they are held."""
        first, last = math.ceil(self.low), math.floor(self.high)
        inside = [power for power in range(first, last + 1) if self._zero < power < self._infinity]
        step = max(1, -(-len(inside) // 7))
        found = [Tick(self.at(10.0**power), power_text(power)) for power in inside[::step]]
        return found + [Tick(self.at(value), "0" if value == 0 else "∞") for value in self._odd]


def power_text(power: int) -> str:
    """A power of ten as people read it."""
    if -3 <= power <= 3:
        return f"{10.0**power:g}"
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def accuracy_ticks(scale: Scale) -> list[Tick]:
    """Round percentages, seven at most."""
    steps = (step for step in (1, 2, 5, 10, 20, 25) if (scale.high - scale.low) * 100 / step <= 6.5)
    step = next(steps, 25)
    first, last = math.ceil(100 * scale.low / step - 1e-9), math.floor(100 * scale.high / step + 1e-9)
    return [Tick(scale.at(step * k / 100), f"{step * k}%") for k in range(first, last + 1)]
