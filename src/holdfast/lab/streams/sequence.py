"""Data sets one after the other, each a task with classes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from holdfast.errors import OptionError
from holdfast.lab.streams.examples import Examples
from holdfast.lab.streams.stream import Stream, Task, check_num_tasks
from holdfast.likelihoods.masks import Scenario


def sequence(
    sets: Sequence[Task], *, num_tasks: int | None = None, scenario: Scenario = "task", name: str = "sequence"
) -> Stream:
    """Task k is the whole of data set k.

    Args:
        sets: with classes 0..C_k-1 each, and inputs of one shape.
        num_tasks: the first so many; None: all.
        scenario: "task" and "class": columns of its own for each; "domain": the same ones for all.
        name: of the stream.

    Raises:
        OptionError: there are fewer, one is a regression, or their inputs differ in shape; under "domain" also where
            they differ in classes.
        UnknownNameError: there is no such scenario.

    Source: Serra et al. 2018 (arXiv 1801.01423), section 3.1, with other sets.
    """
    num_tasks = len(sets) if num_tasks is None else num_tasks
    check_num_tasks(num_tasks, most=len(sets), where="sequence")
    chosen = sets[:num_tasks]
    numbers = [each.name for each in chosen if each.is_regression]
    if numbers:
        raise OptionError(f"sequence: the targets of {', '.join(numbers)} are numbers; expected classes.")
    shapes = {each.name: each.train.input_shape for each in chosen}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{own} {list(shape)}" for own, shape in shapes.items())
        raise OptionError(
            f"sequence: inputs of several shapes: {told}; expected one. Make pictures alike by --side and --colors."
        )
    widths = [len(each.classes) for each in chosen]
    shared = scenario == "domain"
    if shared and len(set(widths)) > 1:
        told = ", ".join(f"{each.name} {width}" for each, width in zip(chosen, widths))
        raise OptionError(f"sequence: numbers of classes: {told}; expected one for scenario domain. Use task or class.")
    starts = [0] * num_tasks if shared else [0, *accumulate(widths)][:-1]
    classes = tuple(tuple(range(start, start + width)) for start, width in zip(starts, widths))

    def build(k: int) -> Task:
        def part(examples: Examples) -> Examples:
            return examples.relabelled(examples.targets + starts[k])

        return chosen[k].map(part, name=chosen[k].name, classes=classes[k])

    width = widths[0] if shared else sum(widths)
    return Stream(name, scenario, width, next(iter(shapes.values())), classes, build)
