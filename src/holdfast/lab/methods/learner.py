"""What a method does in a run, moment by moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.choices import check_choices
from holdfast.lab.registry import Selection
from holdfast.lab.streams import Examples, Stream
from holdfast.lab.training import Losses, task_loss
from holdfast.likelihoods import Categorical, Likelihood
from holdfast.likelihoods.masks import Mask, Scenario
from holdfast.steps.hooks import StepHooks


@dataclass(frozen=True)
class Setting:
    """What a method may know of the stream ahead of it.

    Attributes:
        task_classes: the classes of every task, as output columns.
        mask: the output columns that take part in a task's loss; see `holdfast.likelihoods.masks`.
        scenario: what is to be told at test time.
        input_shape: of one example.
        past: the training examples of an earlier task, for controls that may have them again; None: not to be had.
        seed: of the run, for what a method draws at random.
        parts: what the method's options name, such as a generator, by option.
    """

    task_classes: tuple[tuple[int, ...], ...]
    mask: Mask = "all"
    scenario: Scenario = "domain"
    input_shape: tuple[int, ...] = ()
    past: Callable[[int], Examples] | None = None
    seed: int = 0
    parts: Mapping[str, Selection] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choices(self)

    @classmethod
    def of(cls, stream: Stream, *, mask: Mask | None = None, **more: Any) -> Setting:
        """That of a stream; the mask is the scenario's own where none is given, and `more` are other attributes."""
        own: dict[Scenario, Mask] = {"task": "task", "domain": "all", "class": "seen"}
        classes = tuple(map(tuple, stream.task_classes))
        return cls(classes, mask or own[stream.scenario], stream.scenario, stream.input_shape, **more)

    @property
    def num_tasks(self) -> int:
        """How many tasks there will be."""
        return len(self.task_classes)


@dataclass(frozen=True)
class Moment:
    """Where in the training of a task a step stands.

    Attributes:
        step: its number in the task, from 0.
        num_steps: steps of the task.
        epoch_step: its number in the epoch, from 0.
        epoch_steps: steps of the epoch.
    """

    step: int
    num_steps: int
    epoch_step: int
    epoch_steps: int


class Learner:
    """The moments of a run in which a method may act. Here nothing is done in any of them: plain fine-tuning.

    The order is: `attach` to each new optimizer; `open_task`; where it `trains`, `before_step`, `loss` and `after_step`
    at every step; `after_training`; `close_task`; `evaluating` around every measurement. What must survive a kill goes
    through `state` and `load_state`.
    A method that draws at random draws from torch's global state, which every epoch seeds: so a run that goes on draws
    the same.

    A method of your own is a subclass, made as `Yours(model, setting)`, or `Yours(model, setting, options)` where it is
    registered with options; see `register_method`.

    Attributes:
        model: what is trained and tested; a method may wrap the model it was given.
        setting: what it may know of the stream.
        needs_past_data: whether a task is trained on the data of all tasks so far.
        replays: whether its loss meets examples of earlier tasks: `columns` then has rows for their classes too.
        likelihood: what importances are measured by; None: `Categorical`, over the classes of the task.
    """

    needs_past_data: ClassVar[bool] = False
    replays: ClassVar[bool] = False

    def __init__(self, model: nn.Module, setting: Setting) -> None:
        self.model, self.setting = model, setting
        self.likelihood: Likelihood | None = None
        self._hooks: StepHooks | None = None

    def hook(self, optimizer: Optimizer, **hooks: Callable[[Optimizer], None]) -> None:
        """Have functions called at this optimizer's steps, in place of those at any other's; see `StepHooks`."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = StepHooks(optimizer, **hooks)

    def attach(self, optimizer: Optimizer) -> None:
        """Act on this optimizer's steps from now on, in place of any other's."""

    def open_task(self, task: int, examples: Examples) -> None:
        """Get ready for a task, before its first step; not called again when a killed run goes on in mid-task.

        Args:
            task: its number, from 0.
            examples: what it will be trained on.
        """

    def trains(self, task: int) -> bool:
        """Whether a task is learned by optimizer steps; where not, by `after_training` alone."""
        return True

    def before_step(self, moment: Moment) -> None:
        """Get ready for an optimizer step, before its loss."""

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The mean loss of a batch of the task at hand, and what the method adds to it; see `train_epoch`."""
        return task_loss(self.model, inputs, targets, columns), None

    def after_step(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> None:
        """Look back on an optimizer step, at the batch it was taken on."""

    def after_training(self, task: int, examples: Examples) -> None:
        """Look at what a task was trained on, after its last step and before it is closed.

        Args:
            task: its number, from 0.
            examples: as `open_task` was given them.
        """

    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """Keep what must be kept of a task, after its last step.

        Args:
            examples: what importances are measured on.
            classes: output columns that took part in the loss; None: all.
            task: its number, which seeds sampled labels.
        """

    def evaluating(self, task: int) -> AbstractContextManager[None]:
        """Around a measurement on a task; for models that differ from task to task."""
        return nullcontext()

    @property
    def steadier(self) -> str:
        """What helps beside a lower learning rate where training has diverged; see `training.divergence`."""
        return ""

    def likelihood_of(self, classes: tuple[int, ...] | None) -> Likelihood:
        """What the importance of a task of these classes is measured by."""
        return Categorical(classes) if self.likelihood is None else self.likelihood

    def report(self) -> str:
        """One line on what holds the old tasks; empty where there is nothing to say."""
        return ""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that training on needs beside model and optimizer: tensors by name, and JSON notes."""
        return {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
