"""Pulls on weights of half precision: what is smaller than their resolution adds up."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.optimizers import PLAIN
from tests.retention.loops import MECHANISMS, batches, factored_of, importance_of, network, same, train_held, weights_of
from torch import nn

from holdfast import EWC, WVA
from holdfast.retention import force
from holdfast.retention.rounding import no_residual, round_, with_residual

HALF = [torch.bfloat16, torch.float16]
half_precision = pytest.mark.parametrize("dtype", HALF, ids=str)


@half_precision
def test_weight_and_residual_say_what_float32_says(dtype):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(20_000, generator=generator) * 10 ** torch.linspace(-6, 3, 20_000)
    steps = torch.arange(1.0, 400.0) / 128  # binades' ends and half units
    value = torch.cat([drawn, steps, -steps, torch.zeros(1), torch.tensor([1.0, 2.0, 0.5]) - 1e-4])
    weight, residual = torch.empty_like(value, dtype=dtype), no_residual(value)
    round_(weight, residual, value.clone())
    assert torch.equal(weight, value.to(dtype))
    unit = value.abs().clamp_min(float(torch.finfo(dtype).smallest_normal)) * torch.finfo(dtype).eps / 65534
    assert ((with_residual(weight, residual) - value).abs() <= 0.6 * unit + 1e-7 * value.abs()).all()


def one_weight(dtype, *, start: float, anchor: float):
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(model.weight, anchor)
    keeper = EWC(model, strength=1e-3, log_every=0)
    keeper.retain({"weight": torch.ones(1, 1)})
    nn.init.constant_(model.weight, start)
    return model, keeper


@half_precision
def test_a_pull_below_the_resolution_arrives(dtype):
    """Steps without gradient, w = 1e-4 each: 1 - (1 - w)^n of the way."""
    model, keeper = one_weight(dtype, start=1.5, anchor=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keeper.attach(optimizer)
    lost = model.weight.detach().clone()
    force.pull_([lost], [torch.ones_like(lost)], [torch.full((1, 1), 1e-4)])
    assert lost.item() == 1.5  # rounded away
    for _ in range(2000):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    expected = 1 + 0.5 / (1 + 1e-4) ** 2000
    assert model.weight.item() == pytest.approx(expected, abs=float(torch.finfo(dtype).eps) / 2)


@half_precision
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_attenuation_below_the_resolution_arrives(dtype, share):
    """Steps of one unit in the last place, of which WVA takes back a part."""
    unit = float(torch.finfo(dtype).eps)
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(model.weight, 1.0)
    keeper = WVA(model, strength=share / (1 - share), log_every=0).retain({"weight": torch.ones(1, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    keeper.attach(optimizer)
    for _ in range(50):
        model.weight.grad = torch.full_like(model.weight, -unit)
        optimizer.step()
    assert model.weight.item() == pytest.approx(1 + 50 * unit * (1 - share), abs=unit)


def test_kronecker_factors_too():
    model = network(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    keeper = EWC(model, strength=0.5, log_every=0).attach(optimizer).retain(factored_of(model))
    wide = network()
    wide.load_state_dict(weights_of(model))
    wide_optimizer = torch.optim.SGD(wide.parameters(), lr=1e-3)
    EWC(wide, strength=0.5, log_every=0).attach(wide_optimizer).retain(factored_of(wide))
    with torch.no_grad():
        for first, second in zip(model.parameters(), wide.parameters(), strict=True):
            first.add_(0.5)
            second.copy_(first)
    start = weights_of(model)
    for _ in range(300):
        for network_, its in ((model, optimizer), (wide, wide_optimizer)):
            for parameter in network_.parameters():
                parameter.grad = torch.zeros_like(parameter)
            its.step()
    for name, weight in weights_of(wide).items():
        now = dict(model.named_parameters())[name].detach()
        torch.testing.assert_close(now.float(), weight, rtol=2**-8, atol=1e-4)
        assert not torch.equal(now, start[name])
    assert keeper.report().num_steps == 300


@half_precision
@pytest.mark.parametrize("mechanism", ["ewc", "ewc-budget", "wva"])
def test_save_load_continue_is_continue(mechanism, dtype, tmp_path):
    def start(strength=10.0):
        model = network(dtype)
        return model, MECHANISMS[mechanism](model, strength=strength, log_every=2), PLAIN["adam"](model.parameters())

    model, keeper, optimizer = start()
    keeper.attach(optimizer).retain(importance_of(model))
    train_held(keeper, optimizer, batches(5, dtype=dtype))
    keeper.save(tmp_path / "skills")
    other, _, its_optimizer = start()
    loaded = type(keeper).load(tmp_path / "skills", other).attach(its_optimizer)
    other.load_state_dict(model.state_dict())
    its_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train_held(keeper, optimizer, batches(5, seed=1, dtype=dtype))
    train_held(loaded, its_optimizer, batches(5, seed=1, dtype=dtype))
    assert any(residual.any() for residual in keeper.state()[0].values() if residual.dtype == torch.int16)
    assert same(weights_of(model), weights_of(other))
    keeper.retain(importance_of(model))
    assert not any(name.startswith("residuals/") for name in keeper.state()[0])


@pytest.mark.parametrize("mechanism", ["ewc", "wva", "ewc-gradient"])
def test_only_where_pulls_are_rounded_is_anything_kept(mechanism):
    for dtype, kept in ((torch.float32, False), (torch.bfloat16, mechanism != "ewc-gradient")):
        model = network(dtype)
        optimizer = PLAIN["sgd"](model.parameters())
        keeper = MECHANISMS[mechanism](model, strength=1.0).attach(optimizer).retain(importance_of(model))
        train_held(keeper, optimizer, batches(1, dtype=dtype))
        assert any(name.startswith("residuals/") for name in keeper.state()[0]) is kept
