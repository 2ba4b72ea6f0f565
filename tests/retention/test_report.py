from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from tests.retention.loops import MECHANISMS, batches, importance_of, network, train, train_held, weights_of
from torch import nn
from torch.optim import SGD, Adam, AdamW

from holdfast import EWC, WVA, Keeper, Mechanism, fisher, probes_of
from holdfast.errors import ParameterMismatchError, StateError
from holdfast.retention.report import BY_MODEL


def held(kind, *, steps=5, build=partial(SGD, lr=0.05), **options):
    model = network()
    optimizer = build(model.parameters())
    keeper = kind(model, **options).attach(optimizer).retain(importance_of(model))
    train_held(keeper, optimizer, batches(steps))
    return keeper


def test_before_a_task_is_retained_it_is_off():
    report = EWC(network(), strength=1.0).report()
    assert str(report) == "EWC: off, no task is retained yet"
    assert (report.num_tasks, report.num_steps, report.protected, report.pull_ratio) == (0, 0, 0.0, None)


def test_what_it_says_under_ewc():
    keeper = held(EWC, strength=4.0)
    report = keeper.report()
    weights = sum(p.numel() for p in keeper.model.parameters())
    protected = sum(int((value > 0).sum()) for value in keeper.held.importance.values())
    assert report.protected == pytest.approx(protected / weights)
    assert (report.mechanism, report.num_tasks, report.num_steps, report.strength) == ("EWC", 1, 5, 4.0)
    assert report.rise_unit == "by the quadratic model"
    assert report.predicted_rise == keeper.predicted_rise() > 0
    assert report.pinned == 0.0
    assert report.pull_ratio is not None
    assert str(report) == (
        f"EWC: 1 task held, 5 steps, strength 4, {report.protected:.1%} of the weights protected, "
        f"0.0% of them pinned, pull / task step {report.pull_ratio:.3g}, "
        f"predicted rise {report.predicted_rise:.4g} by the quadratic model"
    )
    keeper.retain(importance_of(keeper.model))
    assert "EWC: 2 tasks held, 0 steps" in str(keeper.report())


def test_what_it_says_under_wva():
    report = held(WVA, strength=1e6).report()
    assert report.predicted_rise is None
    assert report.pinned == 1.0
    assert "predicted rise" not in str(report)


def test_what_wva_slows_it_does_not_call_pinned():
    """Weights that take a third of each step still go all the way, and farther than others that are held by nothing."""
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = SGD(layer.parameters(), lr=0.1)
    keeper = WVA(layer, strength=1.0, log_every=1).attach(optimizer).retain({"weight": torch.tensor([[2.0, 2.0]])})
    for _ in range(200):
        optimizer.zero_grad()
        (layer(torch.eye(2)) - 1).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight, torch.ones(1, 2), rtol=0, atol=1e-3)
    assert "100.0% of them slowed to less than half, pull / task step 0.667" in str(keeper.report())
    assert "pinned" not in str(keeper.report())


@pytest.mark.parametrize("budget", [1e-4, 1e3])
def test_under_a_budget_it_says_the_budget(budget):
    """And the strength that keeps it, where there is anything to be taken back."""
    keeper = held(EWC, budget=budget, steps=30)
    report, told = keeper.report(), str(keeper.report())
    assert (report.budget, report.strength is not None) == (budget, True)
    if report.strength:
        assert f"30 steps, budget {budget:g} nats (strength {report.strength:.4g}), " in told
    else:
        assert f"30 steps, budget {budget:g} nats, " in told
    assert bool(report.strength) == (budget == 1e-4)
    assert held(EWC, strength=0.0).report().budget is None
    assert "strength 0, " in str(held(EWC, strength=0.0).report())


def test_the_ratio_by_hand():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    keeper = WVA(model, strength=2.0).attach(optimizer).retain(importance_of(model))
    train(model, optimizer, batches(1))
    step, pull = 0.0, 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        force = 2.0 * keeper.held.importance[name]
        step += (0.05 * parameter.grad).square().sum().item()
        pull += (0.05 * parameter.grad * force / (1 + force)).square().sum().item()
    assert keeper.report().pull_ratio == pytest.approx((pull / step) ** 0.5, rel=1e-4)


def test_pinned_counts_those_taken_back_by_more_than_half():
    layer = nn.Linear(4, 1, bias=False)
    optimizer = SGD(layer.parameters(), lr=0.1)
    keeper = WVA(layer, strength=1.0).attach(optimizer)
    keeper.retain({"weight": torch.tensor([[0.0, 0.9, 1.1, 5.0]])})
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert keeper.report().pinned == pytest.approx(2 / 3)
    assert keeper.report().protected == 0.75


@pytest.mark.filterwarnings("ignore:WVA. on=.gradients. is cancelled")
@pytest.mark.parametrize("build", [partial(SGD, lr=0.1), partial(AdamW, lr=0.1)])
@pytest.mark.parametrize("mechanism", [name for name in MECHANISMS if name not in ("ewc-penalty", "ewc-budget")])
def test_a_line_is_logged_as_training_runs(mechanism, build, caplog):
    caplog.set_level(logging.INFO, logger="holdfast")
    keeper = held(partial(MECHANISMS[mechanism], strength=5.0, log_every=3), build=build, steps=8)
    lines = [record.getMessage() for record in caplog.records if record.name == "holdfast"]
    assert len(lines) == 3
    first = 2 if mechanism == "ewc-gradient" else 1  # its pull is zero in the first step, from the anchor itself
    assert [int(re.findall(r", (\d+) steps?,", line)[0]) for line in lines] == [first, first + 3, first + 6]
    assert all(float(line.split("pull / task step ")[1].split(",")[0]) > 0 for line in lines)
    assert keeper.report().num_steps == 8


@pytest.mark.parametrize("pull", ["gradient", "penalty"])
def test_what_a_pull_in_the_gradients_is_not_measured_for_is_not_told(pull):
    report = held(EWC, strength=4.0, pull=pull, log_every=1).report()
    assert report.pinned is None
    assert (report.pull_ratio is None) == (pull == "penalty")
    assert "pinned" not in str(report)
    before = held(EWC, strength=4.0, pull=pull, steps=1).report()
    assert before.pull_ratio is None
    assert "EWC: 1 task held, 1 step, strength 4" in str(before)
    assert "pull / task step" not in str(before)


@dataclass
class Whole(Mechanism):
    """Takes every step back whole, also of weights without importance."""

    def after(self, step):
        for block in step.blocks(increments=True):
            moved = block.moved()
            torch._foreach_sub_(block.weights, moved)
            step.measure(moved, moved, [torch.ones_like(weight) for weight in block.weights], block.importance)

    needs_increments = True


def test_no_more_than_all_protected_weights_are_pinned():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    keeper = Keeper(model, Whole()).attach(optimizer).retain(importance_of(model))
    train(model, optimizer, batches(1))
    assert keeper.report().protected < 1
    assert keeper.report().pinned == 1


def test_log_every_zero_is_silent(caplog):
    caplog.set_level(logging.INFO, logger="holdfast")
    keeper = held(EWC, strength=5.0, log_every=0)
    assert not caplog.records
    assert keeper.report().pull_ratio is None
    assert keeper.report().num_steps == 5


def test_measuring_changes_no_weight():
    for mechanism in ("ewc", "wva", "ewc-budget"):
        results = [weights_of(held(partial(MECHANISMS[mechanism], strength=5.0, log_every=n)).model) for n in (0, 1, 3)]
        assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in other)


# --- predicted rise


def test_predicted_rise_by_hand():
    keeper = held(EWC, strength=1.0)
    by_hand = 0.5 * sum(
        (value * (keeper.model.get_parameter(name).detach() - keeper.held.anchors[name]).square()).sum().item()
        for name, value in keeper.held.importance.items()
    )
    assert keeper.predicted_rise() == pytest.approx(by_hand, rel=1e-5)
    assert EWC(network(), strength=1.0).predicted_rise() == 0.0


def test_the_units_of_a_rise():
    for nats, unit, factor in ((None, "importance units", 1.0), (1.0, BY_MODEL, 1.0), (2.5, BY_MODEL, 2.5)):
        model = network()
        keeper = EWC(model, strength=1.0).retain(importance_of(model, nats_per_unit=nats))
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        value = next(iter(importance_of(model).values()))
        assert keeper.report().predicted_rise == pytest.approx(factor * 0.5 * value.sum().item(), rel=1e-5)
        assert keeper.report().rise_unit == unit


def test_per_task_rise_is_the_sum_of_all_tasks():
    model = network()
    keeper = EWC(model, strength=1.0, accumulate="per_task")
    tasks = []
    for seed in range(3):
        importance = importance_of(model, seed=seed)
        keeper.retain(importance)
        tasks.append((importance, weights_of(model)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
    separate = sum(
        0.5 * (value * (model.get_parameter(name).detach() - anchor[name]).square()).sum().item()
        for importance, anchor in tasks
        for name, value in importance.items()
    )
    assert keeper.predicted_rise() == pytest.approx(separate, rel=1e-4)


def test_wvas_rise_against_a_reference():
    model = network()
    keeper = WVA(model, strength=1.0).retain(importance_of(model, nats_per_unit=2.0))
    reference = {name: value.clone() for name, value in model.state_dict().items()}
    assert keeper.predicted_rise(reference) == 0.0
    with torch.no_grad():
        model[0].bias.add_(1.0)
    rise = keeper.predicted_rise(reference)
    assert isinstance(rise, float)
    assert rise == pytest.approx(keeper.held.importance["0.bias"].sum().item())


def test_references_that_do_not_fit():
    model = network()
    keeper = WVA(model, strength=1.0).retain(importance_of(model))
    wrapped = nn.DataParallel(model).state_dict()
    with pytest.raises(
        ParameterMismatchError, match="WVA.predicted_rise: the weights of reference= lack '0.weight', '0.bias', .* bare"
    ):
        keeper.predicted_rise(wrapped)
    wrong = {**model.state_dict(), "0.bias": torch.zeros(2)}
    with pytest.raises(
        ParameterMismatchError, match=r"1 shape not as in the model: '0.bias' is \(2,\), in Sequential \(5,\)"
    ):
        keeper.predicted_rise(wrong)
    keeper.predicted_rise(model.state_dict())


# --- the penalty, and options without effect


def test_a_reference_may_ask_for_a_gradient_and_must_be_tensors():
    keeper = held(EWC, strength=4.0)
    there = {name: value.clone().requires_grad_() * 1.0 for name, value in keeper.held.anchors.items()}
    assert keeper.predicted_rise(there) == keeper.predicted_rise() > 0
    with pytest.raises(
        ParameterMismatchError, match=r"EWC.predicted_rise: expected dense tensors .*'0.weight' is array"
    ):
        keeper.predicted_rise({name: value.detach().numpy() for name, value in there.items()})


def test_a_model_that_is_frozen_by_now():
    keeper = held(EWC, strength=4.0)
    rise = keeper.predicted_rise()
    keeper.model.requires_grad_(False)
    report = keeper.report()
    assert (report.protected, report.predicted_rise) == (0.0, rise)


@pytest.mark.parametrize("form", ["float32", "int8"])
@pytest.mark.parametrize("pull", ["implicit", "gradient", "penalty"])
def test_a_parameter_without_entries(form, pull):
    """The others are held, reported and told of as if it were not there."""

    class Empty(nn.Module):
        def __init__(self, rows=None):
            super().__init__()
            self.empty = nn.Parameter(torch.zeros(0, 4)) if rows == 0 else None
            self.weight = nn.Parameter(torch.linspace(-1, 1, 300))

        def forward(self):
            return self.weight.sum() + (0.0 if self.empty is None else self.empty.sum())

    found = []
    for rows in (0, None):
        model = Empty(rows)
        optimizer = Adam(model.parameters(), lr=0.1)
        keeper = EWC(model, strength=2.0, pull=pull, importance_dtype=form).attach(optimizer)
        keeper.retain({name: torch.full_like(p, 3.0) for name, p in model.named_parameters()})
        for _ in range(3):
            optimizer.zero_grad()
            (model() + (keeper.penalty() if pull == "penalty" else 0.0)).backward()
            optimizer.step()
        found.append((str(keeper.report()), model.weight.tolist()))
    assert found[0] == found[1]
    assert "predicted rise 0 " not in found[0][0]


def test_the_penalty_by_hand_with_its_gradient():
    keeper = held(EWC, pull="penalty", strength=3.0)
    keeper.model.zero_grad()
    penalty = keeper.penalty()
    assert penalty.item() == pytest.approx(3.0 * keeper.predicted_rise(), rel=1e-5)
    penalty.backward()
    for name, parameter in keeper.model.named_parameters():
        force = 3.0 * keeper.held.importance[name] * (parameter.detach() - keeper.held.anchors[name])
        torch.testing.assert_close(parameter.grad, force)
    assert EWC(network(), pull="penalty").penalty().item() == 0.0


def test_the_penalty_of_separate_anchors_has_their_constant():
    keeper = held(EWC, pull="penalty", accumulate="per_task", strength=3.0)
    keeper.retain(importance_of(keeper.model, seed=1))
    assert keeper.held.constant > 0
    assert keeper.penalty().item() == pytest.approx(3.0 * keeper.predicted_rise(), rel=1e-5)


@pytest.mark.parametrize("options", [{"pull": "implicit"}, {"pull": "gradient"}, {"budget": 1.0}])
def test_a_penalty_beside_another_pull_is_an_error(options):
    keeper = EWC(network(), **options)
    with pytest.raises(
        StateError, match=rf"EWC.penalty: this keeper's pull is '{keeper.pull}', so that adding a penalty"
    ):
        keeper.penalty()
    EWC(network(), pull="penalty").penalty()


def test_a_penalty_that_is_never_added_warns():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    keeper = EWC(model, pull="penalty").attach(optimizer)
    train(model, optimizer, batches(1))  # nothing to hold yet
    keeper.retain(importance_of(model))
    message = r"EWC: pull=\"penalty\", but penalty\(\) was not called in this step: nothing holds the old tasks"
    with pytest.warns(UserWarning, match=message):
        train(model, optimizer, batches(1))
    train(model, optimizer, batches(2), penalty=keeper.penalty)
    with pytest.warns(UserWarning, match=message):
        train(model, optimizer, batches(1))


def test_attenuated_gradients_under_adam_warn_and_have_no_effect():
    model, free = network(), network()
    optimizer, alone = Adam(model.parameters(), lr=0.01, eps=1e-30), Adam(free.parameters(), lr=0.01, eps=1e-30)
    keeper = WVA(model, strength=50.0, on="gradients")
    with pytest.warns(
        UserWarning, match='WVA: on="gradients" is cancelled by the normalisation of Adam, .* Use on="incr'
    ):
        keeper.attach(optimizer)
    keeper.retain(importance_of(model))
    train(model, optimizer, batches(5))
    train(free, alone, batches(5))
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, free.get_parameter(name).detach(), rtol=1e-3, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WVA(model, strength=50.0, on="increments").attach(optimizer)


def steps(optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.step()


def test_what_deserves_a_look():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    data = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    keeper = EWC(model, strength=1.0, new_parameters="free", statistics="free")
    assert keeper.report().remarks == ()
    importance = {name: torch.ones_like(p) for name, p in model.named_parameters() if name != "2.bias"}
    keeper.retain(importance, probes=probes_of(model, data))
    assert keeper.report().remarks == (
        "1 parameter not held, such as '2.bias'",
        "2 running statistics not held, such as '1.running_mean'",
    )
    whole = EWC(model, budget=0.01, probe_every=1, statistics="hold")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    whole.attach(optimizer).retain(fisher(model, data), probes=probes_of(model, data))
    steps(optimizer, 300)
    assert whole.report().remarks == ("the budget does not bind",)
    with torch.no_grad():
        model[2].bias += torch.tensor([3.0, 0.0, -3.0])
    with pytest.warns(UserWarning, match="does not keep the budget"):
        steps(optimizer, 800)
    assert whole.report().remarks == ("more strength does not keep the budget",)
    assert str(whole.report()).endswith("; more strength does not keep the budget")
