"""Timings on a machine that has other things to do: variants take turns, and medians are compared.

What the machine does meanwhile slows a whole round down, not one variant: ratios are taken within a round, and their
quartiles say how far to trust the median. With one thread the processor's time is taken (`--threads 1`), which leaves
out what others do; with several, the time on the wall.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Of one variant.

    Attributes:
        seconds: median over the rounds.
        ratio: median over the rounds of its seconds over those of the first variant in the same round.
        low: first quartile of these ratios.
        high: third quartile of them.
    """

    seconds: float
    ratio: float
    low: float
    high: float

    @property
    def spread(self) -> str:
        """The ratio with its quartiles, such as "1.12 (1.10 to 1.15)"."""
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"


def clock() -> Callable[[], float]:
    """The processor's time of this process where one thread does the work, else the time on the wall."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def compare(variants: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1) -> dict[str, Timing]:
    """Time the variants in turn, `rounds` times over, after `warmup` rounds that do not count.

    Every other round takes them in the opposite order, so that none is always the first.
    """
    now = clock()
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmup + rounds):
        order = list(variants) if number % 2 else list(variants)[::-1]
        for name in order:
            began = now()
            variants[name]()
            if number >= warmup:
                taken[name].append(now() - began)
    base = taken[next(iter(variants))]
    return {name: _timing(seconds, base) for name, seconds in taken.items()}


def _timing(seconds: list[float], base: list[float]) -> Timing:
    ratios = [one / other for one, other in zip(seconds, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Timing(statistics.median(seconds), middle, low, high)
