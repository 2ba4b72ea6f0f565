"""The metric of an optimizer's step: how much gradient it takes to move each weight by one.

A steady gradient g moves a weight by -g/M each step. M is the *metric*; an elastic force taken in it
balances the task's gradient at the same point whatever the optimizer:

    SGD                      M = 1/lr
    SGD with momentum        M = (1 - momentum) / (lr * (1 - dampening)),  Nesterov too
    Adam, AdamW              M = (sqrt(v_hat) + eps) / lr,  torch's own denominator (its maximum under amsgrad)
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

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
        One number for all (infinite where the learning rate is zero), or one tensor a parameter.
    """
    if user_metric is not None:
        return [
            torch.as_tensor(user_metric(group, p, optimizer.state[p]), dtype=p.dtype, device=p.device).expand_as(p)
            for p in parameters
        ]
    lr = float(group["lr"]) if "lr" in group else 1.0
    if lr == 0:
        return math.inf
    match update_rule(optimizer):
        case "sgd":
            momentum = group["momentum"]
            return (1 - momentum) / (lr * (1 - group["dampening"])) if momentum else 1 / lr
        case "adam":
            return adam_metric(group, [optimizer.state[p] for p in parameters])
        case _:
            warnings.warn(
                f"{type(optimizer).__name__} is no optimizer whose metric is known: its plain learning rate is taken, "
                "so that a strength means something else than under SGD and Adam. Pass metric= for an exact one.",
                stacklevel=2,
            )
            return 1 / lr


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
