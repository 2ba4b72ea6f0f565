"""The end of a lesson: where a budget is exceeded, back along the curvature until it is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from holdfast.likelihoods.likelihood import AtTargets, resolve_likelihood
from holdfast.memory import Retained
from holdfast.probes import Probes
from holdfast.retention.replicas import Replicas
from holdfast.retention.rewinding import mean_curvature, rewound, sought
from holdfast.tensors import TensorMap, local

DELTAS = (1e-3, 1e-2, 1e-1, 1.0)
"""Shares of K's mean that are tried where the new task's loss can tell them apart; the second alone where it cannot."""


@dataclass(frozen=True)
class Rewound:
    """What going back did.

    Attributes:
        before: the rise of each skill within the lesson, in nats per target, where training ended; without probes the
            predicted one of all together.
        after: the same at the weights that were kept.
        budgets: of each; None for none.
        multiplier: mu, how far back it went: 0 not at all, infinity to the anchors.
        delta: of K's mean, see `holdfast.retention.rewinding`.
        cost: what the new task's loss rose by, in nats per target, where its data were given.
        kept: whether every budget is kept.
        left_alone: whether the trained weights stayed because going back would have cost more than `max_loss`.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    budgets: tuple[float | None, ...]
    multiplier: float
    delta: float
    cost: float | None
    kept: bool
    left_alone: bool = False

    @property
    def why(self) -> str:
        """What to do where a budget is not kept."""
        if self.left_alone:
            return (
                f"going back would cost the new task {self.cost:.3g} nats, more than max_loss, so that the trained "
                f"weights stay ({self}). Allow more, or call rewind with a larger budget."
            )
        return (
            f"no way back keeps every budget: {self}. The skills have no weights in common that do, or what rises is "
            "in parameters or statistics that are not held. Rehearse old data, or allow more."
        )

    def __str__(self) -> str:
        """One line."""
        rises = ", ".join(
            f"{before:.3g} to {after:.3g} nats" + ("" if budget is None else f" of {budget:g}")
            for before, after, budget in zip(self.before, self.after, self.budgets, strict=True)
        )
        cost = "" if self.cost is None else f", at {self.cost:.3g} nats of the new task"
        return f"went back: {rises}{cost}" if self.multiplier else f"stayed: {rises}"


def new_task_cost(
    model: nn.Module, data: Iterable[Any], loss: Any, *, replicas: Replicas, where: str
) -> Callable[[], float]:
    """What the new task's loss has risen by since now, in nats per target, whenever it is asked."""
    likelihood = resolve_likelihood(loss, where=where)
    taken = Probes.taken(model, data, AtTargets(likelihood))
    return lambda: replicas.agreed([taken.rise(model)])[0]


@torch.no_grad()
def go_back(
    weights: TensorMap,
    held: Retained,
    *,
    rises: Callable[[], Sequence[float]],
    budgets: Sequence[float | None],
    cost: Callable[[], float] | None,
    max_loss: float,
) -> Rewound:
    """Move weights back until every rise is within its budget, as little as that needs.

    Args:
        weights: the model's parameters, changed in place.
        held: K and the anchors.
        rises: measures the rise of each skill within the lesson, at the weights as they are.
        budgets: of each; None for none.
        cost: measures what the new task has lost since training ended; None where its data are not at hand.
        max_loss: the most that it may lose, in nats per target.

    The weights are left as they were where a measurement raises.
    """
    ends = {name: local(weight.detach()).clone() for name, weight in weights.items()}
    before = tuple(rises())
    if _within(before, budgets):
        return Rewound(before, before, tuple(budgets), 0.0, 0.0, None if cost is None else 0.0, kept=True)
    mean = mean_curvature(held, weights) or 1.0  # the unit of K, so that any is searched alike
    anchored = min(1e18 / mean, 1e30)

    def put(multiplier: float, delta: float) -> None:
        strength = min(multiplier, anchored)
        moved = rewound(ends, held, strength=strength, delta=delta * mean) if multiplier else {}
        for name, value in {**ends, **moved}.items():
            local(weights[name].detach()).copy_(value)

    def kept(multiplier: float, delta: float) -> bool:
        put(multiplier, delta)
        return _within(rises(), budgets)

    found: list[tuple[float, float, float]] = []
    try:
        for delta in DELTAS if cost is not None else DELTAS[1:2]:
            multiplier = sought(lambda mu, delta=delta: kept(mu, delta), start=1 / mean, most=1e12 / mean)
            put(multiplier, delta)
            found.append((0.0 if cost is None else cost(), delta, multiplier))
        least, delta, multiplier = min(found)
        if least > max_loss:
            put(0.0, 0.0)
            return Rewound(before, before, tuple(budgets), 0.0, delta, least, kept=False, left_alone=True)
        put(multiplier, delta)
        after = tuple(rises())
    except BaseException:
        put(0.0, 0.0)
        raise
    is_kept = math.isfinite(multiplier) and _within(after, budgets)
    return Rewound(before, after, tuple(budgets), multiplier, delta, None if cost is None else least, kept=is_kept)


def _within(rises: Sequence[float], budgets: Sequence[float | None]) -> bool:
    return all(budget is None or rise <= budget for rise, budget in zip(rises, budgets, strict=True))
