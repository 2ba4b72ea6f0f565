import pytest
import torch

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.streams.examples import Examples
from holdfast.lab.streams.split import split
from holdfast.lab.streams.stream import Task


def images(n=40, num_classes=6):
    """Each input is its own target."""
    targets = torch.randint(0, num_classes, (n,))
    part = Examples(targets.float().reshape(n, 1, 1, 1), targets)
    return Task("noise", part, part, part, tuple(range(num_classes)))


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_the_columns_stay_those_of_all_classes(scenario):
    source = images()
    stream = split(source, scenario=scenario)
    assert (stream.name, stream.scenario, stream.num_classes) == ("split-noise", scenario, 6)
    assert stream.input_shape == (1, 1, 1)
    assert stream.task_classes == ((0, 1), (2, 3), (4, 5))
    assert [task.name for task in stream] == ["classes 0, 1", "classes 2, 3", "classes 4, 5"]
    for task in stream:
        for part in (task.train, task.validation, task.test):
            assert set(part.targets.tolist()) == set(task.classes)
            assert torch.equal(part.inputs.flatten(), part.targets.float())
    assert sum(len(task.train) for task in stream) == len(source.train)


def test_in_the_domain_scenario_all_tasks_share_the_columns():
    stream = split(images(), 3, scenario="domain")
    assert stream.num_classes == 3
    assert stream.task_classes == ((0, 1, 2), (0, 1, 2))
    part = stream[1].test
    assert torch.equal(part.inputs.flatten(), part.targets.float() + 3)


def test_the_first_tasks_alone():
    stream = split(images(), num_tasks=2)
    assert len(stream) == 2
    assert stream.num_classes == 6


@pytest.mark.parametrize("n", [4, 0, -1, 7])
def test_the_classes_are_dealt_out_evenly(n):
    with pytest.raises(OptionError, match=f"split: classes_per_task={n}, expected a divisor of the 6 classes."):
        split(images(), n)


@pytest.mark.parametrize("num_tasks", [0, 4])
def test_there_are_classes_for_every_task(num_tasks):
    with pytest.raises(OptionError, match=f"split: num_tasks={num_tasks}, expected 1 to 3."):
        split(images(), num_tasks=num_tasks)


def test_an_unknown_scenario_is_named():
    with pytest.raises(UnknownNameError, match="unknown scenario 'clas'. Did you mean 'class'\\?"):
        split(images(), scenario="clas")  # pyright: ignore[reportArgumentType]
