"""The CUDA kernels are the formulas as they stand: on a CUDA device, or on the CPU by Triton's interpreter.

conftest.py chooses the interpreter (TRITON_INTERPRET=1) where there is no device.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.optimizers import EXACT
from tests.retention.loops import weights_of
from tests.retention.test_in_place import KEEPERS, scales, strengths, trained

from holdfast import EWC
from holdfast.retention import force, parts, route
from holdfast.retention.parts import Block
from holdfast.retention.route import Route
from holdfast.steps import CopiedIncrement, Increment, RootMetric

pytest.importorskip("triton", reason="Triton is not installed")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="no CUDA device")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="on a device the kernels are taken by themselves")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}
SHAPES = [(1,), (1023,), (1024,), (5, 205), (43, 61)]
"""One weight, a program less one, exactly one, one and one weight more, and more than two."""

INCREMENTS = ["sgd", "nesterov", "sgd decay", "nesterov decay", "adam", "adam without eps", "adamw", "kept"]


def drawn(dtype, *, shape=(43, 61), scale=1.0):
    """Weights, anchors, importances with zeros, second moments with zeros, and gradients."""
    importance = scale * torch.where(torch.rand(shape) < 0.3, 0.0, torch.rand(shape) ** 8)
    second = torch.where(torch.rand(shape) < 0.3, 0.0, torch.rand(shape) ** 4)
    found = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), importance, second.to(dtype)
    return *(tensor.to(DEVICE) for tensor in found), torch.randn(shape).to(DEVICE, dtype)


def increment_of(kind, weight, buffer, second, gradient):
    metric, first = RootMetric(second, 1e3, 1e-2), second.sqrt() * gradient
    return {
        "sgd": Increment(gradient, -0.1),
        "nesterov": Increment(gradient, -0.1, buffer, 0.9),
        "sgd decay": Increment(gradient, 0.1, decay=0.02),
        "nesterov decay": Increment(gradient, 0.1, buffer, -0.9, decay=0.02),
        "adam": Increment(first, -1.25, metric=metric),
        "adam without eps": Increment(first, -1.25, metric=RootMetric(second + 1e-2, 1e3, 0.0)),
        "adamw": Increment(first, -1.25, metric=metric, decay=0.01),
        "kept": CopiedIncrement(weight - gradient),
    }[kind]


@contextmanager
def kernels_on_the_cpu() -> Iterator[Counter[str]]:
    """The kernels are taken on the CPU as they are on a device; yields how often each was called."""
    from holdfast.retention import fused

    calls: Counter[str] = Counter()

    def counted(name, original):
        def call(*args, **options):
            calls[name] += 1
            original(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_is_cut", lambda weight: False)
        patch.setattr(route, "_is_piece", lambda block: False)
        patch.setattr(route, "_is_on_device", lambda weight: True)
        for name in ("pull_", "attenuate_"):
            patch.setattr(fused, name, counted(name, getattr(fused, name)))
        yield calls


@DTYPES
@pytest.mark.parametrize("number", [None, 10.0])
@pytest.mark.parametrize("strength", [1e-6, 3.0, 1e6])
def test_a_pull_is_the_formula(strength, number, dtype):
    from holdfast.retention import fused

    weight, anchor, importance, second, _ = drawn(dtype)
    metric = RootMetric(second, 1e3, 1e-2) if number is None else number
    block = Block([weight.clone()], [anchor], [importance], metrics=[metric])
    force.pull_(block.weights, [anchor], force.pull_shares([importance], strength, metric=block.metric()))
    start = weight.clone()
    fused.pull_(weight, anchor, importance, strength, metric=metric)
    torch.testing.assert_close(weight, block.weights[0], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(weight[importance == 0], start[importance == 0])
    assert torch.all((torch.minimum(start, anchor) <= weight) & (weight <= torch.maximum(start, anchor)))


@DTYPES
@pytest.mark.parametrize("attenuation", ["hyperbolic", "exponential"])
@pytest.mark.parametrize("kind", INCREMENTS)
@pytest.mark.parametrize("strength", [1e-6, 3.0, 1e6])
def test_an_attenuation_is_the_formula(strength, kind, attenuation, dtype):
    from holdfast.retention import fused

    weight, buffer, importance, second, gradient = drawn(dtype)
    increment = increment_of(kind, weight, buffer, second, gradient)
    expected, start = weight.clone(), weight.clone()
    shares = force.relative_share(force.relative_force([importance], strength), attenuation=attenuation)
    force.attenuate_([expected], [increment.value(weight)], shares)
    fused.attenuate_(weight, importance, strength, increment=increment, attenuation=attenuation)
    torch.testing.assert_close(weight, expected, rtol=2 * TOLERANCE[dtype], atol=5 * TOLERANCE[dtype])
    assert torch.equal(weight[importance == 0], start[importance == 0])


def test_a_small_share_of_an_increment_is_exact():
    """1 - exp(-x) for small x, of weights that have come to zero, where no rounding hides it."""
    from holdfast.retention import fused

    before, x = torch.ones(1000, device=DEVICE), torch.logspace(-12, 1, 1000, device=DEVICE)
    found = torch.zeros_like(before)
    fused.attenuate_(found, x, 1.0, increment=CopiedIncrement(before), attenuation="exponential")
    torch.testing.assert_close(found, -x.double().neg().expm1().float(), rtol=2e-5, atol=0)


@interpreted
@given(strengths, scales, st.sampled_from(SHAPES), st.sampled_from([None, 1e-12, 10.0, 1e9, math.inf]))
def test_a_pull_of_any_size_is_the_formula(strength, scale, shape, number):
    """By a kernel where the numbers allow it, and by the formulas elsewhere; two tensors of one block."""
    weights, anchors, importance, seconds, _ = zip(*(drawn(torch.float32, shape=s, scale=scale) for s in (shape, (7,))))
    metrics = [RootMetric(second, 1e3, 1e-5) if number is None else number for second in seconds]
    block = Block([w.clone() for w in weights], list(anchors), list(importance), metrics=metrics)
    largest = max(value.max().item() for value in importance)
    force.pull_(block.weights, anchors, force.pull_shares(block.importance, strength, metric=block.metric()))
    with kernels_on_the_cpu() as calls:
        found = Block([w.clone() for w in weights], list(anchors), list(importance), metrics=metrics)
        Route().pull(found, strength, largest=largest)
    plain = 1e-10 <= strength <= 1e10 and scale <= 1e20 and number != math.inf
    assert calls["pull_"] == 2 or not plain
    assert calls["pull_"] == 0 or 0 < strength < math.inf
    for weight, start, expected, omega in zip(found.weights, weights, block.weights, importance):
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(weight[omega == 0], start[omega == 0])


@interpreted
@pytest.mark.filterwarnings("ignore:overflow encountered in multiply:RuntimeWarning")  # numpy's, of 1 - exp(-inf) = 1
@pytest.mark.parametrize("attenuation", ["hyperbolic", "exponential"])
@pytest.mark.parametrize("kind", INCREMENTS)
@given(strengths, scales)
def test_an_attenuation_of_any_size_is_the_formula(kind, attenuation, strength, scale):
    weight, buffer, importance, second, gradient = drawn(torch.float32, shape=(5, 205), scale=scale)
    increment = increment_of(kind, weight, buffer, second, gradient)
    largest, expected = importance.max().item(), weight.clone()
    shares = force.relative_share(force.relative_force([importance], strength), attenuation=attenuation)
    force.attenuate_([expected], [increment.value(weight)], shares)
    start = weight.clone()
    with kernels_on_the_cpu() as calls:
        block = Block([weight], [], [importance], increments=[increment])
        Route().attenuate(block, strength, attenuation=attenuation, largest=largest)
    assert calls["attenuate_"] == 1 or not (1e-10 <= strength <= 1e10 and scale <= 1e20)
    assert calls["attenuate_"] == 0 or 0 < strength < math.inf
    torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(weight[importance == 0], start[importance == 0])


FORMS = {
    "int8 and int16": partial(EWC, strength=20.0, importance_dtype="int8", anchor_dtype="int16"),
    "bfloat16": partial(EWC, strength=20.0, importance_dtype="bfloat16", anchor_dtype="bfloat16"),
}


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("optimizer", ["nesterov", "adamw", "amsgrad"])
@pytest.mark.parametrize("keeper", [*(name for name in KEEPERS if name != "budget"), *FORMS])
def test_training_by_the_kernels_is_training_by_the_formulas(keeper, optimizer, dtype, monkeypatch):
    train = partial(trained, EXACT[optimizer], {**KEEPERS, **FORMS}[keeper], dtype=dtype, steps=3)
    monkeypatch.setattr(parts, "_is_cut", lambda weight: False)
    expected = weights_of(train().model)
    with kernels_on_the_cpu() as calls:
        found = weights_of(train().model)
    assert calls["attenuate_" if "wva" in keeper else "pull_"]
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=4 * TOLERANCE[dtype], atol=4 * TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("keeper", ["ewc", "wva"])
def test_on_a_device_the_kernels_are_taken(keeper, monkeypatch):
    from holdfast.retention import fused

    calls = []
    for name in ("pull_", "attenuate_"):
        original = getattr(fused, name)
        monkeypatch.setattr(fused, name, lambda *a, original=original, **o: (calls.append(1), original(*a, **o)))
    model = torch.nn.Linear(5, 3).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    held = partial(KEEPERS[keeper], log_every=0)(model).attach(optimizer)
    held.retain({name: torch.ones_like(p) for name, p in model.named_parameters()})
    model(torch.randn(4, 5, device="cuda")).square().sum().backward()
    optimizer.step()
    assert len(calls) == 2
