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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from holdfast.tensors import wide_dtype

UpdateRule = Literal["sgd", "adam", "other"]
UserMetric = Callable[[Mapping[str, Any], nn.Parameter, Mapping[str, Any]], "float | Tensor"]
"""Maps (parameter group, parameter, optimizer state of the parameter) to its metric: a number or a tensor > 0."""


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


def step_metric(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameters: Sequence[nn.Parameter],
    *,
    user_metric: UserMetric | None = None,
) -> float | list[Tensor]:
    """The metric of the step just taken, for parameters of one group.

    Returns:
        One number for all (infinite where the learning rate is zero), or one new tensor a parameter.
    """
    if user_metric is not None:
        return [
            torch.as_tensor(user_metric(group, p, optimizer.state.get(p, {})), dtype=wide_dtype(p), device=p.device)
            .expand_as(p)
            .clone()
            for p in parameters
        ]
    lr = float(group["lr"]) if "lr" in group else 1.0
    if lr == 0:
        return math.inf
    match update_rule(optimizer):
        case "sgd":
            return 1 / lr if not group["momentum"] else _momentum_metric(lr, group["momentum"], group["dampening"])
        case "adam":
            return adam_metric(group, [optimizer.state[p] for p in parameters])
        case _:
            return 1 / lr


def _momentum_metric(lr: float, momentum: float, dampening: float) -> float:
    if dampening == 1:  # the buffer hears of no gradient
        return math.inf
    return max(1 - momentum, 1e-6) / (lr * (1 - dampening))  # momentum of 1 never settles


def adam_metric(group: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """(sqrt(v_hat) + eps) / lr, from Adam's state after the step; float32 or wider, shapes of the weights."""
    lr, beta2 = float(group["lr"]), float(group["betas"][1])
    second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    corrections = [lr * math.sqrt(1 - beta2**step) for step in num_steps(states)]
    roots = torch._foreach_sqrt([_wide(state[second]) for state in states])
    torch._foreach_div_(roots, corrections)
    torch._foreach_add_(roots, group["eps"] / lr)
    return list(roots)


def num_steps(states: Sequence[Mapping[str, Any]]) -> list[float]:
    """How many steps each parameter has taken, waiting for an accelerator once at most."""
    steps = [state["step"] for state in states]
    if isinstance(steps[0], Tensor) and steps[0].device.type != "cpu":
        return torch.stack(steps).tolist()
    return [float(step) for step in steps]


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
