"""The routes of few passes are the formulas as they stand, on every shape, optimizer and size of numbers."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.optimizers import EXACT
from tests.retention.loops import same, weights_of
from torch import nn
from torch.optim import Adam

from holdfast import EWC, WVA, Importance, ImportanceInfo
from holdfast.retention import force, in_place, parts
from holdfast.retention.parts import Block, Part
from holdfast.retention.route import Route
from holdfast.steps import CopiedIncrement, Increment, RootMetric

SIZE = 67  # no multiple of a vector register
strengths = st.one_of(st.floats(-12, 12).map(lambda x: 10**x), st.sampled_from([0.0, 1e25, 1e30, math.inf]))
scales = st.sampled_from([1e-20, 1e-6, 1.0, 1e6, 1e20, 1e31])


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of ten weights."""
    monkeypatch.setattr(parts, "BLOCK", 10)


def drawn(seed, scale=1.0):
    """Weights, anchors, importances with zeros, second moments with zeros, and first moments."""
    torch.manual_seed(seed)
    importance = scale * torch.where(torch.rand(SIZE) < 0.3, 0.0, torch.rand(SIZE) ** 8)
    second = torch.where(torch.rand(SIZE) < 0.3, 0.0, torch.rand(SIZE) ** 20)
    return torch.randn(SIZE), torch.randn(SIZE), importance, second, second.sqrt() * torch.randn(SIZE)


def pulled_by_force(block, strength):
    weights = [weight.clone() for weight in block.weights]
    force.pull_(weights, block.anchors, force.pull_shares(block.importance, strength, metric=block.metric()))
    return weights[0]


@given(strengths, scales, st.integers(0, 99), st.sampled_from([None, 1e-12, 10.0, 1e9, math.inf]))
def test_a_pull_by_either_route(strength, scale, seed, number):
    weight, anchor, importance, second, _ = drawn(seed, scale)
    metric = RootMetric(second, 1e3, 1e-5) if number is None else number
    block = Block([weight], [anchor], [importance], metrics=[metric])
    expected, start = pulled_by_force(block, strength), weight.clone()
    Route().pull(block, strength, largest=importance.max().item())
    torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(weight[importance == 0], start[importance == 0])
    assert torch.all((torch.minimum(start, anchor) <= weight) & (weight <= torch.maximum(start, anchor)))


@pytest.mark.parametrize("attenuation", ["hyperbolic", "exponential"])
@pytest.mark.parametrize("kind", ["sgd", "nesterov", "sgd decay", "adam", "adam without eps", "adamw", "still"])
@given(strengths, scales, st.integers(0, 99))
def test_an_attenuation_by_either_route(kind, attenuation, strength, scale, seed):
    weight, buffer, importance, second, first = drawn(seed, scale)
    metric = RootMetric(second, 1e3, 1e-5)
    without_eps = RootMetric(second + 1e-3, 1e3, 0.0)
    increment = {
        "sgd": Increment(first, -0.1),
        "nesterov": Increment(first, -0.1, buffer, 0.9),
        "sgd decay": Increment(first, 0.1, decay=0.02),
        "adam": Increment(first, -1.25, metric=metric),
        "adam without eps": Increment(first, -1.25, metric=without_eps),
        "adamw": Increment(first, -1.25, metric=metric, decay=0.01),
        "still": Increment(first, 0.0),
    }[kind]
    block = Block([weight], [], [importance], increments=[increment])
    shares = force.relative_share(force.relative_force([importance], strength), attenuation=attenuation)
    expected, start = weight.clone(), weight.clone()
    force.attenuate_([expected], block.moved(), shares)
    Route().attenuate(block, strength, attenuation=attenuation, largest=importance.max().item())
    torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(weight[importance == 0], start[importance == 0])


@given(strengths.filter(lambda x: x <= 1e12), st.integers(0, 99), st.booleans())
def test_a_rise_by_either_route(strength, seed, is_root):
    weight, anchor, importance, second, _ = drawn(seed)
    metric = RootMetric(second, 1e3, 1e-5) if is_root else 10.0
    block = Block([weight], [anchor], [importance], metrics=[metric])
    found = Route().rise(block, strength, largest=1.0)
    metric = block.metric()
    expected = force.rise([weight], [anchor], [importance], strength, metric=metric)
    scale = (importance * (weight - anchor).square()).sum().item()
    for (one,), (other,) in zip(found, expected, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-3, abs=1e-9 * scale)
    by_hand = (importance * (pulled_by_force(block, strength) - anchor).square()).sum().item()
    assert found[0][0].item() == pytest.approx(by_hand, rel=1e-4, abs=1e-9 * scale)


def test_the_slope_of_a_rise():
    weight, anchor, importance, second, _ = drawn(0)
    block = Block([weight], [anchor], [importance], metrics=[RootMetric(second, 1e3, 1e-5)])
    for strength in (0.7, 30.0):
        rises = [Route().rise(block, strength * nudge, largest=1.0)[0][0].item() for nudge in (0.97, 1.03)]
        slope = -2 * Route().rise(block, strength, largest=1.0)[1][0].item()
        assert slope == pytest.approx((rises[1] - rises[0]) / (0.06 * strength), rel=2e-2)


def test_the_distance_by_either_route():
    weight, anchor, importance, _, _ = drawn(0)
    by_hand = (importance * (weight - anchor).square()).sum().item()
    whole = Block([weight.view(1, SIZE)], [anchor.view(1, SIZE)], [importance.view(1, SIZE)])
    for block in (Block([weight], [anchor], [importance]), whole):
        assert sum(Route().distance(block)).item() == pytest.approx(by_hand, rel=1e-5)


def net(dtype=torch.float32):
    """A matrix of several blocks, a convolution that is no single stretch of memory, and vectors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 7)).to(dtype)
    model[0].to(memory_format=torch.channels_last)  # pyright: ignore
    return model


def importance_of(model):
    torch.manual_seed(1)
    drawn = {name: torch.rand(p.shape).sub_(0.2).clamp_min_(0) for name, p in model.named_parameters()}
    return Importance(drawn, ImportanceInfo("custom", 1, nats_per_unit=1.0))


def trained(build, keep, *, dtype=torch.float32, steps=6, between=lambda model: None):
    model = net(dtype)
    optimizer = build(model.parameters())
    keeper = keep(model).attach(optimizer).retain(importance_of(model))
    torch.manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 3, 4, 4, dtype=dtype)).square().mean().backward()
        optimizer.step()
        between(model)
    return keeper


KEEPERS = {
    "ewc": partial(EWC, strength=20.0),
    "wva": partial(WVA, strength=5.0),
    "wva exponential": partial(WVA, strength=5.0, attenuation="exponential"),
    "budget": partial(EWC, budget=1e-4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("optimizer", EXACT)
@pytest.mark.parametrize("keeper", KEEPERS)
def test_training_in_blocks_is_training_by_the_formulas(keeper, optimizer, dtype, small_blocks, monkeypatch):
    in_blocks = trained(EXACT[optimizer], KEEPERS[keeper], dtype=dtype)
    monkeypatch.setattr(parts, "_is_cut", lambda weight: False)
    whole = trained(EXACT[optimizer], KEEPERS[keeper], dtype=dtype)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-6, torch.bfloat16: 0.02}[dtype]
    if keeper == "budget":
        tolerance = max(tolerance, 1e-4)  # the multiplier is found to a thousandth
    expected = weights_of(whole.model)
    for name, weight in weights_of(in_blocks.model).items():
        torch.testing.assert_close(weight, expected[name], rtol=tolerance, atol=tolerance)
    for one, other in zip(in_blocks._progress().values(), whole._progress().values(), strict=True):
        assert one == pytest.approx(other, rel=1e-2)


@pytest.mark.parametrize("keeper", ["ewc", "wva"])
def test_what_is_one_stretch_of_memory_goes_in_place(keeper, small_blocks, monkeypatch):
    sizes: list[int] = []
    for name in ("pull_", "attenuate_"):

        def counted(weight, *args, original=getattr(in_place, name), **options):
            sizes.append(weight.numel())
            original(weight, *args, **options)

        monkeypatch.setattr(in_place, name, counted)
    trained(partial(Adam, lr=0.01), KEEPERS[keeper], steps=1)
    assert sizes == [4] + [10] * 11 + [2] + [7]  # a bias, the matrix, a bias; not the convolution


@pytest.mark.parametrize("keeper", KEEPERS)
def test_weights_that_move_to_other_memory_are_still_held(keeper, small_blocks):
    def move(model):
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()

    results = [
        weights_of(trained(partial(Adam, lr=0.01), KEEPERS[keeper], between=between).model)
        for between in (move, lambda model: None)
    ]
    assert same(*results)


@pytest.mark.parametrize("cut", [True, False])
def test_every_weight_is_in_exactly_one_block(cut, small_blocks, monkeypatch):
    monkeypatch.setattr(parts, "_is_cut", lambda weight: cut and weight.is_contiguous())
    weights = [torch.zeros(size) for size in ((5, 5), (3,), (), (10,), (2, 3), (0,))] + [torch.zeros(4, 3).T]
    ones = [torch.ones_like(weight) for weight in weights]
    part = Part({}, [nn.Parameter(weight) for weight in weights], ones, ones)
    sizes = []
    for block in part.blocks(metrics=[1.0] * 7, increments=[CopiedIncrement(one) for one in ones]):
        for weight, anchor, moved in zip(block.weights, block.anchors, block.moved(), strict=True):
            weight.add_(anchor)
            sizes.append(moved.numel())
        assert len(block.metrics) == len(block.weights)
    assert all(torch.equal(weight, one) for weight, one in zip(weights, ones, strict=True))
    assert sizes == ([10, 10, 5, 3, 1, 10, 6, 12] if cut else [25, 3, 1, 10, 6, 0, 12])
