"""A task is examples to train, tune and test on; a stream is a sequence of tasks, each built when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args, overload

from holdfast.choices import check_choice
from holdfast.errors import OptionError
from holdfast.lab.streams.examples import Examples
from holdfast.likelihoods.masks import Scenario


@dataclass(frozen=True, eq=False)
class Task:
    """One skill to learn.

    Attributes:
        name: for people, such as "rotated 30°".
        train: what it is learned from.
        validation: what settings may be chosen on.
        test: what is reported, and nothing is chosen on.
        classes: the output columns that its targets name; of a regression, those of its numbers.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[int, ...]

    @property
    def is_regression(self) -> bool:
        """Whether the targets are numbers, float [N, C], and no classes."""
        return self.train.targets.is_floating_point()

    def map(self, function: Callable[[Examples], Examples], *, name: str, classes: tuple[int, ...]) -> Task:
        """The task whose train, validation and test examples are `function` of these."""
        return Task(name, function(self.train), function(self.validation), function(self.test), classes)


@dataclass(frozen=True, eq=False)
class Stream(Sequence[Task]):
    """A sequence of tasks. `stream[i]` builds task i anew each time; nothing is kept, so hold on to what is used again.

    Attributes:
        name: for people and folders, such as "permuted-mnist".
        scenario: what is to be told at test time.
        num_classes: the number of output columns that all tasks need.
        input_shape: of one example.
        task_classes: the output columns of each task.
        build: task number -> task.

    Raises:
        UnknownNameError: the scenario is not "task", "domain" or "class".
    """

    name: str
    scenario: Scenario
    num_classes: int
    input_shape: tuple[int, ...]
    task_classes: tuple[tuple[int, ...], ...]
    build: Callable[[int], Task]

    def __post_init__(self) -> None:
        """Check the scenario."""
        check_choice("scenario", self.scenario, get_args(Scenario))

    @classmethod
    def of(cls, name: str, tasks: Sequence[Task], *, scenario: Scenario = "domain") -> Stream:
        """The stream of tasks that are there already; output columns are those that they name.

        Raises:
            OptionError: there are none.
        """
        if not tasks:
            raise OptionError(f"stream {name}: no tasks; expected one or more.")
        classes = tuple(task.classes for task in tasks)
        width = 1 + max(column for own in classes for column in own)
        return cls(name, scenario, width, tasks[0].train.input_shape, classes, lambda k: tasks[k])

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self.task_classes)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        """Task `index`, or a list of all those of a slice, built now."""
        numbers = range(len(self))[index]  # IndexError past the end, negative numbers from it
        return self.build(numbers) if isinstance(numbers, int) else [self.build(number) for number in numbers]


def check_num_tasks(num_tasks: int, *, most: int | None = None, where: str) -> None:
    """Make sure that a stream has at least one task, and at most `most`.

    Raises:
        OptionError: it has not.
    """
    if num_tasks < 1 or (most is not None and num_tasks > most):
        expected = "at least 1" if most is None else f"1 to {most}"
        raise OptionError(f"{where}: num_tasks={num_tasks}, expected {expected}.")
