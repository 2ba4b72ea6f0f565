"""The curvature of a weight under its adapter, against explicit minimisation in float64."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from holdfast.curvature import Decayed
from holdfast.curvature.adapters import AdapterCurvature
from holdfast.curvature.files import layers_from, layers_to_json, layers_to_tensors
from holdfast.errors import FileFormatError, OptionError

OUT, IN, R = 6, 9, 3


class Adapter:
    """Live factors, and what is held of them."""

    def __init__(self, first, second, scale, transposed=False):
        self.first, self.second, self.scale, self.transposed = first, second, scale, transposed

    @property
    def shape(self):
        shape = (len(self.second), *self.first.shape[1:])
        return shape[::-1] if self.transposed else shape

    def matrix(self, weight):
        return weight.T if self.transposed else weight.flatten(1)

    def factors(self):
        return self.first.detach().flatten(1), self.scale * self.second.detach().flatten(1)

    def values(self):
        return [self.first.detach().clone(), self.second.detach().clone()]

    def layer(self, omega):
        shapes = tuple(self.first.shape), tuple(self.second.shape)
        return AdapterCurvature(omega, "w", "w.B", self.scale, shapes, self.transposed)


class Held:
    """A curvature with its anchors, as a keeper has them."""

    def __init__(self, adapter, layer):
        self.adapter, self.layer, self.anchors = adapter, layer, adapter.values()

    @classmethod
    def of(cls, adapter, omega):
        return cls(adapter, adapter.layer(omega))

    def joined(self, omega, rule, *, num_tasks):
        layer, own = self.adapter.layer(omega).joined(self.layer, rule, num_tasks=num_tasks, share=1.0)
        assert torch.equal(own, omega)
        return Held(self.adapter, layer)

    def rise(self):
        return self.layer.rise(self.adapter.values(), self.anchors)

    def pull(self, factor, strength, *, metric):
        """What is taken from one factor, while the learning rate of the other is zero."""
        if strength == 0:
            return torch.zeros_like(getattr(self.adapter, factor))
        metrics = [metric, math.inf] if factor == "first" else [math.inf, metric]
        pulls, _, _ = self.layer.pull(self.adapter.values(), self.anchors, strength, metrics=metrics, before=None)
        assert not pulls[factor == "first"].any()
        return -pulls[factor == "second"]


def adapter_of(*, scale=1.5, transposed=False, dtype=torch.float64, kernel=()):
    torch.manual_seed(0)
    first = nn.Parameter(torch.randn(R, IN, *kernel, dtype=dtype))
    second = nn.Parameter(torch.randn(OUT, R, *(1 for _ in kernel), dtype=dtype))
    return Adapter(first, second, scale, transposed)


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
    curvature = Held.of(adapter, omega)
    assert curvature.rise() == 0
    moved(adapter)
    distance = product(adapter) - start
    expected = 0.5 * (adapter.matrix(omega).double() * distance.square()).sum()
    torch.testing.assert_close(curvature.rise(), expected)
    assert torch.equal(curvature.layer.diagonal(), omega)


def test_small_ways_from_a_large_start_are_seen_in_float32():
    """PiSSA begins with the largest singular values: D is no difference of two large products."""
    adapter = adapter_of(dtype=torch.float32)
    with torch.no_grad():
        adapter.first.mul_(100)
    omega = importance_of(adapter)
    curvature = Held.of(adapter, omega)
    start = adapter.first.detach().double(), adapter.second.detach().double()
    moved(adapter, by=1e-4)
    distance = 1.5 * (adapter.second.detach().double() @ adapter.first.detach().double() - start[1] @ start[0])
    expected = 0.5 * (omega.double() * distance.square()).sum()
    torch.testing.assert_close(curvature.rise().double(), expected, rtol=1e-4, atol=0)


def solved(curvature, factor, strength, metric):
    """The factor that minimises the whole quadratic, one system over all of its entries."""
    adapter = curvature.adapter
    first, second = (p.detach().double().flatten(1) for p in (adapter.first, adapter.second))
    start = adapter.scale * curvature.anchors[1].double().flatten(1) @ curvature.anchors[0].double().flatten(1)
    omega = adapter.matrix(curvature.layer.importance).double()
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
    curvature = Held.of(adapter, importance_of(adapter))
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
    curvature = Held.of(conv, omega)
    linear = Adapter(
        nn.Parameter(conv.first.detach().flatten(1)),
        nn.Parameter(conv.second.detach().flatten(1)),
        1.5,
    )
    other = Held.of(linear, omega.flatten(1))
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
    curvature = Held.of(adapter, scale * importance_of(adapter))
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
    curvature = Held.of(adapter, importance_of(adapter))
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
    curvature = Held.of(adapter, f)
    moved(adapter)
    curvature = curvature.joined(g, rule, num_tasks=1)
    last = product(adapter)
    moved(adapter, seed=5)
    torch.testing.assert_close(curvature.layer.diagonal(), expected(f, g))
    distance = (product(adapter) - last).square()
    torch.testing.assert_close(curvature.rise(), 0.5 * (expected(f, g).T.double() * distance).sum())
    with pytest.raises(OptionError, match="accumulate is 'least'"):
        curvature.joined(g, "least", num_tasks=2)


def test_both_factors_go_one_after_the_other():
    adapter = adapter_of()
    curvature = Held.of(adapter, importance_of(adapter))
    moved(adapter)
    values = adapter.values()
    metrics = [torch.rand(v.shape, dtype=torch.float64) + 0.1 for v in values]
    pulls, _, _ = curvature.layer.pull(values, curvature.anchors, 3.0, metrics=metrics, before=None)
    B = curvature.pull("second", 3.0, metric=metrics[1])
    assert torch.equal(pulls[1], (values[1] - B) - values[1])
    with torch.no_grad():
        adapter.second.sub_(B)
    torch.testing.assert_close(pulls[0], -curvature.pull("first", 3.0, metric=metrics[0]))


@pytest.mark.parametrize(("kernel", "transposed"), [((), False), ((), True), ((2, 2), False)])
def test_the_gradient_is_that_of_the_rise(kernel, transposed):
    adapter = adapter_of(kernel=kernel, transposed=transposed)
    layer, anchors = adapter.layer(importance_of(adapter)), adapter.values()
    moved(adapter)
    values = adapter.values()
    assert list(layer.shapes("name").values()) == [tuple(value.shape) for value in values]
    leaves = [value.clone().requires_grad_() for value in values]
    expected = torch.autograd.grad(layer.rise(leaves, anchors), leaves)
    for found, other in zip(layer.gradient(values, anchors), expected, strict=True):
        torch.testing.assert_close(found, other)


def test_its_tensors_and_form_make_it_again():
    adapter = adapter_of(transposed=True, dtype=torch.float32)
    layer = adapter.layer(importance_of(adapter))
    described, tensors = json.loads(json.dumps(layers_to_json({"a": layer}))), layers_to_tensors({"a": layer})
    found = layers_from(described, tensors, where="here")["a"]
    assert found.form == layer.form
    assert all(torch.equal(tensor, layer.tensors()[part]) for part, tensor in found.tensors().items())
    for part, value in (("scale", "much"), ("factor_shapes", [[3]]), ("second", 1)):
        with pytest.raises(FileFormatError, match="here: the form of 'a' is damaged"):
            layers_from({"a": {**described["a"], part: value}}, tensors, where="here")
    with pytest.raises(FileFormatError, match="the tensors of 'a' do not fit its shape"):
        layers_from({"a": {**described["a"], "transposed": False}}, tensors, where="here")
    with pytest.raises(FileFormatError, match="'a' is of the kind 'tensor train'; expected kronecker, adapter"):
        layers_from({"a": {**described["a"], "kind": "tensor train"}}, tensors, where="here")
    with pytest.raises(OptionError, match="per_task"):
        layer.joined(None, "per_task", num_tasks=0, share=1.0)
