"""Learning without Forgetting: the network that was answers for the old tasks, on the new task's inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.lab.methods.distillation import DistillationOptions, distillation
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.streams import Examples
from holdfast.lab.training import Losses, logits_loss
from holdfast.likelihoods.masks import active_classes


@register_method(
    "lwf",
    label="LwF",
    summary="is taught its old answers on the inputs of the new task",
    options=DistillationOptions,
    style={"color": COLOURS["teacher"], "linestyle": "-", "marker": "P"},
    classes_only=True,
)
class LearningWithoutForgetting(Learner):
    """A copy of the network as the last task left it teaches the old answers on the inputs of the new task.

        loss = 1/t L_new + (1 - 1/t) D,   t the number of the task from 1,

    D the `distillation` from the copy. With one head a task it is the mean over the old heads, each by itself; where
    all columns take part, that of all; with columns of the tasks so far, the copy's answers are among the columns seen
    before, and the learner's among those seen now.

    Cost: one more forward pass a step, and the weights once more.

    Source: Li & Hoiem 2016, arXiv 1606.09282, with weights, temperature and columns as van de Ven & Tolias 2019,
    arXiv 1904.07734, have them. Departure: no first phase in which the new head is trained alone.
    """

    def __init__(self, model: nn.Module, setting: Setting, options: DistillationOptions) -> None:
        super().__init__(model, setting)
        self._temperature = options.temperature
        self._num_closed = 0
        self._teacher: nn.Module | None = None

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The task's mean loss, and what turns it into the weighted mean with the distillation."""
        logits = self.model(inputs)
        own = logits_loss(logits, targets, columns)
        if self._teacher is None:
            return own, None
        with torch.no_grad():
            answers = self._teacher(inputs)
        heads = self._heads()
        distilled = [
            distillation(logits, answers, temperature=self._temperature, old=old, now=now) for old, now in heads
        ]
        share = 1 - 1 / (self._num_closed + 1)
        return own, share * (torch.stack(distilled).mean() - own)

    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """Copy the network."""
        self._num_closed = task + 1
        self._teach(self.model.state_dict())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The copy."""
        return dict(self._teacher.state_dict()) if self._teacher is not None else {}, {"closed": self._num_closed}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._num_closed = notes["closed"]
        if tensors:
            self._teach(tensors)

    def _teach(self, weights: Mapping[str, Tensor]) -> None:
        self._teacher = copy.deepcopy(self.model).requires_grad_(False).eval()
        self._teacher.load_state_dict(weights)

    def _heads(self) -> list[tuple[Sequence[int] | None, Sequence[int] | None]]:
        """For each old head the columns that the copy knows, and those among which is answered now."""
        mask, task_classes, t = self.setting.mask, self.setting.task_classes, self._num_closed
        if mask == "task":
            return [(own, own) for own in task_classes[:t]]
        return [(active_classes(mask, task_classes, t - 1), active_classes(mask, task_classes, t))]
