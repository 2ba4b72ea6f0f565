"""A mechanism: weights move freely within an interval around their anchors. Methods interval-fisher and others."""

from dataclasses import dataclass
from typing import Annotated

import holdfast as hf
from holdfast import lab


@dataclass
class Interval(hf.Mechanism):
    """|theta - anchor| <= sqrt(2 most / importance), after each step; see docs/own.md."""

    most: float

    def after(self, step):
        """Take back what is beyond the interval."""
        for block in step.blocks():
            for weight, anchor, importance in zip(block.weights, block.anchors, block.importance):
                reach = (2 * self.most / importance).sqrt()  # infinite where the importance is 0
                weight.copy_(weight.clamp(anchor - reach, anchor + reach))


@dataclass(frozen=True, kw_only=True)
class IntervalOptions:
    """Of intervals.

    Attributes:
        most: what a weight alone may raise the old loss by, in units of the importance.
    """

    most: Annotated[float, lab.Within(1e-30, 1e30)] = 1e-4


@lab.register_mechanism("interval", label="interval", options=IntervalOptions, verb="bounds each weight's way")
def interval(model, options):
    """The keeper that drives it."""
    return hf.Keeper(model, Interval(options.most), log_every=0)
