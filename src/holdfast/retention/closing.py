"""The end of a lesson: where a budget is exceeded, back along the curvature until it is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from holdfast.curvature.exchange import ALONE, Exchange
from holdfast.likelihoods.likelihood import AtTargets, resolve_likelihood
from holdfast.memory import Retained
from holdfast.probes import Probes
from holdfast.replicas import Replicas
from holdfast.retention.rewinding import NewTask, mean_curvature, rewound, sought
from holdfast.tensors import TensorMap, local

DELTAS = (1e-3, 1e-2, 1e-1, 1.0, math.inf)
"""Shares of K's mean that are tried where the new task's loss can tell them apart, the last of them linear averaging;
where it cannot, the first alone in the metric of the new task, the second without it."""


@dataclass(frozen=True)
class Rewound:
    """What going back did.

    Attributes:
        before: the rise of each skill within the lesson, in nats per target, where training ended; without probes the
            predicted one of all together.
        after: the same at the weights that were kept.
        budgets: of each; None for none.
        least: the least rise of each on the ways that were tried.
        multiplier: mu, how far back it went: 0 not at all.
        delta: of K's mean, see `holdfast.retention.rewinding`; infinity is linear averaging.
        cost: what the new task's loss rose by, in nats per target, where its data were given.
        kept: whether every budget is kept.
        left_alone: whether the trained weights stayed because going back would have cost more than `max_loss`.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    least: tuple[float, ...]
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
        columns = list(zip(self.after, self.least, self.budgets, strict=True))
        over = {k: (rise, least, b) for k, (rise, least, b) in enumerate(columns) if b is not None and rise > b}
        told = ", ".join(f"skill {k} {rise:.3g} of {budget:g} nats" for k, (rise, _, budget) in over.items())
        never = ", ".join(f"skill {k} {least:.3g} or more" for k, (_, least, b) in over.items() if least > b)
        reason = (
            f"On all of the way {never}: what rises there is in parameters or statistics that are not held, or these "
            "skills are lost where the anchors of all together are."
            if never
            else "Each can be kept, but not together with the others: what keeps one skill loses another."
        )
        return (
            f"no way back keeps every budget. At the best point {told}. {reason} Rehearse old data of these skills, or "
            "allow them more."
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
    new: NewTask | None = None,
    exchange: Exchange = ALONE,
) -> Rewound:
    """Move weights back until every rise is within its budget, as little as that needs.

    Args:
        weights: the model's parameters, changed in place.
        held: K and the anchors.
        rises: measures the rise of each skill within the lesson, at the weights as they are.
        budgets: of each; None for none.
        cost: measures what the new task has lost since training ended; None where its data are not at hand.
        max_loss: the most that it may lose, in nats per target.
        new: the curvature of the new task; None where it is not known.
        exchange: the processes that hold a sharded model together.

    Where no way keeps every budget the weights end where the worst rise over its budget is least. They are left
    as they were where a measurement raises.
    """
    ends = {name: local(weight.detach()).clone() for name, weight in weights.items()}
    before, bounds = tuple(rises()), tuple(budgets)
    if worst(before, bounds) <= 1:
        return Rewound(before, before, before, bounds, 0.0, 0.0, None if cost is None else 0.0, kept=True)
    mean = mean_curvature(held, weights, new, exchange=exchange) or 1.0  # the unit of K, so that any is searched alike
    anchored = min(1e18 / mean, 1e30)
    tried = [(worst(before, bounds), 0.0, 0.0, before)]

    def put(multiplier: float, delta: float) -> None:
        averaging = delta == math.inf
        strength = 0.0 if averaging else min(multiplier, anchored)
        rest = 1 / (1 + multiplier * mean * (1.0 if averaging else delta))
        moved = rewound(ends, held, strength=strength, rest=rest, new=new, exchange=exchange) if multiplier else {}
        for name, value in {**ends, **moved}.items():
            local(weights[name].detach()).copy_(value)

    def kept(multiplier: float, delta: float) -> bool:
        put(multiplier, delta)
        found = tuple(rises())
        tried.append((worst(found, bounds), multiplier, delta, found))
        return worst(found, bounds) <= 1

    ways: list[tuple[float, float, float]] = []
    deltas = DELTAS if cost is not None else DELTAS[1:2] if new is None else DELTAS[:1]
    try:
        for delta in deltas:
            multiplier = sought(lambda mu, delta=delta: kept(mu, delta), start=1 / mean, most=1e12 / mean)
            if math.isfinite(multiplier):
                put(multiplier, delta)
                ways.append((0.0 if cost is None else cost(), delta, multiplier))
        if ways:
            _, delta, multiplier = min(ways)
        else:
            _, multiplier, delta, _ = min(tried, key=lambda point: point[0])
        put(multiplier, delta)
        after, paid = tuple(rises()), None if cost is None else cost()
        left_alone = paid is not None and paid > max_loss
        if left_alone:
            put(0.0, 0.0)
            after, multiplier = before, 0.0
    except BaseException:
        put(0.0, 0.0)
        raise
    least = tuple(map(min, zip(*(rises for *_, rises in tried), strict=True)))
    is_kept = worst(after, bounds) <= 1
    return Rewound(before, after, least, bounds, multiplier, delta, paid, kept=is_kept, left_alone=left_alone)


def worst(rises: Sequence[float], budgets: Sequence[float | None]) -> float:
    """The largest rise over its budget; 0 without any."""
    return max((rise / b for rise, b in zip(rises, budgets, strict=True) if b is not None), default=0.0)
