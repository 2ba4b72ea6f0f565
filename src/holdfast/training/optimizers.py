"""The optimizers that experiments name, and the course of their learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

OptimizerName = Literal["sgd", "momentum", "nesterov", "adam", "adamw"]
Schedule = Literal["constant", "cosine"]


def build_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float = 0.0
) -> Optimizer:
    """A torch optimizer by name; momentum and Nesterov with 0.9, Adam with torch's own constants."""
    match name:
        case "adam":
            return Adam(parameters, lr=lr, weight_decay=weight_decay)
        case "adamw":
            return AdamW(parameters, lr=lr, weight_decay=weight_decay)
        case _:
            momentum = 0.0 if name == "sgd" else 0.9
            return SGD(parameters, lr=lr, momentum=momentum, nesterov=name == "nesterov", weight_decay=weight_decay)


def learning_rate(schedule: Schedule, lr: float, *, step: int, num_steps: int) -> float:
    """The learning rate of step 0..num_steps-1 of a task: constant, or a half cosine from lr down to nearly zero."""
    return lr if schedule == "constant" else 0.5 * lr * (1 + math.cos(math.pi * step / num_steps))
