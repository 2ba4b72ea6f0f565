"""The curvature of a weight under its adapter, against explicit minimisation in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from holdfast.curvature import Decayed
from holdfast.errors import OptionError
from holdfast.memory.adapters import Adapter, AdapterCurvature

OUT, IN, R = 6, 9, 3


def adapter_of(*, scale=1.5, transposed=False, dtype=torch.float64, kernel=()):
    torch.manual_seed(0)
    first = nn.Parameter(torch.randn(R, IN, *kernel, dtype=dtype))
    second = nn.Parameter(torch.randn(OUT, R, *(1 for _ in kernel), dtype=dtype))
    return Adapter("w", ("w.A", "w.B"), first, second, scale, transposed)


def moved(adapter, *, by=0.3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (adapter.first, adapter.second):
            p.add_(by * torch.randn(p.shape, generator=generator).to(p.dtype))


def importance_of(adapter, *, seed=2):
    omega = torch.rand(adapter.shape, generator=torch.Generator().manual_seed(seed))
    matrix = adapter.matrix(omega)
    matrix[2] = 0
    matrix[3, 1:] = 0
    return omega


def product(adapter):
    first, second = adapter.factors()
    return (second @ first).double()


@pytest.mark.parametrize("kernel", [(), (2, 2)], ids=["linear", "convolution"])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_rise_is_that_of_the_product_less_the_product_at_the_start(transposed, kernel):
    if transposed and kernel:
        return
    adapter = adapter_of(transposed=transposed, kernel=kernel)
    start, omega = product(adapter), importance_of(adapter)
    curvature = AdapterCurvature.of(adapter, omega)
    assert curvature.rise() == 0
    moved(adapter)
    distance = product(adapter) - start
    expected = 0.5 * (adapter.matrix(omega).double() * distance.square()).sum()
    torch.testing.assert_close(curvature.rise(), expected)
    assert torch.equal(curvature.diagonal(), omega)


def test_small_ways_from_a_large_start_are_seen_in_float32():
    """PiSSA begins with the largest singular values: D is no difference of two large products."""
    adapter = adapter_of(dtype=torch.float32)
    with torch.no_grad():
        adapter.first.mul_(100)
    omega = importance_of(adapter)
    curvature = AdapterCurvature.of(adapter, omega)
    start = adapter.first.detach().double(), adapter.second.detach().double()
    moved(adapter, by=1e-4)
    distance = 1.5 * (adapter.second.detach().double() @ adapter.first.detach().double() - start[1] @ start[0])
    expected = 0.5 * (omega.double() * distance.square()).sum()
    torch.testing.assert_close(curvature.rise().double(), expected, rtol=1e-4, atol=0)


def solved(curvature, factor, strength, metric):
    """The factor that minimises the whole quadratic, one system over all of its entries."""
    adapter = curvature.adapter
    first, second = (p.detach().double().flatten(1) for p in (adapter.first, adapter.second))
    start = curvature.second.double() @ curvature.first.double()
    omega = adapter.matrix(curvature.importance).double()
    values = second if factor == "second" else first

    def penalty(flat):
        x = flat.view(values.shape)
        made = adapter.scale * (x @ first if factor == "second" else second @ x)
        return 0.5 * strength * (omega * (made - start).square()).sum()

    zero = torch.zeros(values.numel(), dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(penalty, zero)
    hessian = torch.autograd.functional.hessian(penalty, zero)
    m = metric.double().flatten().diag()
    return torch.linalg.solve(m + hessian, m @ values.flatten() - gradient).view(values.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("strength", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("factor", ["first", "second"])
def test_the_pull_is_the_proximal_step(factor, strength, dtype):
    adapter = adapter_of(dtype=dtype)
    curvature = AdapterCurvature.of(adapter, importance_of(adapter))
    moved(adapter)
    values = getattr(adapter, factor)
    metric = torch.rand(values.shape, dtype=dtype) * 10 + 0.1
    pull = curvature.pull(factor, strength, metric=metric)
    expected = solved(curvature, factor, strength, metric)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close((values.detach() - pull).double(), expected, **tolerance)
    if factor == "second":
        assert torch.equal(pull[2], torch.zeros(R, dtype=dtype))
    number = curvature.pull(factor, strength, metric=2.0)
    torch.testing.assert_close(number, curvature.pull(factor, strength, metric=torch.full_like(values, 2.0)))


def test_a_convolution_is_its_matrix():
    conv = adapter_of(kernel=(2, 2))
    omega = importance_of(conv)
    curvature = AdapterCurvature.of(conv, omega)
    linear = Adapter(
        "w",
        ("A", "B"),
        nn.Parameter(conv.first.detach().flatten(1)),
        nn.Parameter(conv.second.detach().flatten(1)),
        1.5,
    )
    other = AdapterCurvature.of(linear, omega.flatten(1))
    moved(conv)
    with torch.no_grad():
        linear.first.copy_(conv.first.flatten(1))
        linear.second.copy_(conv.second.flatten(1))
    for factor in ("first", "second"):
        pull = curvature.pull(factor, 3.0, metric=torch.ones_like(getattr(conv, factor)))
        assert pull.shape == getattr(conv, factor).shape
        assert torch.equal(pull.flatten(1), other.pull(factor, 3.0, metric=1.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("strength", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e12, 1e38, math.inf])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e10])
def test_no_strength_raises_the_penalty(strength, scale, dtype):
    adapter = adapter_of(dtype=dtype)
    curvature = AdapterCurvature.of(adapter, scale * importance_of(adapter))
    moved(adapter)
    first = before = curvature.rise()
    for _ in range(20):
        for factor in ("second", "first"):
            parameter = getattr(adapter, factor)
            metric = torch.rand(parameter.shape, dtype=dtype) + 0.01
            pull = curvature.pull(factor, strength, metric=metric)
            assert torch.isfinite(pull).all()
            assert strength > 0 or not pull.any()
            with torch.no_grad():
                parameter.sub_(pull)
            after = curvature.rise()
            assert after <= before * (1 + 1e-6) + 1e-12 * first
            before = after
    if strength == math.inf:
        assert before < 1e-6 * first


def test_a_rate_of_zero_pulls_nothing():
    adapter = adapter_of()
    curvature = AdapterCurvature.of(adapter, importance_of(adapter))
    moved(adapter)
    assert not curvature.pull("second", 1e6, metric=math.inf).any()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("sum", lambda f, g: f + g),
        ("mean", lambda f, g: (f + g) / 2),
        ("max", torch.maximum),
        (Decayed(0.5), lambda f, g: 0.5 * f + g),
    ],
)
def test_tasks_join_by_the_rules_and_are_held_to_the_last_product(rule, expected):
    adapter = adapter_of(transposed=True)
    f, g = importance_of(adapter), importance_of(adapter, seed=3)
    curvature = AdapterCurvature.of(adapter, f)
    moved(adapter)
    curvature = curvature.joined(g, rule, num_tasks=1)
    last = product(adapter)
    moved(adapter, seed=5)
    torch.testing.assert_close(curvature.diagonal(), expected(f, g))
    distance = (product(adapter) - last).square()
    torch.testing.assert_close(curvature.rise(), 0.5 * (expected(f, g).T.double() * distance).sum())
    with pytest.raises(OptionError, match="accumulate is 'least'"):
        curvature.joined(g, "least", num_tasks=2)


def test_its_tensors_make_it_again():
    adapter = adapter_of()
    curvature = AdapterCurvature.of(adapter, importance_of(adapter)).to("cpu")
    moved(adapter)
    again = AdapterCurvature(adapter, **curvature.tensors())
    assert again.rise() == curvature.rise() > 0
    assert {name: tuple(t.shape) for name, t in curvature.tensors().items()} == AdapterCurvature.shapes(adapter)
