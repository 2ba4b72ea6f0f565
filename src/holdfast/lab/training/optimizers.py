"""The optimizers that experiments name, and the course of their learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, get_args

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from holdfast.errors import UnknownNameError

OptimizerName = Literal["sgd", "momentum", "nesterov", "adam", "adamw"]
Schedule = Literal["constant", "cosine"]


def build_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float = 0.0
) -> Optimizer:
    """A torch optimizer by name; momentum and Nesterov with 0.9, Adam with torch's own constants.

    Adam goes over weights and moments once (`fused`): where nets are as small as in these experiments, torch's
    default takes more than half as long for its step as forward and backward pass together.

    Raises:
        UnknownNameError: there is no optimizer of this name.
    """
    match name:
        case "adam":
            return Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
        case "adamw":
            return AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
        case "sgd":
            return SGD(parameters, lr=lr, weight_decay=weight_decay)
        case "momentum" | "nesterov":
            return SGD(parameters, lr=lr, momentum=0.9, nesterov=name == "nesterov", weight_decay=weight_decay)
        case _:
            raise UnknownNameError("optimizer", str(name), get_args(OptimizerName))


def learning_rate(schedule: Schedule, lr: float, *, step: int, num_steps: int) -> float:
    """The learning rate of step 0..num_steps-1 of a task: constant, or a half cosine from lr down to nearly zero.

    Raises:
        UnknownNameError: there is no schedule of this name.
    """
    match schedule:
        case "constant":
            return lr
        case "cosine":
            return 0.5 * lr * (1 + math.cos(math.pi * step / num_steps))
        case _:
            raise UnknownNameError("schedule", str(schedule), get_args(Schedule))
