"""The measured step: how long the task's step was, how long the pull, and how many weights it pinned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from holdfast.tensors import Total


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
        """Count some weights: the task's step and the pull on each, the share it was taken back by, its importance."""
        self._steps.add(increment.float().square().sum() for increment in increments)
        self._pulls.add(pull.float().square().sum() for pull in pulls)
        self._pinned.add((share > 0.5).sum() for share in shares)
        self._protected.add((value > 0).sum() for value in importance)

    def read(self) -> tuple[float | None, float | None]:
        """The pinned share of the protected weights, and |pull| / |task step|."""
        totals = (self._protected, self._pinned, self._steps, self._pulls)
        protected, pinned, step, pull = (self._sum_of(total.terms) for total in totals)
        return pinned / protected if protected else None, math.sqrt(pull / step) if step else None
