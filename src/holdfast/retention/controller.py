"""The strength that keeps a measured rise within its budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

LOWEST = 1e-3
"""Of the strength."""

_A_STEP, _OF_LESSON, _MOST, _CHANGE = 0.025, 0.4, 0.5, 0.5
"""What an e-fold of the ratio adds to the logarithm of the strength for each step since the last measurement, for the
whole length of the lesson so far, and at most, for more would swing; and what one of its growth adds."""

_AIM = 0.5
"""Of the budget: what the strength aims at. A task that is learned gains nothing from what the old ones lose besides,
and a rise is known from some examples only."""

LONGEST = 128
"""Steps from one measurement to the next at most, where they become rarer."""

_FINENESS = 2
"""A measurement is taken when a lesson has grown by one part in 2^2 to 2^3."""

_BOUNDS = -4.0, 2.0
"""The logarithm of a ratio is taken within these: one measurement makes the strength 150 times as large at most."""

_FUTILE = 8
"""Measurements in a row above the budget, at the highest strength, after which it is said not to be kept."""


@dataclass
class Controller:
    """Follows the largest ratio of a rise to its budget, in the logarithm of the strength.

    With r = log(ratio / 0.5), for it aims at half the budget, from one measurement to the next, n steps later,

        log strength += min(max(n/40, 2/5 n/N), 1/2) r + 1/2 (r - r_before)

    within bounds, N the steps of the lesson: as fast in steps, however rarely it is measured, as long as that does not
    swing, and faster at first, when the strength may be far off and the lesson may be short. It is the velocity form of
    a proportional and integral rule: what is beyond a bound is not remembered, so that the strength leaves the bound
    with the first measurement that calls it back.

    Attributes:
        strength: in force.
        highest: that it may have.
        before: r of the last measurement of this lesson; None before the first.
        futile: how many measurements in a row the budget was exceeded at the highest strength.
    """

    strength: float = 1.0
    highest: float = 1e12
    before: float | None = None
    futile: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.strength < math.inf and 0 < self.highest < math.inf and self.futile >= 0):
            raise ValueError(self)

    def follow(self, ratio: float, since: int, num_steps: int) -> float:
        """The strength after a measurement.

        Args:
            ratio: the largest of the rises over their budgets.
            since: steps since the measurement before, or since the lesson began.
            num_steps: of the lesson.
        """
        lowest, highest = _BOUNDS
        level = min(max(math.log(max(ratio / _AIM, 1e-12)), lowest), highest)
        gain = min(max(_A_STEP * since, _OF_LESSON * since / num_steps), _MOST)
        change = 0.0 if self.before is None else level - self.before
        moved = math.log(self.strength) + gain * level + _CHANGE * change
        self.strength = min(max(math.exp(moved), LOWEST), self.highest)
        self.futile = self.futile + 1 if ratio > 1 and self.strength == self.highest else 0
        self.before = level
        return self.strength

    @property
    def is_futile(self) -> bool:
        """Whether more strength does not keep the budget, or there is no more."""
        return self.futile >= _FUTILE


def steps_since(num_steps: int, every: int | Literal["auto"], *, period: int) -> int:
    """How many steps lie between this measurement and the one before; 0 where none is due.

    Args:
        num_steps: of the lesson.
        every: steps from one to the next. "auto": after each pull at first, then when the lesson has grown by a quarter
            to an eighth, and at least once in `LONGEST` steps. That follows from the number of the step alone, so
            that a resumed run measures where an unbroken one does.
        period: steps from one pull to the next. Under "auto" rises are measured after pulls, for between two the
            weights move freely.
    """
    if every == "auto":
        growth = (num_steps // period - 1).bit_length() - 1 - _FINENESS
        most = max(1, LONGEST // period).bit_length() - 1
        every = period << max(0, min(growth, most))
    return 0 if num_steps % every else every
