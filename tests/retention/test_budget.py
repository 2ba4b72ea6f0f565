from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.retention.loops import batches, importance_of, network, same, train, weights_of
from torch.optim import SGD, Adam

from holdfast import EWC
from holdfast.errors import OptionError
from holdfast.retention.budget import solve_multiplier
from holdfast.retention.force import LARGEST

# --- the solver


def rise_of(terms):
    """mu -> sum c/(1 + mu k)^2 and its derivative, for (c, k) pairs."""

    def rise(multiplier):
        value = sum(c / (1 + multiplier * k) ** 2 for c, k in terms)
        slope = -sum(2 * c * k / (1 + multiplier * k) ** 3 for c, k in terms)
        return value, slope

    return rise


terms = st.lists(
    st.tuples(st.floats(-6, 6).map(lambda x: 10**x), st.floats(-8, 4).map(lambda x: 10**x)), min_size=1, max_size=6
)


@given(terms, st.floats(0.001, 0.999), st.one_of(st.just(0.0), st.floats(-12, 30).map(lambda x: 10**x)))
def test_the_solver_agrees_with_bisection(terms, share, start):
    rise = rise_of(terms)
    budget = share * rise(0.0)[0]
    found = solve_multiplier(rise, budget, start=start)
    assert budget * 0.998 <= rise(found)[0] <= budget

    low, high = 0.0, 1e30
    for _ in range(300):
        middle = math.sqrt(low * high) if low > 0 else high / 2
        low, high = (middle, high) if rise(middle)[0] > budget else (low, middle)
    assert rise(found)[0] == pytest.approx(rise(high)[0], rel=2.1e-3)
    assert found >= high * (1 - 1e-9)


def test_the_solver_at_its_ends():
    rise = rise_of([(4.0, 1.0)])
    assert solve_multiplier(rise, 4.0) == 0.0
    assert solve_multiplier(rise, 5.0, start=3.0) == 0.0
    assert solve_multiplier(rise, 0.0) == LARGEST
    assert solve_multiplier(rise, 1.0) == pytest.approx(1.0, rel=2e-3)
    assert solve_multiplier(rise_of([(4.0, 0.0)]), 1.0) == LARGEST  # a rise that no pull lowers


def test_a_start_so_large_that_no_slope_is_left():
    rise = rise_of([(4.0, 1.0)])
    in_float32 = lambda multiplier: tuple(torch.tensor(rise(multiplier)).tolist())  # noqa: E731
    assert in_float32(1e30) == (0.0, 0.0)
    assert solve_multiplier(in_float32, 1.0, start=1e30) == pytest.approx(1.0, rel=2e-3)


@given(terms, st.floats(0.01, 0.9))
def test_few_evaluations_from_a_near_start(terms, share):
    rise = rise_of(terms)
    budget = share * rise(0.0)[0]
    root = solve_multiplier(rise, budget)
    calls = []

    def counted(multiplier):
        calls.append(multiplier)
        return rise(multiplier)

    solve_multiplier(counted, 1.05 * budget if share < 0.85 else budget, start=root)
    assert len(calls) <= 5


# --- the keeper

BUDGET = 1e-3


def groups_of(model):
    return [{"params": model[0].parameters(), "lr": 0.003}, {"params": model[2].parameters()}]


@pytest.mark.parametrize("accumulate", ["sum", "per_task"])
@pytest.mark.parametrize("build", [SGD, partial(SGD, momentum=0.9), Adam, partial(Adam, amsgrad=True)])
def test_the_rise_never_exceeds_the_budget_and_reaches_it(build, accumulate):
    model = network()
    optimizer = build(groups_of(model), lr=0.03)
    keeper = EWC(model, budget=BUDGET, accumulate=accumulate).attach(optimizer)
    free_steps, binding_steps = 0, 0
    for task in range(3):
        keeper.retain(importance_of(model, seed=task))
        start = keeper.predicted_rise()
        for data in batches(12, seed=task):
            train(model, optimizer, [data])
            rise = keeper.predicted_rise() - start
            assert rise <= BUDGET * (1 + 1e-5) + 1e-6 * start
            multiplier = keeper.report().strength
            assert multiplier is not None
            assert multiplier >= 0
            if multiplier > 0:
                binding_steps += 1
                assert rise >= 0.997 * BUDGET - 1e-6 * start
            else:
                free_steps += 1
    assert binding_steps > 15


def test_within_the_budget_nothing_is_pulled():
    model, free = network(), network()
    optimizer, alone = Adam(model.parameters(), lr=1e-3), Adam(free.parameters(), lr=1e-3)
    keeper = EWC(model, budget=1e3).attach(optimizer).retain(importance_of(model))
    train(model, optimizer, batches(5))
    train(free, alone, batches(5))
    assert same(weights_of(model), weights_of(free))
    assert keeper.report().strength == 0


def test_the_projection_is_the_nearest_point_in_the_optimizers_metric():
    """No other point of the ellipsoid is nearer to theta' in sum M (d - d')^2."""
    model, free = network(), network()
    optimizer, alone = SGD(groups_of(model), lr=0.03), SGD(groups_of(free), lr=0.03)
    keeper = EWC(model, budget=BUDGET).attach(optimizer).retain(importance_of(model))
    train(model, optimizer, batches(1))
    train(free, alone, batches(1))
    multiplier = keeper.report().strength
    for name, weight in weights_of(model).items():
        metric = 1 / (0.003 if name.startswith("0") else 0.03)
        balance = metric * (weight - free.get_parameter(name).detach())
        pull = multiplier * keeper.held.importance[name] * (weight - keeper.held.anchors[name])
        torch.testing.assert_close(balance, -pull, rtol=1e-3, atol=1e-3)


def test_two_optimizers_share_one_budget():
    model = network()
    optimizers = [SGD(model[0].parameters(), lr=0.05), Adam(model[2].parameters(), lr=0.05)]
    keeper = EWC(model, budget=BUDGET)
    for optimizer in optimizers:
        keeper.attach(optimizer)
    keeper.retain(importance_of(model))
    for data in batches(10):
        for optimizer in optimizers:
            train(model, optimizer, [data])
            model.zero_grad()
            assert keeper.predicted_rise() <= BUDGET * (1 + 1e-5)


def test_a_step_of_lr_zero_stays_where_it_was():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper = EWC(model, budget=BUDGET).attach(optimizer).retain(importance_of(model))
    train(model, optimizer, batches(4))
    before = weights_of(model)
    for build in (SGD, Adam):
        resting = build(model.parameters(), lr=0.0)
        keeper.attach(resting)
        train(model, resting, batches(2))
        keeper.detach()
        assert same(before, weights_of(model))


def test_a_resumed_keeper_has_the_rest_of_its_budget_and_not_a_new_one(tmp_path):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper = EWC(model, budget=BUDGET).attach(optimizer).retain(importance_of(model))
    train(model, optimizer, batches(5))
    for _ in range(3):
        keeper.save(tmp_path / "skills")
        keeper.detach()
        keeper = EWC.load(tmp_path / "skills", model).attach(optimizer)
        train(model, optimizer, batches(5))
        assert keeper.predicted_rise() <= BUDGET * (1 + 1e-5)


# --- units


def test_importances_that_are_not_in_nats_are_an_error():
    model = network()
    keeper = EWC(model, budget=BUDGET)
    with pytest.raises(OptionError) as caught:
        keeper.retain(importance_of(model, kind="mas", nats_per_unit=None, unit="1/weight"))
    assert str(caught.value) == (
        "EWC.retain: a budget is in nats, and the unit of this 'mas' importance (1/weight) has no known "
        "factor to nats. Pass probes= (hf.probes_of), on which the rise is measured; or calibrate the importance "
        "with hf.calibrated; or build the keeper with strength=."
    )
    assert keeper.held.num_tasks == 0
    keeper.retain(importance_of(model, kind="mas", nats_per_unit=0.5))
    EWC(model, strength=1.0).retain(importance_of(model, kind="mas", nats_per_unit=None))


def test_a_known_factor_is_applied():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper = EWC(model, budget=BUDGET).attach(optimizer)
    keeper.retain(importance_of(model, kind="mas", nats_per_unit=0.25))
    train(model, optimizer, batches(5))
    by_hand = 0.5 * sum(
        (0.25 * value * (model.get_parameter(name) - keeper.held.anchors[name]).square()).sum().item()
        for name, value in importance_of(model).items()
    )
    assert keeper.predicted_rise() == pytest.approx(by_hand, rel=1e-5)
    assert by_hand == pytest.approx(BUDGET, rel=3e-3)
    assert keeper.report().rise_unit == "by the quadratic model"


def test_a_strength_keepers_folder_under_a_budget(tmp_path):
    model = network()
    EWC(model, strength=3.0).retain(importance_of(model, nats_per_unit=None)).save(tmp_path / "unknown")
    with pytest.raises(
        OptionError, match=r"EWC.load\(.*\): a budget is in nats, .* is not \(nats_per_unit is None\). Save it"
    ):
        EWC.load(tmp_path / "unknown", model, budget=BUDGET)
    assert EWC.load(tmp_path / "unknown", model, strength=2.0).strength == 2.0
    EWC(model, strength=3.0).retain(importance_of(model)).save(tmp_path / "nats")
    keeper = EWC.load(tmp_path / "nats", model, budget=BUDGET)
    assert (keeper.strength, keeper.budget) == (None, BUDGET)
    keeper.save(tmp_path / "budget")
    keeper = EWC.load(tmp_path / "budget", model, strength=4.0)
    assert (keeper.strength, keeper.budget) == (4.0, None)


def test_a_strength_cannot_be_set_beside_a_budget():
    keeper = EWC(network(), budget=BUDGET)
    with pytest.raises(OptionError, match="EWC: it keeps a budget, not a strength. Set budget, or build another"):
        keeper.strength = 3.0
    keeper.budget = 2 * BUDGET
