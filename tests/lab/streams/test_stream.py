import pytest
import torch

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.streams.examples import Examples
from holdfast.lab.streams.stream import Stream, Task, check_num_tasks


def examples(value):
    return Examples(torch.full((2, 3), float(value)), torch.zeros(2, dtype=torch.int64))


def stream_of(numbers, *, built):
    def build(k):
        built.append(k)
        return Task(f"task {k}", examples(k), examples(k), examples(k), (0,))

    return Stream("numbers", "domain", 1, (3,), tuple((0,) for _ in numbers), build)


def test_tasks_are_built_when_asked_for_and_not_kept():
    built = []
    stream = stream_of(range(3), built=built)
    assert len(stream) == 3
    assert built == []
    assert stream[1].name == "task 1"
    assert stream[-1].name == "task 2"
    assert [task.name for task in stream[1:]] == ["task 1", "task 2"]
    assert built == [1, 2, 1, 2]
    assert [task.name for task in stream] == ["task 0", "task 1", "task 2"]
    assert [task.name for task in reversed(stream)] == ["task 2", "task 1", "task 0"]


@pytest.mark.parametrize("index", [3, -4])
def test_past_the_end_is_an_index_error(index):
    with pytest.raises(IndexError):
        stream_of(range(3), built=[])[index]


def test_map_reaches_all_three_parts():
    task = Task("one", examples(1), examples(2), examples(3), (0,))
    doubled = task.map(lambda part: Examples(2 * part.inputs, part.targets), name="two", classes=(1,))
    assert [float(part.inputs[0, 0]) for part in (doubled.train, doubled.validation, doubled.test)] == [2, 4, 6]
    assert (doubled.name, doubled.classes) == ("two", (1,))


def test_an_unknown_scenario_is_named():
    with pytest.raises(UnknownNameError, match="unknown scenario 'tasks'. Did you mean 'task'\\?"):
        Stream("s", "tasks", 1, (3,), ((0,),), lambda k: None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("num_tasks", "most", "expected"), [(0, None, "at least 1"), (-2, 5, "1 to 5"), (6, 5, "1 to 5")]
)
def test_a_stream_has_so_many_tasks(num_tasks, most, expected):
    with pytest.raises(OptionError, match=f"split: num_tasks={num_tasks}, expected {expected}."):
        check_num_tasks(num_tasks, most=most, where="split")
    check_num_tasks(1, most=most, where="split")
