"""The measured step: how long the task's step was, how long the pull, and how many weights it pinned."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from holdfast.tensors import sum_of


class Meter:
    """Sums up one measured step, block by block."""

    def __init__(self) -> None:
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
        protected, step = sum_of(self._protected), math.sqrt(sum_of(self._steps))
        pinned = sum_of(self._pinned) / protected if protected else None
        return pinned, (math.sqrt(sum_of(self._pulls)) / step if step else None)
