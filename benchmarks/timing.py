"""Timings on a machine that has other things to do: variants take turns, and medians are compared.

What the machine does meanwhile slows a whole round down, not one variant: ratios are taken within a round, and their
quartiles say how far to trust the median. With one thread the processor's time is taken (`--threads 1`), which leaves
out what others do; with several, the time on the wall.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Of what was found in several rounds: the median and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """The median with its quartiles, such as "1.12 (1.10 to 1.15)"."""
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Timing:
    """Of one variant.

    Attributes:
        seconds: median over the rounds.
        ratio: its seconds over those of the first variant in the same round.
    """

    seconds: float
    ratio: Spread


@dataclass(frozen=True)
class Passage:
    """Seconds of one call over batches.

    Attributes:
        first: until the second batch was asked for, with all that is done before the first.
        later: for each of the others, with all that is done after the last; of one batch alone, as `first`.
    """

    first: float
    later: float

    def of(self, num_batches: int) -> float:
        """Seconds of a call over so many batches."""
        return self.first + (num_batches - 1) * self.later


def clock() -> Callable[[], float]:
    """The processor's time of this process where one thread does the work, else the time on the wall."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def seconds(call: Callable[[], object]) -> float:
    """What the call takes."""
    now = clock()
    began = now()
    call()
    return now() - began


def passage(call: Callable[[Iterable[T]], object], batches: Sequence[T]) -> Passage:
    """What the call takes on batches that note when they are asked for."""
    now = clock()
    asked: list[float] = []

    class Noting:
        def __iter__(self) -> Iterator[T]:
            for batch in batches:
                asked.append(now())
                yield batch

    began = now()
    call(Noting())
    ended = now()
    if len(batches) == 1:
        return Passage(ended - began, ended - began)
    return Passage(asked[1] - began, (ended - asked[1]) / (len(batches) - 1))


def in_turn(
    calls: Mapping[str, Callable[[], T]], *, rounds: int, warmup: int = 1, within: float | None = None
) -> dict[str, list[T]]:
    """What the calls return, called in turn, after `warmup` rounds that do not count.

    Every other round takes them in the opposite order, so that none is always the first.

    Args:
        calls: name -> call.
        rounds: at most so many.
        warmup: rounds that do not count.
        within: no further round is begun after so many seconds and three rounds; None for no bound.
    """
    found: dict[str, list[T]] = {name: [] for name in calls}
    now, number = clock(), 0
    began = now()
    while number < warmup + rounds:
        if within is not None and number >= warmup + min(3, rounds) and now() - began > within:
            break
        order = list(calls) if number % 2 else list(calls)[::-1]
        for name in order:
            value = calls[name]()
            if number >= warmup:
                found[name].append(value)
        number += 1
    return found


def compare(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1, within: float | None = None
) -> dict[str, Timing]:
    """Time the variants in turn, as `in_turn` does; ratios are to the first one."""
    calls = {name: (lambda call=call: seconds(call)) for name, call in variants.items()}
    taken = in_turn(calls, rounds=rounds, warmup=warmup, within=within)
    base = taken[next(iter(variants))]
    return {name: Timing(statistics.median(times), ratios(times, base)) for name, times in taken.items()}


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Of the values over those of the base in the same round."""
    return spread([one / other for one, other in zip(values, base, strict=True)])


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return Spread(middle, low, high)
