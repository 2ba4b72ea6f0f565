"""The metric of an optimizer's step: how much gradient it takes to move each weight by one.

A steady gradient g moves a weight by -g/M each step. M is the *metric*; an elastic force taken in it
balances the task's gradient at the same point whatever the optimizer:

    SGD                      M = 1/lr
    SGD with momentum        M = (1 - momentum) / (lr * (1 - dampening)),  Nesterov too
    Adam, AdamW              M = (sqrt(v_hat) + eps) / lr,  torch's own denominator (its maximum under amsgrad)
    any other                M = 1/lr, for want of better
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from holdfast.tensors import local, wide_dtype

UpdateRule = Literal["sgd", "adam", "other"]
UserMetric = Callable[[Mapping[str, Any], nn.Parameter, Mapping[str, Any]], "float | Tensor"]
"""Maps (parameter group, parameter, optimizer state of the parameter) to its metric: a number or a tensor > 0."""


@dataclass(frozen=True)
class RootMetric:
    """Adam's metric M = slope * sqrt(second) + offset of one parameter, described and not yet computed.

    Attributes:
        second: the second moment v (its maximum under amsgrad), of the weight's shape or a piece of it.
        slope: 1 / (lr * sqrt(1 - beta2^step)).
        offset: eps / lr.
    """

    second: Tensor
    slope: float
    offset: float

    def value(self) -> Tensor:
        """M, a new tensor, float32 or wider."""
        return _wide(self.second).sqrt().mul_(self.slope).add_(self.offset)

    def pieces(self, size: int) -> Iterator[RootMetric]:
        """Of successive pieces of the flat weight."""
        return (RootMetric(second, self.slope, self.offset) for second in self.second.reshape(-1).split(size))


Metric = float | Tensor | RootMetric
"""Of one parameter: a number, a tensor of its shape, or Adam's, still to be computed."""


def update_rule(optimizer: Optimizer) -> UpdateRule:
    """Which of the known update rules `optimizer.step` is; "other" for a subclass with a `step` of its own."""
    return _update_rule_of(type(optimizer))


@functools.cache
def _update_rule_of(kind: type[Optimizer]) -> UpdateRule:
    step = inspect.unwrap(kind.step)
    if step is inspect.unwrap(SGD.step):
        return "sgd"
    if step is inspect.unwrap(Adam.step):  # AdamW inherits it
        return "adam"
    return "other"


def unknown_rate(optimizer: Optimizer) -> str | None:
    """How a parameter group says that it has no learning rate of its own, such as "lr=None"; None if each has one."""
    for group in optimizer.param_groups:
        if "lr" not in group:
            return "no lr"
        if not isinstance(group["lr"], int | float | Tensor):
            return f"lr={group['lr']!r}"
    return None


def rests(group: Mapping[str, Any]) -> bool:
    """Whether the learning rate of a parameter group is zero, so that its steps move nothing."""
    return isinstance(group.get("lr"), int | float | Tensor) and float(group["lr"]) == 0


def has_moved(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether the optimizer may have moved a parameter of its own: one without a state it has not, if any has one."""
    return update_rule(optimizer) == "sgd" or not optimizer.state or parameter in optimizer.state


def step_metrics(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameters: Sequence[nn.Parameter],
    *,
    user_metric: UserMetric | None = None,
) -> list[Metric]:
    """The metric of the step just taken, for each of some parameters of one group.

    Returns:
        Numbers are infinite where the learning rate is zero.
    """
    if user_metric is not None:
        return [_given(user_metric(group, p, optimizer.state.get(p, {})), p) for p in parameters]
    if rests(group):
        return [math.inf] * len(parameters)
    lr = float(group["lr"]) if "lr" in group else 1.0
    match update_rule(optimizer):
        case "sgd" if group["momentum"]:
            return [_momentum_metric(lr, group["momentum"], group["dampening"])] * len(parameters)
        case "adam":
            return list(adam_metrics(group, [optimizer.state[p] for p in parameters]))
        case "sgd" | "other":
            return [1 / lr] * len(parameters)
        case unknown:
            assert_never(unknown)


def metric_values(metrics: Sequence[Metric], weights: Sequence[Tensor]) -> float | list[Tensor]:
    """The metrics computed: one number where it is the same for all, else a tensor for each, float32 or wider."""
    first = metrics[0]
    if isinstance(first, float) and all(isinstance(metric, float) and metric == first for metric in metrics):
        return first
    described = [metric for metric in metrics if isinstance(metric, RootMetric)]
    if len(described) == len(metrics):
        roots = torch._foreach_sqrt([_wide(metric.second) for metric in described])  # as `value`, in fewer calls
        torch._foreach_mul_(roots, [metric.slope for metric in described])
        torch._foreach_add_(roots, [metric.offset for metric in described])
        return list(roots)
    return [_spread(metric, weight) for metric, weight in zip(metrics, weights, strict=True)]


def _spread(metric: Metric, weight: Tensor) -> Tensor:
    if isinstance(metric, RootMetric):
        return metric.value()
    return metric if isinstance(metric, Tensor) else torch.full_like(weight, metric, dtype=wide_dtype(weight))


def _given(metric: float | Tensor, parameter: nn.Parameter) -> Metric:
    if isinstance(metric, Tensor):
        return local(metric.detach().to(parameter.device, wide_dtype(parameter)).expand_as(parameter))
    return float(metric)


def _momentum_metric(lr: float, momentum: float, dampening: float) -> float:
    if dampening == 1:  # the buffer hears of no gradient
        return math.inf
    return max(1 - momentum, 1e-6) / (lr * (1 - dampening))  # momentum of 1 never settles


def adam_metrics(group: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> list[RootMetric]:
    """(sqrt(v_hat) + eps) / lr, from Adam's state after the step."""
    lr, beta2 = float(group["lr"]), float(group["betas"][1])
    second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    return [
        RootMetric(local(state[second]), 1 / (lr * math.sqrt(1 - beta2**step)), float(group["eps"]) / lr)
        for state, step in zip(states, num_steps(states), strict=True)
    ]


def num_steps(states: Sequence[Mapping[str, Any]]) -> list[float]:
    """How many steps each parameter has taken, waiting for an accelerator once at most."""
    steps = [state["step"] for state in states]
    if isinstance(steps[0], Tensor) and steps[0].device.type != "cpu":
        return torch.stack(steps).tolist()
    return [float(step) for step in steps]


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
