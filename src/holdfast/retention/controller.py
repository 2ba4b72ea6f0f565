"""The strength that keeps a measured rise within its budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

LOWEST = 1e-3
"""Of the strength."""

_LEVEL, _CHANGE = 0.1, 0.5
"""What one e-fold of the ratio, and of its growth since the last measurement, adds to the logarithm of the strength."""

_BOUND = 2.0
"""The logarithm of a ratio is taken within plus and minus this: one measurement moves the strength ninefold at most."""

_FUTILE = 8
"""Measurements in a row above the budget, at the highest strength, after which it is said not to be kept."""


@dataclass
class Controller:
    """Follows the largest ratio of a rise to its budget, in the logarithm of the strength.

    With r the logarithm of the ratio, from one measurement to the next

        log strength += 0.1 r + 0.5 (r - r_before)

    within bounds. It is the velocity form of a proportional and integral rule: what is beyond a bound is not
    remembered, so that the strength leaves the bound with the first measurement that calls it back.

    Attributes:
        strength: in force.
        highest: that it may have.
        before: r of the last measurement of this lesson; None before the first.
        futile: how many measurements in a row the ratio was above one at the highest strength.
    """

    strength: float = 1.0
    highest: float = 1e12
    before: float | None = None
    futile: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.strength < math.inf and 0 < self.highest < math.inf and self.futile >= 0):
            raise ValueError(self)

    def follow(self, ratio: float) -> float:
        """The strength after a measurement; `ratio` is the largest of the rises over their budgets."""
        level = min(max(math.log(max(ratio, 1e-12)), -_BOUND), _BOUND)
        change = 0.0 if self.before is None else level - self.before
        moved = math.log(self.strength) + _LEVEL * level + _CHANGE * change
        self.strength = min(max(math.exp(moved), LOWEST), self.highest)
        self.futile = self.futile + 1 if level > 0 and self.strength == self.highest else 0
        self.before = level
        return self.strength

    @property
    def is_futile(self) -> bool:
        """Whether more strength does not keep the budget, or there is no more."""
        return self.futile >= _FUTILE
