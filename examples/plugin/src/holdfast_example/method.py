"""A method: every task is learned at a smaller learning rate than the one before."""

from dataclasses import dataclass
from typing import Annotated

from holdfast import lab


@dataclass(frozen=True, kw_only=True)
class SlowOptions:
    """Of slow learning.

    Attributes:
        slowing: learning rate of a task over that of the task before.
    """

    slowing: Annotated[float, lab.Within(0, 1)] = 0.3


@lab.register_method("slow", label="slow", summary="learns each task more slowly than the last", options=SlowOptions)
class Slow(lab.Learner):
    """Scales the gradients that a step is taken on; of plain SGD that is its learning rate."""

    def __init__(self, model, setting, options):
        super().__init__(model, setting)
        self.slowing, self.task = options.slowing, 0

    def loss(self, inputs, targets, columns):
        """The task's own, scaled."""
        own = lab.task_loss(self.model, inputs, targets, columns)
        return own, (self.slowing**self.task - 1) * own

    def close_task(self, examples, *, classes, task):
        """The next task is slower."""
        self.task = task + 1

    def state(self):
        """What a killed run needs to go on."""
        return {}, {"task": self.task}

    def load_state(self, tensors, notes):
        """Go on."""
        self.task = notes["task"]
