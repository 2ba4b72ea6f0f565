"""Which differences between methods are more than the luck of the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from holdfast.lab.groups import RunGroup
from holdfast.lab.metrics import confidence_interval, student_p
from holdfast.lab.tables import Estimate

LEVEL = 0.05
"""Differences whose corrected p-value lies below are called clear."""


@dataclass(frozen=True)
class Comparison:
    """A paired t-test of two configurations over the seeds that both have.

    Attributes:
        first: the one.
        second: the other.
        num_seeds: how many seeds both have, at least 2.
        difference: average accuracy after the last task, the first's minus the second's; fractions.
        p: two-sided p-value of no difference.
        corrected: the same after Holm's correction for all the comparisons it stands among.
    """

    first: RunGroup
    second: RunGroup
    num_seeds: int
    difference: Estimate
    p: float
    corrected: float

    @property
    def is_clear(self) -> bool:
        """Whether no difference at all is unlikely, however many comparisons were made."""
        return self.corrected < LEVEL


def comparisons(groups: Sequence[RunGroup]) -> list[Comparison]:
    """Every pair of groups that have at least two seeds in common, in order.

    A seed decides initial weights, order of examples and permutations alike for every method, so that differences are
    taken seed by seed.
    """
    pairs = []
    for first, second in combinations(groups, 2):
        ours = {result.seed: result.final_accuracy for result in first.results}
        theirs = {result.seed: result.final_accuracy for result in second.results}
        differences = [ours[seed] - theirs[seed] for seed in first.seeds if seed in theirs]
        if len(differences) > 1:
            pairs.append((first, second, differences))
    p = [paired_p(differences) for _, _, differences in pairs]
    return [
        Comparison(first, second, len(differences), Estimate.of(differences), own, corrected)
        for (first, second, differences), own, corrected in zip(pairs, p, holm(p))
    ]


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean of zero, by t = mean sqrt(n) / s with n - 1 degrees of freedom.

    Differences that are all the same, and not zero, give 0.
    """
    n = len(differences)
    mean = confidence_interval(differences)[0]
    deviation = math.sqrt(sum((value - mean) ** 2 for value in differences) / (n - 1))
    if deviation <= 1e-12 * abs(mean) or deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return student_p(mean * math.sqrt(n) / deviation, n - 1)


def holm(p: Sequence[float]) -> list[float]:
    """Corrected p-values: the k-th smallest of m times m - k + 1, never below a smaller one's, at most 1.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    corrected, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = least
    return corrected
