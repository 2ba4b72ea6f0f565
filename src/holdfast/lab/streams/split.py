"""The classes of a set of images dealt out to tasks, a few to each."""

from __future__ import annotations

from holdfast.errors import OptionError
from holdfast.lab.streams.examples import Examples
from holdfast.lab.streams.stream import Stream, Task, check_num_tasks
from holdfast.likelihoods.masks import Scenario


def split(
    images: Task,
    classes_per_task: int = 2,
    *,
    num_tasks: int | None = None,
    scenario: Scenario = "task",
    name: str | None = None,
) -> Stream:
    """Task k has the examples of the classes k*n to k*n + n - 1, n being `classes_per_task`.

    Args:
        images: the images, with classes 0..C-1.
        classes_per_task: n, a divisor of C.
        num_tasks: the first so many tasks; default all C/n.
        scenario: "task" and "class": C output columns, targets as they are; "domain": n columns, targets less k*n.
        name: of the stream; default "split-" and that of the images.

    Raises:
        OptionError: `classes_per_task` does not divide C, or `num_tasks` is out of its range.
        UnknownNameError: there is no such scenario.

    Cost: a task is the numbers of its examples. Source: Zenke et al. 2017, arXiv 1703.04200; the scenarios: 1904.07734.
    """
    if images.is_regression:
        raise OptionError(f"split: the targets of {images.name} are numbers; expected classes. Use permuted.")
    n, total = classes_per_task, len(images.classes)
    if n < 1 or total % n:
        raise OptionError(f"split: classes_per_task={n}, expected a divisor of the {total} classes.")
    num_tasks = total // n if num_tasks is None else num_tasks
    check_num_tasks(num_tasks, most=total // n, where="split")
    groups = [range(n * k, n * k + n) for k in range(num_tasks)]
    shared = scenario == "domain"
    classes = tuple(tuple(range(n)) if shared else tuple(group) for group in groups)

    def build(k: int) -> Task:
        group = groups[k]

        def part(examples: Examples) -> Examples:
            chosen = ((examples.targets >= group.start) & (examples.targets < group.stop)).nonzero().squeeze(1)
            return examples.select(chosen, targets=examples.targets[chosen] - group.start if shared else None)

        return images.map(part, name=f"classes {', '.join(map(str, group))}", classes=classes[k])

    input_shape = images.train.input_shape
    return Stream(name or f"split-{images.name}", scenario, n if shared else total, input_shape, classes, build)
