"""The measured step: how long the task's step was, how long the pull, and how many weights it pinned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from holdfast.tensors import Total


@dataclass(frozen=True)
class Figures:
    """Of one measured step, or of the last ones of several optimizers together (`+`).

    Attributes:
        protected: weights with an importance above zero.
        pinned: those of them that were taken back by more than half.
        step: squared length of the task's step.
        pull: squared length of the pull.
    """

    protected: float
    pinned: float
    step: float
    pull: float

    def __add__(self, other: Self) -> Figures:
        return Figures(
            self.protected + other.protected,
            self.pinned + other.pinned,
            self.step + other.step,
            self.pull + other.pull,
        )

    @property
    def pinned_share(self) -> float | None:
        """Of the protected weights, 0..1; None where no shares were known."""
        return self.pinned / self.protected if self.protected else None

    @property
    def pull_ratio(self) -> float | None:
        """|pull| / |task step|."""
        return math.sqrt(self.pull / self.step) if self.step else None


class Meter:
    """Sums up one measured step, block by block.

    Args:
        sum_of: adds up the terms, of all processes where the model is sharded.
    """

    def __init__(self, sum_of: Callable[[Iterable[Tensor]], float]) -> None:
        self._sum_of = sum_of
        self._steps, self._pulls, self._pinned, self._protected = Total(), Total(), Total(), Total()

    def add(
        self,
        increments: Sequence[Tensor],
        pulls: Sequence[Tensor],
        shares: Sequence[Tensor],
        importance: Sequence[Tensor],
    ) -> None:
        """Count some weights: the task's step and the pull on each, the share it was taken back by, its importance.

        Where no shares are known, only the lengths are counted.
        """
        self._steps.add(increment.float().square().sum() for increment in increments)
        self._pulls.add(pull.float().square().sum() for pull in pulls)
        if shares:
            self._pinned.add(
                ((share > 0.5) & (value > 0)).sum() for share, value in zip(shares, importance, strict=True)
            )
            self._protected.add((value > 0).sum() for value in importance)

    def read(self) -> Figures:
        """What they come to."""
        totals = (self._protected, self._pinned, self._steps, self._pulls)
        return Figures(*(self._sum_of(total.terms) for total in totals))
