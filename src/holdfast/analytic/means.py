"""The nearest class mean."""

from __future__ import annotations

from holdfast.analytic.solution import Solution
from holdfast.analytic.sums import ClassSums


def nearest_mean(sums: ClassSums) -> Solution:
    """The class whose mean is nearest.

        -1/2 |phi - mu_c|^2 = mu_c . phi - 1/2 |mu_c|^2 + what is the same for all classes;   mu_c = s_c / n_c

    Source: the classifier of iCaRL, Rebuffi et al. 2017, arXiv 1611.07725. Departures: the mean is that of all
    examples, not of some that are kept, and features are not scaled to length 1: give them so if they are to be.

    Cost: C M.
    """
    mu = sums.s / sums.n[:, None]
    return Solution(mu, -0.5 * mu.square().sum(1))
