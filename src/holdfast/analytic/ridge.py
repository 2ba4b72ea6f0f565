"""Ridge regression to one-hot labels, and the choice of its penalty, from sums alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.analytic.solution import Solution
from holdfast.analytic.sums import ClassSums, plus_identity
from holdfast.errors import StateError

_FROM, _TO, _A_DECADE = -8, 4, 4
"""Penalties that are tried, as powers of ten of the mean eigenvalue of G."""


def ridge_regression(sums: ClassSums, *, ridge: float | None) -> Solution:
    """Least squares to one-hot labels, with a penalty on the squared weights; no intercept.

        W = (G + lambda I)^-1 Q,   G = Phi^T Phi,   Q = Phi^T Y = [s_1 ... s_C]

    G and Q are sums over examples: in whatever order and in however many parts they came, this is the regression on
    all of them at once.

    Args:
        sums: with second moments.
        ridge: lambda > 0, in squared units of the features, against the sum over examples; None: chosen by
            `cross_validation`.

    Raises:
        StateError: all features are zero, or lambda is too small for G to be solved in float64.

    Cost: M^3 / 3 multiplications and two copies of G; with None about 9 M^3 and four.

    Source: ACIL, Zhuang et al. 2022, arXiv 2205.14922, whose recursive solution is this one; RanPAC, McDonnell et al.
    2023, arXiv 2307.02251. Departures: lambda by cross-validation in place of a given one (ACIL), or one chosen task by
    task on a fifth of the task's examples (RanPAC), which must be looked at twice.
    """
    G, Q = sums.G, sums.s.T
    if ridge is None:
        spectrum = Spectrum.of(G, Q, num_examples=int(sums.n.sum()))
        chosen = cross_validated(spectrum)
        return _solution(spectrum.solve(chosen), chosen)
    factor, failed = torch.linalg.cholesky_ex(plus_identity(G, ridge))
    if int(failed):
        raise StateError(
            f"AnalyticHead: ridge={ridge:g} is lost in the rounding of second moments of mean {_mean(G):.3g}. Give a "
            'larger one, or ridge="gcv".'
        )
    return _solution(torch.cholesky_solve(Q, factor), ridge)


@dataclass(frozen=True)
class Spectrum:
    """G = U diag(g) U^T and what cross-validation needs of Q.

    Attributes:
        U: float64 [M, r], the eigenvectors with g above rounding.
        g: float64 [r], their eigenvalues, > 0.
        P: U^T Q, float64 [r, C].
        num_examples: N.
    """

    U: Tensor
    g: Tensor
    P: Tensor
    num_examples: int

    @classmethod
    def of(cls, G: Tensor, Q: Tensor, *, num_examples: int) -> Spectrum:
        """That of sums.

        Raises:
            StateError: all features are zero.
        """
        g, U = torch.linalg.eigh(G)
        kept = g > len(g) * torch.finfo(g.dtype).eps * g[-1].clamp(min=0)
        if not bool(kept.any()):
            raise StateError("AnalyticHead: all features are zero. Look at the backbone, or leave the projection out.")
        return cls(U[:, kept], g[kept], U[:, kept].T @ Q, num_examples)

    def solve(self, ridge: float) -> Tensor:
        """W = (G + lambda I)^-1 Q, [M, C]."""
        return self.U @ (self.P / (self.g + ridge)[:, None])


def cross_validation(spectrum: Spectrum, ridge: Tensor) -> Tensor:
    """Generalised cross-validation: the mean squared error of leaving examples out, up to their differing leverage.

        GCV = (1/N) |Y - H Y|^2 / (1 - tr(H)/N)^2,   H = Phi (G + lambda I)^-1 Phi^T

    from the spectrum alone, since Y is one-hot, |Y|^2 = N, and with p_j = |(U^T Q)_j|^2

        |Y - H Y|^2 = N - sum_j p_j/g_j + sum_j p_j/g_j (lambda/(g_j + lambda))^2
        N - tr(H)   = N - r + sum_j lambda/(g_j + lambda)

    Args:
        spectrum: of the sums.
        ridge: lambda > 0, float64 [L].

    Returns:
        Float64 [L], summed over the columns of Y.

    Source: Golub, Heath & Wahba 1979.
    """
    N, g = spectrum.num_examples, spectrum.g
    fitted = spectrum.P.square().sum(1) / g
    left = ridge[:, None] / (g + ridge[:, None])
    spare = max(N - len(g), 0)
    unfitted = (N - fitted.sum()).clamp(min=0) if spare else 0.0  # else it is zero, and would be rounding alone
    misfit = unfitted + (fitted * left.square()).sum(1)
    free = spare + left.sum(1)
    return N * misfit / free.square()


def cross_validated(spectrum: Spectrum) -> float:
    """The lambda of least `cross_validation`, of 1e-8 to 1e4 times the mean eigenvalue of G in quarters of a decade."""
    steps = torch.arange((_TO - _FROM) * _A_DECADE + 1, dtype=spectrum.g.dtype, device=spectrum.g.device)
    tried = 10 ** (_FROM + steps / _A_DECADE) * spectrum.g.sum() / len(spectrum.U)
    return float(tried[cross_validation(spectrum, tried).argmin()])


def _solution(W: Tensor, ridge: float) -> Solution:
    return Solution(W.T, W.new_zeros(W.shape[1]), ridge=ridge)


def _mean(G: Tensor) -> float:
    return float(G.diagonal().mean())
