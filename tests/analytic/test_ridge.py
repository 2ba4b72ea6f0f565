from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import holdfast as hf
from holdfast.analytic.projection import RandomProjection
from holdfast.analytic.ridge import Spectrum, cross_validated, cross_validation


def drawn(n: int, m: int, c: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(n, m, generator=generator, dtype=torch.float64) * torch.arange(1, m + 1) ** -1.0
    labels = torch.cat([torch.arange(c), torch.randint(c, (n - c,), generator=generator)])
    return phi, labels


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels).double()


def hat(phi: Tensor, ridge: float) -> Tensor:
    """H itself, N x N."""
    G = phi.T @ phi + ridge * torch.eye(phi.shape[1], dtype=torch.float64)
    return phi @ torch.linalg.inv(G) @ phi.T


def slow_gcv(phi: Tensor, Y: Tensor, ridge: float) -> float:
    """From the hat matrix, as it is defined."""
    H, N = hat(phi, ridge), len(phi)
    return float((Y - H @ Y).square().sum() / N / (1 - H.trace() / N) ** 2)


def gcv(phi: Tensor, labels: Tensor, *ridges: float) -> Tensor:
    Y = one_hot(labels)
    return cross_validation(
        Spectrum.of(phi.T @ phi, phi.T @ Y, num_examples=len(phi)), torch.tensor(ridges, dtype=torch.float64)
    )


SHAPES = {"n": st.integers(4, 40), "m": st.integers(1, 12), "c": st.integers(2, 4)}


@given(**SHAPES, seed=st.integers(0, 99), exponent=st.floats(-3, 3))
def test_cross_validation_from_sums_is_that_of_the_hat_matrix(n, m, c, seed, exponent):
    phi, labels = drawn(n, m, c, seed)
    ridge = 10**exponent
    assert float(gcv(phi, labels, ridge)) == pytest.approx(slow_gcv(phi, one_hot(labels), ridge), rel=1e-6)


def test_where_all_leverages_are_equal_it_is_leaving_one_out():
    """Every example left out in turn, and the regression done anew on the others."""
    rows = torch.tensor([[1.0]], dtype=torch.float64)
    for _ in range(4):  # Hadamard's matrix: columns of ones and minus ones, orthogonal, so that H has one diagonal
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    phi, labels, ridge = rows[:, [1, 3, 6, 8, 13]], torch.arange(16) % 3, 2.5
    Y, missed = one_hot(labels), 0.0
    for left_out in range(16):
        others = torch.arange(16) != left_out
        A, B = phi[others], Y[others]
        W = torch.linalg.inv(A.T @ A + ridge * torch.eye(5, dtype=torch.float64)) @ A.T @ B
        missed += float((Y[left_out] - phi[left_out] @ W).square().sum())
    assert float(gcv(phi, labels, ridge)) == pytest.approx(missed / 16, rel=1e-12)


def test_leaving_one_out_by_leverages_is_near_it():
    """The identity e_i / (1 - H_ii), whose denominators GCV takes at their mean."""
    phi, labels = drawn(400, 6, 3)
    H = hat(phi, 1.0)
    left_out = ((one_hot(labels) - H @ one_hot(labels)) / (1 - H.diagonal())[:, None]).square().sum() / 400
    assert float(gcv(phi, labels, 1.0)) == pytest.approx(float(left_out), rel=0.01)


@pytest.mark.parametrize("n", [30, 300])
def test_the_chosen_penalty_is_the_best_of_those_tried(n):
    phi, labels = drawn(n, 60, 3)
    spectrum = Spectrum.of(phi.T @ phi, phi.T @ one_hot(labels), num_examples=n)
    chosen = cross_validated(spectrum)
    mean = float(phi.square().sum()) / 60
    tried = [mean * 10 ** (-8 + k / 4) for k in range(49)]
    errors = [slow_gcv(phi, one_hot(labels), ridge) for ridge in tried]
    safe = [(error, ridge) for error, ridge in zip(errors, tried) if math.isfinite(error) and ridge > 1e-5 * mean]
    assert chosen == pytest.approx(min(safe)[1])
    assert hf.AnalyticHead().fit(phi, labels).solution.ridge == pytest.approx(chosen)


@given(**SHAPES, seed=st.integers(0, 99))
def test_the_regression_is_that_on_all_examples_at_once(n, m, c, seed):
    phi, labels = drawn(n, m, c, seed)
    head = hf.AnalyticHead(ridge=0.7)
    for own in range(c):  # a class a task, the last one first
        head.fit(phi[labels == c - 1 - own], labels[labels == c - 1 - own])
    padded = torch.cat([phi, math.sqrt(0.7) * torch.eye(m, dtype=torch.float64)])  # the penalty as more examples
    W = torch.linalg.lstsq(padded, torch.cat([one_hot(labels), torch.zeros(m, c, dtype=torch.float64)])).solution
    assert torch.allclose(head(phi), phi @ W, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("ridge", ["gcv", 0.7])
def test_random_features_take_the_features_place(ridge):
    features, labels = drawn(80, 5, 3)
    W = RandomProjection(5, 64, seed=2).W
    random = (features @ W).clamp(min=0)
    head = hf.AnalyticHead(projection=64, seed=2, ridge=ridge).fit(features, labels)
    assert torch.allclose(head(features), hf.AnalyticHead(ridge=ridge).fit(random, labels)(random), atol=1e-9)
    other = hf.AnalyticHead(projection=64, seed=3, ridge=ridge).fit(features, labels)
    assert not torch.allclose(head(features), other(features), atol=1e-3)


def test_a_penalty_that_is_chosen_and_the_same_given_are_one_head():
    phi, labels = drawn(80, 5, 3)
    chosen = hf.AnalyticHead().fit(phi, labels)
    given_it = hf.AnalyticHead(ridge=chosen.solution.ridge or 0).fit(phi, labels)
    assert torch.allclose(chosen(phi), given_it(phi), atol=1e-12)


def test_with_fewer_examples_than_features_small_penalties_are_no_rounding():
    """GCV then has a limit at zero, of terms that float64 would lose beside |Y|^2."""
    phi, labels = drawn(12, 40, 3)
    kernel = phi @ phi.T  # where all examples are fitted, the residual is lambda K^-1 Y, and N - tr H is lambda tr K^-1
    inverse = torch.linalg.inv(kernel)
    limit = 12 * (inverse @ one_hot(labels)).square().sum() / inverse.trace() ** 2
    assert torch.allclose(gcv(phi, labels, 1e-9, 1e-7), limit.expand(2), rtol=1e-5)


def test_features_without_scatter_do_not_hinder_it():
    """A constant column, a column of zeros and one twice: G is singular, and cross-validation sees its rank."""
    phi, labels = drawn(60, 4, 3)
    phi = torch.cat([phi, torch.ones(60, 1).double(), torch.zeros(60, 1).double(), phi[:, :1]], 1)
    spectrum = Spectrum.of(phi.T @ phi, phi.T @ one_hot(labels), num_examples=60)
    assert len(spectrum.g) == 5
    assert float(gcv(phi, labels, 0.5)) == pytest.approx(slow_gcv(phi, one_hot(labels), 0.5), rel=1e-9)
    assert torch.isfinite(hf.AnalyticHead().fit(phi, labels)(phi)).all()
