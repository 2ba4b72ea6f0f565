"""The measured step: how long the task's step was, how long the pull, and how many weights it pinned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor


class Meter:
    """Sums up one measured step, block by block.

    Args:
        sum_of: adds up the terms, of all processes where the model is sharded.
    """

    def __init__(self, sum_of: Callable[[Iterable[Tensor]], float]) -> None:
        self._sum_of = sum_of
        self._steps: list[Tensor] = []
        self._pulls: list[Tensor] = []
        self._pinned: list[Tensor] = []
        self._protected: list[Tensor] = []

    def add(
        self,
        increments: Sequence[Tensor],
        pulls: Sequence[Tensor],
        shares: Sequence[Tensor],
        importance: Sequence[Tensor],
    ) -> None:
        """Count some weights: the task's step and the pull on each, the share it was taken back by, its importance."""
        self._steps += [increment.float().square().sum() for increment in increments]
        self._pulls += [pull.float().square().sum() for pull in pulls]
        self._pinned += [(share > 0.5).sum() for share in shares]
        self._protected += [(value > 0).sum() for value in importance]

    def read(self) -> tuple[float | None, float | None]:
        """The pinned share of the protected weights, and |pull| / |task step|."""
        protected, step = self._sum_of(self._protected), math.sqrt(self._sum_of(self._steps))
        pinned, pull = self._sum_of(self._pinned), math.sqrt(self._sum_of(self._pulls))
        return pinned / protected if protected else None, pull / step if step else None
