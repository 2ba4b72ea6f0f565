from __future__ import annotations

import math

import pytest
import torch
from tests.optimizers import EXACT
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from holdfast.steps import metric_values, step_metrics, update_rule


def stepped(build, gradients, start=0.0):
    """A weight of one element after steps with these gradients, and its optimizer."""
    weight = nn.Parameter(torch.full((1,), start))
    optimizer = build([weight])
    for gradient in gradients:
        weight.grad = torch.full((1,), gradient)
        optimizer.step()
    return weight, optimizer


def metric_of(weight, optimizer):
    metric = metric_values(step_metrics(optimizer, optimizer.param_groups[0], [weight]), [weight])
    return metric if isinstance(metric, float) else metric[0].item()


@pytest.mark.parametrize("name", EXACT)
def test_a_steady_gradient_moves_a_weight_by_gradient_over_metric(name):
    def without_decay(parameters):
        optimizer = EXACT[name](parameters)
        optimizer.param_groups[0]["weight_decay"] = 0.0
        return optimizer

    weight, optimizer = stepped(without_decay, [0.3] * 400)
    before = weight.item()
    weight.grad = torch.full((1,), 0.3)
    optimizer.step()
    moved = weight.item() - before
    sign = 1 if optimizer.param_groups[0]["maximize"] else -1
    assert moved == pytest.approx(sign * 0.3 / metric_of(weight, optimizer), rel=1e-3)


@pytest.mark.parametrize("build", [AdamW, lambda p, **o: Adam(p, amsgrad=True, **o)])
def test_adams_metric_by_hand(build):
    weight, optimizer = stepped(lambda p: build(p, lr=0.1, betas=(0.9, 0.5), eps=1e-2, weight_decay=0), [4.0, 1.0])
    second = 0.5 * (0.5 * 16) + 0.5 * 1
    largest = max(second, 0.5 * 16) if optimizer.param_groups[0]["amsgrad"] else second
    assert metric_of(weight, optimizer) == pytest.approx((math.sqrt(largest / (1 - 0.25)) + 1e-2) / 0.1)


def test_metrics_of_sgd_by_hand():
    group = {"lr": 0.1}
    assert metric_of(*stepped(lambda p: SGD(p, **group), [1.0])) == pytest.approx(10)
    assert metric_of(*stepped(lambda p: SGD(p, **group, momentum=0.9), [1.0])) == pytest.approx(1)
    assert metric_of(*stepped(lambda p: SGD(p, **group, momentum=0.9, dampening=0.5), [1.0])) == pytest.approx(2)
    assert metric_of(*stepped(lambda p: SGD(p, lr=0.0), [1.0])) == math.inf
    assert metric_of(*stepped(lambda p: Adam(p, lr=0.0), [1.0])) == math.inf


def test_momentum_at_its_limits_has_a_finite_positive_metric_or_none():
    assert metric_of(*stepped(lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=1.0), [1.0])) == math.inf
    assert 0 < metric_of(*stepped(lambda p: SGD(p, lr=0.1, momentum=1.0), [1.0])) < math.inf


def test_groups_have_their_own_metric():
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    optimizer = SGD([{"params": [first]}, {"params": [second], "lr": 0.5, "momentum": 0.5}], lr=0.1)
    metrics = [step_metrics(optimizer, group, group["params"]) for group in optimizer.param_groups]
    assert [one for (one,) in metrics] == pytest.approx([10.0, 1.0])


def test_parameters_that_began_later_have_their_own_bias_correction():
    early, late = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = Adam([early, late], lr=0.1, betas=(0.9, 0.9))
    early.grad = torch.ones(1)
    optimizer.step()
    late.grad = torch.ones(1)
    optimizer.step()
    metrics = step_metrics(optimizer, optimizer.param_groups[0], [early, late])
    assert torch.cat(metric_values(metrics, [early, late])).tolist() == pytest.approx([10.0, 10.0], rel=1e-5)  # pyright: ignore
    assert [metric.value().item() for metric in metrics] == pytest.approx([10.0, 10.0], rel=1e-5)  # pyright: ignore


def test_other_optimizers_take_their_lr_or_the_users_metric():
    weight, optimizer = stepped(lambda p: RMSprop(p, lr=0.1), [1.0])
    assert metric_of(weight, optimizer) == pytest.approx(10)
    seen = []

    def metric(group, parameter, state):
        seen.append((group["lr"], parameter is weight, sorted(state)))
        return 3.0

    assert step_metrics(optimizer, optimizer.param_groups[0], [weight], user_metric=metric) == [3.0]
    assert seen == [(0.1, True, ["square_avg", "step"])]


def test_a_users_metrics_may_differ_in_kind_from_one_parameter_to_the_next():
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    optimizer = RMSprop(weights, lr=0.1)
    given = {id(weights[0]): 3, id(weights[1]): torch.tensor(2.0), id(weights[2]): torch.tensor([1.0, 4.0])}
    metrics = step_metrics(optimizer, optimizer.param_groups[0], weights, user_metric=lambda g, p, s: given[id(p)])
    values = metric_values(metrics, weights)
    assert [value.tolist() for value in values] == [[3, 3, 3], [2, 2], [1, 4]]  # pyright: ignore


def test_asking_adds_nothing_to_the_optimizers_state():
    weight, optimizer = stepped(lambda p: SGD(p, lr=0.1), [1.0])
    step_metrics(optimizer, optimizer.param_groups[0], [weight], user_metric=lambda *_: 1.0)
    assert not optimizer.state


def test_the_rule_of_subclasses():
    class Renamed(AdamW):
        pass

    class WithOwnStep(SGD):
        def step(self, closure=None):
            return super().step(closure)

    weight = nn.Parameter(torch.zeros(1))
    assert [update_rule(kind([weight])) for kind in (SGD, Adam, AdamW, Renamed)] == ["sgd", "adam", "adam", "adam"]
    assert update_rule(WithOwnStep([weight])) == "other"
    assert update_rule(RMSprop([weight])) == "other"
