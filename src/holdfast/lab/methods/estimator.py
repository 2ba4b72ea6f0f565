"""What says how much each weight matters for a task that has been learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.curvature.factored import AnyImportance
from holdfast.lab.streams import Examples
from holdfast.likelihoods import Likelihood


@dataclass(frozen=True)
class ClosedTask:
    """A task that has been learned.

    Attributes:
        examples: to measure on.
        classes: output columns that took part in its loss; None: all.
        loss: its likelihood, among these columns.
        number: from 0.
        seed: for what is drawn at random, another for each task.
    """

    examples: Examples
    classes: tuple[int, ...] | None
    loss: Likelihood
    number: int
    seed: int


class Estimator:
    """Says what matters for a task as it is closed; one that looks on in training overrides more than `importance`.

    Args:
        model: whose weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def attach(self, optimizer: Optimizer) -> None:
        """Look on at this optimizer's steps from now on."""

    def after_step(self, loss: Callable[[], Tensor]) -> None:
        """Look back on an optimizer step; `loss` is that of its batch, taken anew."""

    def importance(self, task: ClosedTask) -> AnyImportance:
        """Of every weight, for a task."""
        raise NotImplementedError

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What training on needs: tensors by name, and JSON notes."""
        return {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""


class FunctionEstimator(Estimator):
    """A function of the model and the closed task.

    Args:
        model: whose weights.
        measure: the function.
    """

    def __init__(self, model: nn.Module, measure: Callable[[nn.Module, ClosedTask], AnyImportance]) -> None:
        super().__init__(model)
        self._measure = measure

    def importance(self, task: ClosedTask) -> AnyImportance:
        """What the function says."""
        return self._measure(self.model, task)
