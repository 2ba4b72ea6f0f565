"""The factor between the real rise of the old loss and the quadratic one, at the end of lessons held to a budget.

1/2 d^T K d is the rise along a random direction. Training goes along no random direction: what a new task does to one
example it does to many, and where it is held to a forecast it goes where that sees least. So the factor is taken where
it is needed: along lessons that were learned under the very hold, at the very budget.

Information is in nats by definition, and the first lessons are held by it as it is. Of an importance in another unit
nobody knows how much holds, and the first lessons are learned freely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from holdfast.curvature import FactoredImportance
from holdfast.probes.evaluating import evaluating
from holdfast.records import Importance
from holdfast.retention import EWC
from holdfast.retention.unheld import unwatched
from holdfast.tensors import all_parameters, copies

AnImportance = TypeVar("AnImportance", bound=Importance | FactoredImportance)

Lesson = Callable[[EWC, int], None]
"""Trains the keeper's model on a made-up task, with the keeper attached to the optimizer; the int numbers the task."""

NEAR = 1.5
"""A round is the last in which no rise is more than so many budgets."""

_FREE = 1e30
"""A budget, in any unit, that no lesson comes to."""


@dataclass(frozen=True)
class Factor:
    """What a unit of an importance is worth in nats, as the lessons of the last round showed it.

    Attributes:
        budget: that they were held to, in nats per target.
        nats_per_unit: the largest of their factors from the quadratic rise to the real one; None where none rose.
        predicted: the quadratic rise of that lesson, in the importance's own unit.
        measured: its real rise, in nats per target.
        scatter: within which factor, >= 1, each real rise was what the factor of the round before had foreseen.
        largest: the largest real rise of the last round, in nats per target.
        rounds: how many rounds there were.
    """

    budget: float
    nats_per_unit: float | None
    predicted: float
    measured: float
    scatter: float
    largest: float
    rounds: int

    @property
    def why_not_settled(self) -> str:
        """What to say where the last round still cost more than it may: the factor is too small; else empty."""
        if self.largest <= NEAR * self.budget:
            return ""
        return (
            f"in round {self.rounds}, the last, a made-up lesson still raised the old loss by {self.largest:.3g} nats, "
            f"{self.largest / self.budget:.1f} times the budget of {self.budget:g}, so that the factor to nats is too "
            "small, and a budget without probes would hold too little"
        )

    def applied_to(self, importance: AnImportance) -> AnImportance:
        """The importance in nats along the ways that training goes; as it was where nothing was found."""
        if self.nats_per_unit is None:
            return importance
        return importance.with_info(  # pyright: ignore[reportReturnType]  # its own kind
            nats_per_unit=self.nats_per_unit,
            calibration="made-up lessons",
            calibrated_at=self.budget,
            scatter=self.scatter,
        )


def lessons_factor(
    model: nn.Module,
    importance: Importance | FactoredImportance,
    *,
    rise: Callable[[], float],
    lesson: Lesson,
    budget: float,
    lessons: int,
    rounds: int,
) -> Factor:
    """Learn made-up lessons under a budget, and compare the rise of the old loss with the quadratic one.

    In each round all lessons are learned under the largest factor of the round before, each from the model as it is.
    It is the last in which no rise is above 1.5 budgets. The first has a factor of 1; where the importance is in no
    nats (`nats_per_unit` is None), that of lessons that nothing holds.

    Args:
        model: whose importance it is; weights, gradients, buffers, training flags and random state are given back, also
            after an error.
        importance: any that a budget can be kept with.
        rise: measures the rise of the old loss, in nats per target.
        lesson: learns the task of a number.
        budget: nats per target.
        lessons: different tasks.
        rounds: at most so many.

    Cost: `rounds` times `lessons` lessons and rises, once more where the unit is unknown; a copy of the weights, and
        the memory of a held training.
    """
    with _lent(model) as put_back:

        def learned(factor: float, budget: float = budget) -> list[tuple[float, float, float]]:
            """Of every lesson its own factor, its quadratic rise and its real one; the largest factor last."""
            pairs = []
            for number in range(lessons):
                put_back()
                keeper = EWC(model, budget=budget, new_parameters="free", statistics="hold", log_every=0)
                keeper.retain(importance.with_info(nats_per_unit=factor).with_probes(None))
                try:
                    with torch.enable_grad():
                        lesson(keeper, number)
                finally:
                    keeper.detach()
                pairs.append((keeper.predicted_rise() / factor, rise()))
            return sorted((real / unit, unit, real) for unit, real in pairs if unit > 0 and real > 0)

        before = 1.0
        if importance.info.nats_per_unit is None and (free := learned(1.0, _FREE)):
            before = free[-1][0]
        found = learned(before)
        done = 1
        while done < rounds and _largest(found) > NEAR * budget:
            before = found[-1][0]
            found = learned(before) or found
            done += 1
    if not found:
        return Factor(budget, None, predicted=0.0, measured=0.0, scatter=math.inf, largest=0.0, rounds=done)
    factor, predicted, measured = found[-1]
    scatter = max(factor / before, before / found[0][0])
    return Factor(budget, factor, predicted, measured, scatter, _largest(found), done)


def _largest(found: Sequence[tuple[float, float, float]]) -> float:
    return max((real for _, _, real in found), default=0.0)


@contextmanager
def _lent(model: nn.Module) -> Iterator[Callable[[], None]]:
    """A function that puts the weights back, for training in between; at the end all is as it was."""
    parameters = all_parameters(model)
    weights, gradients = copies(parameters), [parameter.grad for parameter in parameters.values()]

    @torch.no_grad()
    def put_back() -> None:
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])

    with evaluating(model), unwatched():
        try:
            yield put_back
        finally:
            put_back()
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter.grad = gradient
