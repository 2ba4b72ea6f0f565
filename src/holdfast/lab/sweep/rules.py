"""When to give a setting up, and where to look next: pure functions of validation accuracies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

STARTUP = 4
"""So many other settings must have come as far before one can be hopeless."""

MARGIN = 0.05
"""What is less than this below the best is never hopeless."""

SINGLE_SEED_NOISE = 0.002
"""A gain that one seed alone is not believed."""

FINEST = 0.25
"""Decades between strengths, below which none are tried."""

FARTHEST = 3.0
"""Decades beyond the grid, beyond which none are tried."""


def hopeless(value: float, others: Sequence[float]) -> bool:
    """Whether a setting is given up: below the median of the others at the same moment, and far below the best.

    Optuna's own median pruner takes a trial's best value so far, which for an average that falls from task to task is
    always its first.

    Args:
        value: average validation accuracy after some task of some seed.
        others: of the other settings, after the same task of the same seed.
    """
    return len(others) >= STARTUP and value < statistics.median(others) and value < max(others) - MARGIN


def next_strengths(found: Mapping[float, Sequence[float] | None], grid: Sequence[float]) -> list[float]:
    """The strengths to try next to the best; none where the search is over.

    At the edge of what was tried: a decade further, while the best gains more than the noise on its neighbour. Inside:
    half-way, in decades, to the neighbours on both sides, down to half decades; and to quarters where the halves gained
    more than the noise on the grid.

    Args:
        found: strength -> validation accuracies, one a seed; None where it was given up.
        grid: the strengths that were asked for.
    """
    whole = {strength: values for strength, values in found.items() if values is not None}
    if not whole:
        return []
    best = max(whole, key=lambda strength: statistics.fmean(whole[strength]))
    of_grid = {strength: values for strength, values in whole.items() if strength in grid and strength != best}
    refined = best not in grid
    gained = refined and all(_gain(whole[best], values) for values in of_grid.values())
    proposed = []
    for side in (-1, 1):
        beyond = [strength for strength in found if (strength - best) * side > 0]
        if not beyond:
            inner = [values for strength, values in whole.items() if strength != best]
            farther = best * 10.0**side
            inside = math.log10(min(grid)) - FARTHEST < math.log10(farther) < math.log10(max(grid)) + FARTHEST
            if inside and all(_gain(whole[best], values) for values in inner):
                proposed.append(farther)
            continue
        neighbour = min(beyond, key=lambda strength: abs(math.log10(strength / best)))
        gap = abs(math.log10(neighbour / best))
        if gap > 0.5 + 1e-2 or (gap > FINEST + 1e-2 and gained):
            proposed.append(math.sqrt(neighbour * best))
    return [rounded for strength in proposed if (rounded := float(f"{strength:.3g}")) not in found]


def _gain(better: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the mean difference over seeds is more than its standard error."""
    differences = [one - two for one, two in zip(better, other, strict=True)]
    noise = SINGLE_SEED_NOISE
    if len(differences) > 1:
        noise = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences) > noise
