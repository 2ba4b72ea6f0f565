"""The CUDA kernels are the formulas as they stand: on a CUDA device, or on the CPU by Triton's interpreter.

Without a device: TRITON_INTERPRET=1 python -m pytest tests/retention/test_fused.py
"""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
from tests.optimizers import EXACT
from tests.retention.test_in_place import KEEPERS, trained, weights_of

from holdfast.retention import force, parts, route
from holdfast.retention.parts import Block
from holdfast.steps import Increment, Kept, RootMetric

pytest.importorskip("triton", reason="Triton is not installed")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="no CUDA device")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}
SHAPE = (43, 61)  # more than two programs, and no multiple of one


def drawn(dtype):
    """Weights, anchors, importances with zeros, second moments with zeros, and gradients."""
    importance = torch.where(torch.rand(SHAPE) < 0.3, 0.0, torch.rand(SHAPE) ** 8)
    second = torch.where(torch.rand(SHAPE) < 0.3, 0.0, torch.rand(SHAPE) ** 4)
    found = torch.randn(SHAPE).to(dtype), torch.randn(SHAPE).to(dtype), importance, second.to(dtype)
    return *(tensor.to(DEVICE) for tensor in found), torch.randn(SHAPE).to(DEVICE, dtype)


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
@pytest.mark.parametrize("kind", ["sgd", "nesterov", "sgd decay", "adam", "adamw", "kept"])
@pytest.mark.parametrize("strength", [1e-6, 3.0, 1e6])
def test_an_attenuation_is_the_formula(strength, kind, attenuation, dtype):
    from holdfast.retention import fused

    weight, buffer, importance, second, gradient = drawn(dtype)
    metric, first = RootMetric(second, 1e3, 1e-2), second.sqrt() * gradient
    increment = {
        "sgd": Increment(gradient, -0.1),
        "nesterov": Increment(gradient, -0.1, buffer, 0.9),
        "sgd decay": Increment(gradient, 0.1, decay=0.02),
        "adam": Increment(first, -1.25, metric=metric),
        "adamw": Increment(first, -1.25, metric=metric, decay=0.01),
        "kept": Kept(weight - gradient),
    }[kind]
    expected, start = weight.clone(), weight.clone()
    shares = force.relative_share(force.relative_force([importance], strength), attenuation=attenuation)
    force.attenuate_([expected], [increment.value(weight)], shares)
    fused.attenuate_(weight, importance, strength, increment=increment, attenuation=attenuation)
    torch.testing.assert_close(weight, expected, rtol=2 * TOLERANCE[dtype], atol=5 * TOLERANCE[dtype])
    assert torch.equal(weight[importance == 0], start[importance == 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("optimizer", ["sgd decay", "nesterov", "adam", "adamw", "amsgrad"])
@pytest.mark.parametrize("keeper", [name for name in KEEPERS if name != "budget"])
def test_training_by_the_kernels_is_training_by_the_formulas(keeper, optimizer, dtype, monkeypatch):
    """On the CPU, with the kernels taken for every block that they can treat."""
    if not INTERPRETED:
        pytest.skip("the interpreter's test; on a device the kernels are taken by themselves")
    monkeypatch.setattr(parts, "_is_cut", lambda weight: False)
    expected = weights_of(trained(EXACT[optimizer], KEEPERS[keeper], dtype=dtype, steps=3).model)
    calls = []
    kernels = route._kernels()

    def taken(block):
        flat = all(weight.is_contiguous() for weight in block.weights)
        calls.append(flat)
        return kernels if flat else None

    monkeypatch.setattr(route, "_is_piece", lambda block: False)
    monkeypatch.setattr(route, "_fused", taken)
    found = weights_of(trained(EXACT[optimizer], KEEPERS[keeper], dtype=dtype, steps=3).model)
    assert any(calls)
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
