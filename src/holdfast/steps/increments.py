"""What the step just taken added to each weight, recomputed from the optimizer's state.

Keeping a copy of the weights before every step would cost their memory again. SGD, Adam and AdamW leave
behind all that is needed to know the increment; `can_recompute` says when, and whoever needs increments
elsewhere keeps the copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.steps.metric import RootMetric, adam_metrics, num_steps, update_rule
from holdfast.tensors import local, wide_dtype


def can_recompute(optimizer: Optimizer, group: Mapping[str, Any], parameter: nn.Parameter) -> bool:
    """Whether `step_increments` will know what the coming step adds to `parameter`. Asked before the step.

    Not for half precision (rounding hides the increment), sparse gradients, unknown optimizers, and where the
    step overwrites the gradient it needs: Nesterov's foreach form, fused SGD under a gradient scaler.
    """
    if parameter.dtype not in (torch.float32, torch.float64) or torch.is_complex(parameter):
        return False
    match update_rule(optimizer):
        case "adam":
            # a decay of the whole weight in one step leaves nothing to recompute from
            return not (group.get("decoupled_weight_decay") and float(group["lr"]) * group["weight_decay"] >= 1)
        case "sgd":
            if parameter.grad is not None and parameter.grad.is_sparse:
                return False
            if float(group["lr"]) * group["weight_decay"] >= 1:
                return False
            if group["momentum"] and not group["nesterov"]:
                return True
            if group["nesterov"]:
                return parameter.device.type == "cpu" and not group["foreach"] and not group["fused"]
            return not group["fused"]
        case "other":
            return False
        case unknown:
            assert_never(unknown)


@dataclass(frozen=True)
class Increment:
    """What a step added to one weight, described by what the optimizer left behind and not yet computed.

        theta' - theta = rate / (1 - decay) * (direction - decay / rate * theta')
        direction      = (first + share * buffer) [/ M]

    Attributes:
        first: the gradient, the momentum buffer or the first moment, of the weight's shape or a piece of it.
        rate: the learning rate with its sign and bias correction; zero where nothing moved.
        buffer: Nesterov's momentum buffer, None without.
        share: the momentum it is taken with.
        metric: Adam's denominator over lr, None under SGD.
        decay: the share of the weight that weight decay took, 0 <= decay < 1.
    """

    first: Tensor
    rate: float
    buffer: Tensor | None = None
    share: float = 0.0
    metric: RootMetric | None = None
    decay: float = 0.0

    def value(self, weight: Tensor) -> Tensor:
        """The increment, a new tensor in the dtype of `first`; `weight` is theta'."""
        if self.rate == 0:
            return torch.zeros_like(self.first)
        direction = self.first if self.buffer is None else self.first + self.share * self.buffer
        if self.metric is not None:
            direction = direction / self.metric.value()
        if self.decay:
            direction = direction - self.decay / self.rate * weight
        return self.rate / (1 - self.decay) * direction

    def pieces(self, size: int) -> Iterator[Increment]:
        """Of successive pieces of the flat weight."""
        buffers = repeat(None) if self.buffer is None else self.buffer.reshape(-1).split(size)
        metrics = repeat(None) if self.metric is None else self.metric.pieces(size)
        for first, buffer, metric in zip(self.first.reshape(-1).split(size), buffers, metrics):
            yield Increment(first, self.rate, buffer, self.share, metric, self.decay)


@dataclass(frozen=True)
class CopiedIncrement:
    """The increment since a copy of one weight was kept, for steps that `Increment` cannot describe."""

    before: Tensor

    def value(self, weight: Tensor) -> Tensor:
        """theta' - theta in float32 or wider, where the difference of half precision is exact."""
        wide = wide_dtype(weight)
        return weight.to(wide) - self.before.to(wide)

    def pieces(self, size: int) -> Iterator[CopiedIncrement]:
        """Of successive pieces of the flat weight."""
        return map(CopiedIncrement, self.before.reshape(-1).split(size))


def step_increments(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameters: Sequence[nn.Parameter],
    *,
    gradients: Mapping[int, Tensor] | None = None,
) -> list[Increment]:
    """What the step just taken added to parameters of one group for which `can_recompute` held.

    Args:
        optimizer: that took it.
        group: of the parameters.
        parameters: that moved.
        gradients: id -> gradient that was used, of parameters that have lost it since.
    """
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    states = [optimizer.state.get(p, {}) for p in parameters]  # a plain [] would add to the state
    if update_rule(optimizer) == "adam":
        decay = lr * decay if group.get("decoupled_weight_decay") else 0.0
        return _adam_increments(group, states, lr=lr, decay=decay)
    if group["momentum"] and not group["nesterov"]:
        return [Increment(local(state["momentum_buffer"]), -lr) for state in states]
    found = []
    for parameter, state in zip(parameters, states, strict=True):
        gradient = parameter.grad if parameter.grad is not None else (gradients or {}).get(id(parameter))
        assert gradient is not None
        sign = 1 if group["maximize"] else -1
        buffer, share = local(state["momentum_buffer"]) if group["nesterov"] else None, -sign * group["momentum"]
        found.append(Increment(local(gradient), sign * lr, buffer=buffer, share=share, decay=lr * decay))
    return found


def _adam_increments(
    group: Mapping[str, Any], states: Sequence[Mapping[str, Any]], *, lr: float, decay: float
) -> list[Increment]:
    if lr == 0:
        return [Increment(local(state["exp_avg"]), 0.0) for state in states]
    beta1, metrics = float(group["betas"][0]), adam_metrics(group, states)
    return [
        Increment(local(state["exp_avg"]), -1 / (1 - beta1**step), metric=metric, decay=decay)
        for state, step, metric in zip(states, num_steps(states), metrics, strict=True)
    ]
