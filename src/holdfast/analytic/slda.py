"""Streaming linear discriminant analysis: class means, and one covariance within the classes."""

from __future__ import annotations

import torch

from holdfast.analytic.solution import Solution
from holdfast.analytic.sums import ClassSums, plus_identity, scatter
from holdfast.errors import StateError


def discriminant(sums: ClassSums, *, shrinkage: float) -> Solution:
    """Linear discriminant analysis from sums alone.

        Sigma = W / N,   Lambda = [(1 - epsilon) Sigma + epsilon tr(Sigma)/M I]^-1
        score_c = mu_c^T Lambda phi - 1/2 mu_c^T Lambda mu_c

    All classes are taken to be as frequent as each other.

    Args:
        sums: with second moments; W is their `scatter`, N the number of examples.
        shrinkage: epsilon, 0..1.

    Raises:
        StateError: the classes have no scatter, or there are directions without any and epsilon is 0.

    Cost: M^3 / 3 multiplications and two copies of G.

    Source: Hayes & Kanan 2020, arXiv 1909.01520. Departures: their running covariance takes each example from the mean
    as it was at that time, ours from the final one, so that no order matters; and they add epsilon I, which is ours for
    features whose mean variance tr(Sigma)/M is 1: so the classes found do not hang on the unit of the features.
    """
    mu = sums.s / sums.n[:, None]
    Sigma = scatter(sums) / sums.n.sum()
    variance = Sigma.diagonal().mean()
    if not variance > 0:
        raise StateError(
            "AnalyticHead: no class has examples that differ, and slda needs their scatter. Fit more examples, or use "
            'kind="means".'
        )
    factor, failed = torch.linalg.cholesky_ex(plus_identity((1 - shrinkage) * Sigma, shrinkage * variance))
    if int(failed):
        raise StateError(
            f"AnalyticHead: with shrinkage={shrinkage:g} the covariance of {int(sums.n.sum())} examples has directions "
            "without scatter. Give a larger shrinkage, such as 1e-4, or more examples."
        )
    weight = torch.cholesky_solve(mu.T, factor).T
    return Solution(weight, -0.5 * (weight * mu).sum(1), shrinkage=shrinkage)
