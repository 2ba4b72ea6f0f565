"""A network whose weights a keeper holds by their importance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.calibration import calibrated
from holdfast.curvature.factored import AnyImportance
from holdfast.lab.methods.estimator import ClosedTask, Estimator
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.states import checked_state
from holdfast.lab.streams import Examples
from holdfast.lab.training import Losses, task_loss
from holdfast.retention import EWC, WVA, Keeper
from holdfast.tensors import prefixed, under

_LESSON_BATCH = 32
"""Examples a step of a made-up lesson."""


class KeeperLearner(Learner):
    """A keeper, and the importance it is given as each task closes.

    Args:
        model: to be trained.
        setting: of the stream.
        keeper: that holds the weights, such as `EWC`.
        estimator: of their importance.
        budget: nats that the keeper keeps to, for which an importance in another unit is calibrated; None: none.

    Attributes:
        keeper: as given.
        estimator: likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        setting: Setting,
        *,
        keeper: Keeper,
        estimator: Estimator,
        budget: float | None = None,
    ) -> None:
        super().__init__(model, setting)
        self.keeper, self.estimator, self._budget = keeper, estimator, budget
        self._penalty: Callable[[], Tensor] | None = None
        if isinstance(keeper, EWC) and keeper.pull == "penalty":
            self._penalty = keeper.penalty
        self._optimizer: Optimizer | None = None

    def attach(self, optimizer: Optimizer) -> None:
        """Hold this optimizer's steps from now on, in place of any other's."""
        self.keeper.detach().attach(optimizer)
        self._optimizer = optimizer
        self.estimator.attach(optimizer)

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The task's mean loss, and the penalty under `pull="penalty"`."""
        own = task_loss(self.model, inputs, targets, columns)
        return own, None if self._penalty is None else self._penalty()

    def after_step(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> None:
        """Let the estimator look back."""
        self.estimator.after_step(lambda: task_loss(self.model, inputs, targets, columns))

    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """Measure what the task needs, and hold it."""
        closed = ClosedTask(examples, classes, self.likelihood_of(classes), task, self.setting.seed + 1000 * task)
        importance = self.estimator.importance(closed)
        if self._budget is not None and importance.info.nats_per_unit is None:
            importance = self._calibrated(importance, closed, self._budget)
        with warnings.catch_warnings():  # a protocol's strength is chosen for its importance, whatever the unit
            warnings.filterwarnings(
                "ignore", message=r"EWC\.retain: a strength of 1\.0 is meant for importances in nats"
            )
            self.keeper.retain(importance)

    @property
    def steadier(self) -> str:
        """Beside an explicit pull the implicit one; beside WVA nothing, and why; nothing before a task is held."""
        if self.keeper.held.num_tasks == 0:
            return ""
        if isinstance(self.keeper, WVA):
            return ": WVA slows the important weights, and all others move at the full rate"
        if not isinstance(self.keeper, EWC) or self.keeper.pull == "implicit":
            return ""
        return f', or use pull="implicit": pull="{self.keeper.pull}" diverges where lr * strength * importance > 2'

    def report(self) -> str:
        """Is it on, and does it work?"""
        return str(self.keeper.report())

    def _calibrated(self, importance: AnyImportance, closed: ClosedTask, budget: float) -> AnyImportance:
        """In nats, as a budget is, under another optimizer of the same kind."""
        assert self._optimizer is not None
        kind, given = type(self._optimizer), self._optimizer.defaults
        settings = {name: given[name] for name in signature(kind).parameters if name in given}
        return calibrated(
            self.model,
            importance,
            closed.examples.batches(_LESSON_BATCH, generator=torch.Generator().manual_seed(closed.seed)),
            loss=closed.loss,
            budget=budget,
            optimizer=lambda parameters: kind(parameters, **settings),
            seed=closed.seed,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of the keeper and of the estimator."""
        held, kept = self.keeper.state()
        tensors, notes = checked_state(self.estimator.state(), whose=type(self.estimator).__name__, reserved=["keeper"])
        return {**prefixed("keeper", held), **tensors}, {"keeper": kept, **notes}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.keeper.load_state(under("keeper", tensors), notes["keeper"])
        self.estimator.load_state(tensors, notes)
