from dataclasses import dataclass

import pytest
import torch
from tests.lab.idx_files import fake_files, write

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.streams import Stream, Task, register_stream
from holdfast.lab.streams.catalog import STREAMS, StreamPlan, build_stream
from holdfast.lab.streams.digits import digits


@pytest.fixture(autouse=True)
def _small_mnist(tmp_path, monkeypatch):
    """The names over MNIST are built of a few images here."""
    monkeypatch.setenv("HOLDFAST_DATA", str(write(tmp_path / "few", fake_files())))


@pytest.mark.parametrize(
    ("name", "num_tasks", "scenario"),
    [
        ("permuted-digits", 5, "domain"),
        ("rotated-digits", 5, "domain"),
        ("split-digits", 5, "task"),
        ("permuted-mnist", 10, "domain"),
        ("rotated-mnist", 10, "domain"),
        ("split-mnist", 5, "task"),
    ],
)
def test_every_name_and_its_defaults(name, num_tasks, scenario):
    stream = build_stream(name)
    assert (stream.name, len(stream), stream.scenario, stream.num_classes) == (name, num_tasks, scenario, 10)
    assert all(set(task.train.targets.tolist()) == set(task.classes) for task in stream)
    assert STREAMS[name].summary


@pytest.mark.parametrize(("name", "scenario"), [("permuted", "domain"), ("rotated", "domain"), ("split", "task")])
def test_streams_of_data_of_ones_own(name, scenario):
    stream = build_stream(name, data="digits")
    assert (stream.name, len(stream), stream.scenario, stream.num_classes) == (name, 5, scenario, 10)
    with pytest.raises(OptionError, match=f"stream {name}: of which data\\? Give --data: a name, a path or module:f"):
        build_stream(name)


def test_the_catalog_is_covered():
    kinds = ("permuted", "rotated", "split")
    assert set(STREAMS) >= {*kinds, *(f"{kind}-{data}" for kind in kinds for data in ("digits", "mnist"))}


def test_options_are_handed_on(tmp_path):
    other = write(tmp_path / "other", fake_files(offset=100))
    assert len(build_stream("rotated-mnist", num_tasks=3, data_dir=other)) == 3
    greys = [build_stream("rotated-mnist", data_dir=folder)[0].test.inputs for folder in (None, other)]
    assert not torch.equal(*greys)
    assert build_stream("split-digits", scenario="domain").num_classes == 2
    assert build_stream("permuted-digits", scenario="class").num_classes == 50
    plain = build_stream("permuted-digits")[1].test.inputs
    assert not torch.equal(plain, build_stream("permuted-digits", seed=1)[1].test.inputs)
    assert not torch.equal(plain, build_stream("permuted-digits", fraction=0.5)[1].test.inputs)


def test_more_classes_a_task_make_fewer_tasks():
    assert build_stream("split-digits", classes_per_task=5).task_classes == (tuple(range(5)), tuple(range(5, 10)))
    with pytest.raises(OptionError, match="split: classes_per_task=3, expected a divisor of the 10 classes."):
        build_stream("split-digits", classes_per_task=3)


def test_an_unknown_stream_is_offered_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown stream 'permuted-mist'. Did you mean 'permuted-mnist'\\?"):
        build_stream("permuted-mist")


def test_a_stream_that_has_data_takes_no_others():
    with pytest.raises(OptionError, match="stream split-digits: its data are digits, and data='mnist' is given. Leave"):
        build_stream("split-digits", data="mnist")


@pytest.mark.parametrize("name", ["split-digits", "rotated-mnist"])
def test_a_fraction_is_for_permuted_streams(name):
    with pytest.raises(UnknownNameError, match=f"unknown option of stream {name}: 'fraction'"):
        build_stream(name, fraction=0.5)


def test_split_streams_end_with_the_classes():
    with pytest.raises(OptionError, match="split: num_tasks=6, expected 1 to 5."):
        build_stream("split-digits", num_tasks=6)


@dataclass(frozen=True, kw_only=True)
class ReversedOptions:
    """Of a made-up stream.

    Attributes:
        times: how often.
    """

    times: int = 1


def reversed_stream(plan: StreamPlan, options: ReversedOptions) -> Stream:
    def turned(task: Task) -> Task:
        return task.map(lambda part: part, name="digits", classes=task.classes)

    return Stream.of("anything", [turned(digits())] * (plan.num_tasks or 1) * options.times, scenario=plan.scenario)


def test_a_stream_of_ones_own(monkeypatch):
    monkeypatch.setattr(STREAMS, "_found", {**STREAMS._found})
    register_stream("made-up", options=ReversedOptions, num_tasks=3, summary="made up")(reversed_stream)
    assert len(build_stream("made-up")) == 3
    stream = build_stream("made-up", num_tasks=2, times=2)
    assert (stream.name, len(stream), stream.num_classes, stream.input_shape) == ("made-up", 4, 10, (1, 8, 8))


def nothing(plan: StreamPlan) -> int:
    return 3


def test_a_function_that_makes_no_stream():
    name = f"{__name__}:nothing"
    with pytest.raises(OptionError, match=f"stream {name}: made a int; expected a holdfast.lab.Stream."):
        build_stream(name)
