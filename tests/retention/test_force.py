from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.retention.force import LARGEST, attenuate_, pull_, pull_shares, relative_force, relative_share

finite = st.floats(-1e6, 1e6, width=32)
strengths = st.one_of(st.floats(0, 1e12), st.just(math.inf))


def one(value, dtype=torch.float32):
    return [torch.tensor([value], dtype=dtype)]


def test_forces_by_hand():
    importance = [torch.tensor([0.0, 2.0])]
    assert relative_force(importance, 3.0)[0].tolist() == [0, 6]
    assert relative_force(importance, 3.0, metric=4.0)[0].tolist() == [0, 1.5]
    assert relative_force(importance, 3.0, metric=[torch.tensor([1.0, 4.0])])[0].tolist() == [0, 1.5]
    assert relative_force(importance, 3.0, metric=math.inf)[0].tolist() == [0, 0]
    assert importance[0].tolist() == [0, 2]


def test_shares_by_hand():
    assert relative_share(one(3.0))[0].item() == pytest.approx(0.75)
    assert relative_share(one(3.0), attenuation="exponential")[0].item() == pytest.approx(1 - math.exp(-3))
    assert relative_share(one(1e-8), attenuation="exponential")[0].item() == pytest.approx(1e-8)


@given(st.floats(0, 2.0**127, width=32), strengths, st.sampled_from([1e-12, 1e-3, 1.0, 1e9, math.inf]), st.booleans())
def test_forces_are_finite_and_shares_within_0_and_1(importance, strength, metric, as_tensor):
    tensor = as_tensor and metric < math.inf
    force = relative_force(one(importance), strength, metric=one(metric) if tensor else metric, largest=importance)
    assert 0 <= force[0].item() <= LARGEST * (1 + 1e-6)
    for attenuation in ("hyperbolic", "exponential"):
        assert 0 <= relative_share(force, attenuation=attenuation)[0].item() <= 1


def test_infinity_pins_the_smallest_importance_and_leaves_zero():
    for metric in (1.0, [torch.ones(3)]):
        force = relative_force([torch.tensor([0.0, 1e-38, 1.0])], math.inf, metric=metric)
        assert relative_share(force)[0].tolist() == [0, 1, 1]


@given(finite, finite, strengths)
def test_a_pull_ends_between_weight_and_anchor(weight, anchor, force):
    weights = one(weight)
    pull_(weights, one(anchor), relative_share(one(min(force, LARGEST))))
    assert min(weight, anchor) <= weights[0].item() <= max(weight, anchor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_ends_are_exact_in_every_dtype(dtype):
    start, anchors = torch.randn(50).to(dtype), torch.randn(50).to(dtype)
    for force, expected in ((0.0, start), (LARGEST, anchors)):
        weights = [start.clone()]
        pull_(weights, [anchors], relative_share([torch.full((50,), force)]))
        assert torch.equal(weights[0], expected)
        assert weights[0].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_attenuation_in_every_dtype(dtype):
    weights, increments = [torch.tensor([1.0, 2.0], dtype=dtype)], [torch.tensor([0.5, 1.0], dtype=dtype)]
    attenuate_(weights, increments, [torch.tensor([0.0, 0.25])])
    assert weights[0].tolist() == [1.0, 1.75]
    assert weights[0].dtype == dtype


@given(finite.map(abs), finite.map(abs).filter(lambda m: m > 1e-6), strengths)
def test_the_share_of_the_pull_by_either_formula(importance, metric, strength):
    by_force = relative_share(relative_force(one(importance), strength, metric=one(metric)))[0].item()
    for bound in (importance, math.inf):
        share = pull_shares(one(importance), strength, metric=one(metric), largest=bound)[0].item()
        assert share == pytest.approx(by_force, rel=1e-5, abs=1e-30)
    number = pull_shares(one(importance), strength, metric=metric, largest=importance)[0].item()
    assert number == pytest.approx(by_force, rel=1e-5, abs=1e-30)
