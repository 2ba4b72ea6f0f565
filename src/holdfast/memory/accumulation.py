"""How a new task's importance joins that of the earlier ones.

With f the importance of task t + 1, F what is held of the first t, theta the weights now:

    "sum"        F + f                        anchors theta
    "mean"       (f + t F) / (t + 1)          anchors theta
    Decayed(g)   g F + f                      anchors theta      (online EWC)
    "max"        max(F, f)                    anchors theta
    "per_task"   F' = F + f                   anchors m' = m + f/F' (theta - m), theta where F' = 0

`per_task` is the penalty with a separate anchor for every task, collapsed exactly into one:
sum_k F_k (x - theta_k)^2 = F (x - m)^2 + constant. Memory and cost are those of one task under every rule.

Layers with Kronecker factors join by the same rules, all but "max", in a common basis (`holdfast.memory.kronecker`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from holdfast.errors import OptionError
from holdfast.factored import KroneckerFactors, shapes_of
from holdfast.memory.kronecker import HeldLayer, LayerShares, collapse_layers, join_layers
from holdfast.tensors import TensorMap, sum_of, whole


@dataclass(frozen=True)
class Decayed:
    """Accumulation rule of online EWC: what is held fades by `gamma` (0..1) at every new task."""

    gamma: float

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise OptionError(f"Decayed: gamma is {self.gamma}; expected a number from 0 (forget) to 1 (sum).")


Accumulate = Literal["sum", "mean", "max", "per_task"] | Decayed
Weighting = Literal["task", "examples"]


@dataclass(frozen=True)
class Retained:
    """What is held of the tasks closed so far.

    Attributes:
        importance: name -> float32 tensor >= 0, the accumulated importance.
        anchors: name -> tensor, where the elastic force is zero; empty for mechanisms without anchors.
        constant: the part of 1/2 sum F (x - theta_k)^2 that no weights can lower (`per_task` alone).
        start: 1/2 sum F (theta - anchor)^2 for theta the weights at the last retain; above zero under `per_task` alone.
        num_tasks: tasks closed.
        first_examples: number of examples of the first importance, the unit of `weighting="examples"`.
        nats_per_unit: what turns the importance's unit into nats, averaged over tasks by their total
            importance; None where one task's is not known.
        largest: largest entry of `importance`.
        factors: weight -> what is held of its layer's Kronecker factors, for layers that are in no `importance`.
    """

    importance: Mapping[str, Tensor] = field(default_factory=dict)
    anchors: Mapping[str, Tensor] = field(default_factory=dict)
    constant: float = 0.0
    start: float = 0.0
    num_tasks: int = 0
    first_examples: int = 0
    nats_per_unit: float | None = None
    largest: float = 0.0
    factors: Mapping[str, HeldLayer] = field(default_factory=dict)

    @property
    def covered(self) -> dict[str, Tensor]:
        """Name -> a tensor of the parameter's shape, for every parameter that is held, by diagonal or factors."""
        return {**self.importance, **shapes_of(self.factors)}


def retain(
    held: Retained,
    importance: TensorMap,
    *,
    weights: TensorMap,
    factors: Mapping[str, KroneckerFactors] | None = None,
    rule: Accumulate = "sum",
    weighting: Weighting = "task",
    num_examples: int = 0,
    nats_per_unit: float | None = None,
) -> Retained:
    """What is held after one more task.

    Args:
        held: what is held of the tasks before it.
        importance: the new task's, name -> float32 tensor >= 0; a weight held before and missing here counts as
            zero for this task.
        weights: the weights now, which become the anchors; empty for a mechanism without anchors. A weight held
            before and missing here keeps its anchor.
        factors: the new task's layers, weight -> Kronecker factors; with anchors only.
        rule: how importances join, see above.
        weighting: "task" counts every task the same; "examples" multiplies an importance by its number of examples
            over that of the first task.
        num_examples: examples the new importance was measured on; needed for weighting by them.
        nats_per_unit: the new importance's factor to nats, or None.

    Returns:
        A new record that shares no memory with `importance` or `weights`.

    Raises:
        OptionError: an unknown rule or weighting, weighting by examples without their number, or "max" with factors.

    Cost: one pass over the weights, no passes over data; for factors two eigendecompositions a layer.
    """
    new = {name: value.detach().clone() for name, value in importance.items()}
    first_examples = held.first_examples or num_examples
    share = 1.0
    if weighting == "examples":
        if num_examples < 1 or first_examples < 1:
            raise OptionError('retain: weighting="examples" needs importances that know their number of examples.')
        share = num_examples / first_examples
        new = {name: value.mul_(share) for name, value in new.items()}
    elif weighting != "task":
        raise OptionError(f'retain: weighting is {weighting!r}; expected "task" or "examples".')
    old = held.importance
    new |= {name: torch.zeros_like(value) for name, value in old.items() if name not in new}
    now = {**held.anchors, **weights} if weights else {}
    layers: LayerShares = {}
    if factors or held.factors:
        keep, add = _weights_of(rule, held.num_tasks)
        layers = join_layers(held.factors, factors or {}, keep=keep, add=share * add, first=share)
    names = [*new, *shapes_of({name: layer for name, (layer, _) in layers.items()})]
    anchors = {name: now[name].detach().clone() for name in names if name in now}
    constant = start = 0.0
    if rule == "per_task":
        if not anchors:
            raise OptionError('retain: accumulate="per_task" joins anchors, and this mechanism has none. Use "sum".')
        collapsed, start = _collapse(old, new, held.anchors, anchors)
        costs, rises = collapse_layers(layers, held.factors, means=held.anchors, anchors=anchors)
        constant, start = held.constant + collapsed + costs, start + rises
    joined = {
        name: _joined(old[name], value, rule, held.num_tasks) if name in old else value for name, value in new.items()
    }
    return Retained(
        importance=joined,
        anchors=anchors,
        constant=constant,
        start=start,
        num_tasks=held.num_tasks + 1,
        first_examples=first_examples,
        nats_per_unit=_factor(held, new, layers, nats_per_unit),
        largest=max((float(whole(value.max())) for value in joined.values() if value.numel()), default=0.0),
        factors={name: layer for name, (layer, _) in layers.items()},
    )


def _joined(held: Tensor, new: Tensor, rule: Accumulate, num_tasks: int) -> Tensor:
    match rule:
        case "sum" | "per_task":
            return held + new
        case "mean":
            return (new + num_tasks * held) / (num_tasks + 1)
        case "max":
            return torch.maximum(held, new)
        case Decayed(gamma):
            return gamma * held + new
        case _:
            raise OptionError(
                f'retain: accumulate is {rule!r}; expected "sum", "mean", "max", "per_task" or Decayed(gamma).'
            )


def _weights_of(rule: Accumulate, num_tasks: int) -> tuple[float, float]:
    """By how much the held and the new are multiplied before they are added."""
    match rule:
        case "sum" | "per_task":
            return 1.0, 1.0
        case "mean":
            return num_tasks / (num_tasks + 1), 1 / (num_tasks + 1)
        case Decayed(gamma):
            return gamma, 1.0
        case _:
            raise OptionError(
                f'retain: accumulate is {rule!r}, a rule that Kronecker factors do not have; expected "sum", "mean", '
                '"per_task" or Decayed(gamma). Choose one of these, or retain importance.to_diagonal().'
            )


def _collapse(old: TensorMap, new: TensorMap, means: TensorMap, anchors: dict[str, Tensor]) -> tuple[float, float]:
    """Move `anchors` from theta to m' in place.

    Returns:
        1/2 sum F f/F' (m - theta)^2, what that costs for good, and 1/2 sum F' (theta - m')^2, the rise at theta.
    """
    costs, rises = [], []
    for name, held in old.items():
        total = held + new[name]
        share = torch.where(total > 0, new[name] / total, torch.ones_like(total))
        theta, mean = anchors[name], means[name]
        costs.append(0.5 * (held * share * (mean.float() - theta.float()).square()).sum())
        anchors[name] = (mean + share.to(mean.dtype) * (theta - mean)).to(theta.dtype)
        rises.append(0.5 * (total * (theta - anchors[name]).float().square()).sum())
    return sum_of(costs), sum_of(rises)


def _factor(held: Retained, new: TensorMap, layers: LayerShares, nats_per_unit: float | None) -> float | None:
    if held.num_tasks == 0 or held.nats_per_unit == nats_per_unit:
        return nats_per_unit
    if held.nats_per_unit is None or nats_per_unit is None:
        return None
    own = [part.sum() for _, part in layers.values() if part is not None]
    before = sum_of([value.sum() for value in held.importance.values()])
    before += sum_of([layer.spectrum.sum() for layer in held.factors.values()])
    now = sum_of([*(value.sum() for value in new.values()), *own])
    total = before + now
    return (held.nats_per_unit * before + nats_per_unit * now) / total if total > 0 else nats_per_unit
