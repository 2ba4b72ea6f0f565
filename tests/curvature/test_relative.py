"""The curvature of a layer in the metric of another, against dense algebra."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from holdfast.curvature import relative
from holdfast.curvature.factored import KroneckerFactors
from holdfast.curvature.kronecker import merged

OUT, IN = 3, 4


def positive(size: int, seed: int) -> torch.Tensor:
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    return x @ x.T + 0.1 * torch.eye(size)


def factors(seed: int) -> KroneckerFactors:
    return KroneckerFactors(positive(IN + 1, seed), positive(OUT, seed + 100), shape=(OUT, IN), bias="b")


def product(f: KroneckerFactors) -> torch.Tensor:
    return torch.kron(f.outputs, f.inputs).double()


@pytest.mark.parametrize("strength", [0.0, 0.01, 1.0, 100.0])
def test_of_one_task_it_is_the_dense_solution(strength):
    held, metric = merged(None, factors(0))[0], factors(1)
    D = torch.randn(OUT, IN + 1)
    M, K = product(metric), product(factors(0))
    expected = torch.linalg.solve(M + strength * K, M @ D.double().flatten()).view_as(D)
    found = held.join(*relative(held, metric, damping=0.0).nearer(held.split(D), strength))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_of_several_tasks_its_spectrum_is_the_exact_diagonal_and_has_the_trace():
    held = merged(merged(None, factors(0))[0], factors(2))[0]
    metric = factors(1)
    found = relative(held, metric, damping=0.0)
    U = torch.kron(held.outputs_basis, held.inputs_basis).double()
    K = (U * held.spectrum.double().flatten()) @ U.T
    back = torch.kron(found.outputs[1], found.inputs[1]).double()
    there = torch.kron(found.outputs[0], found.inputs[0]).double()
    torch.testing.assert_close(back.T @ there, torch.eye(len(back)).double(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(there @ there.T, product(metric), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close((back.T @ K @ back).diagonal().float(), found.spectrum.flatten(), rtol=1e-3, atol=1e-3)
    trace = torch.linalg.solve(product(metric), K).trace()
    torch.testing.assert_close(found.spectrum.sum().double(), trace, rtol=1e-3, atol=1e-3)


def test_in_the_metric_of_itself_every_direction_is_the_same():
    held = merged(None, factors(0))[0]
    found = relative(held, factors(0), damping=0.0)
    torch.testing.assert_close(found.spectrum, torch.ones(OUT, IN + 1), rtol=1e-3, atol=1e-3)
    D = torch.randn(OUT, IN + 1)
    torch.testing.assert_close(found.nearer(held.split(D), 3.0), held.split(D / 4), rtol=1e-3, atol=1e-3)


def test_a_metric_that_has_no_inverse_is_damped():
    held, metric = merged(None, factors(0))[0], replace(factors(1), outputs=torch.diag(torch.tensor([1.0, 2.0, 0.0])))
    found, damped = relative(held, metric, damping=0.1), relative(held, metric.damped(0.1), damping=0.0)
    torch.testing.assert_close(found.spectrum, damped.spectrum)


def test_without_factors_on_both_sides_there_is_none():
    assert relative(merged(None, factors(0))[0], None, damping=0.1) is None
