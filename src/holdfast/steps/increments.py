"""What the step just taken added to each weight, recomputed from the optimizer's state.

Keeping a copy of the weights before every step would cost their memory again. SGD, Adam and AdamW leave
behind all that is needed to know the increment; `can_recompute` says when, and whoever needs increments
elsewhere keeps the copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.steps.metric import adam_metric, num_steps, update_rule


def can_recompute(optimizer: Optimizer, group: Mapping[str, Any], parameter: nn.Parameter) -> bool:
    """Whether `increments` will know what the coming step adds to `parameter`. Asked before the step.

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
        case _:
            return False


def increments(optimizer: Optimizer, group: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The increments theta' - theta of the step just taken, for parameters of one group for which `can_recompute` held.

    Returns:
        One new tensor a parameter, in its dtype.
    """
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    states = [optimizer.state.get(p, {}) for p in parameters]  # a plain [] would add to the state
    weights = [p.detach() for p in parameters]
    if update_rule(optimizer) == "adam":
        moved = _adam_increments(group, states)
        decay = decay if group.get("decoupled_weight_decay") else 0.0
        return _with_decay(moved, weights, lr * decay)
    buffers = [state["momentum_buffer"] for state in states] if group["momentum"] else []
    if buffers and not group["nesterov"]:
        return list(torch._foreach_mul(buffers, -lr))
    gradients = [p.grad for p in parameters if p.grad is not None]
    moved = list(torch._foreach_mul(gradients, lr if group["maximize"] else -lr))
    if group["nesterov"]:
        torch._foreach_add_(moved, buffers, alpha=-lr * group["momentum"])
    return _with_decay(moved, weights, lr * decay)


def _adam_increments(group: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    if float(group["lr"]) == 0:
        return [torch.zeros_like(state["exp_avg"]) for state in states]
    beta1 = float(group["betas"][0])
    moved = torch._foreach_div([state["exp_avg"] for state in states], adam_metric(group, states))
    torch._foreach_div_(moved, [-(1 - beta1**step) for step in num_steps(states)])
    return list(moved)


def _with_decay(moved: list[Tensor], weights: Sequence[Tensor], rate: float) -> list[Tensor]:
    """The whole increment where theta' = (1 - rate) theta + moved: (moved - rate theta') / (1 - rate)."""
    if rate:
        torch._foreach_add_(moved, list(weights), alpha=-rate)
        torch._foreach_div_(moved, 1 - rate)
    return moved
