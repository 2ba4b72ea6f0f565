"""The streams that have a name."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Annotated, Any

from holdfast.choices import check_choices
from holdfast.errors import OptionError
from holdfast.files.typed import Within
from holdfast.lab.registry import Entry, Registry, check_settings, chosen
from holdfast.lab.streams.permuted import permuted, rotated
from holdfast.lab.streams.pictures import PictureSettings
from holdfast.lab.streams.sequence import sequence
from holdfast.lab.streams.sources import AS_THEY_ARE, load_data
from holdfast.lab.streams.split import split
from holdfast.lab.streams.stream import Stream, Task
from holdfast.likelihoods.masks import Scenario


@dataclass(frozen=True)
class StreamPlan:
    """What a run asks of a stream.

    Attributes:
        name: of the stream.
        num_tasks: how many.
        scenario: what is to be told at test time.
        seed: for what is drawn at random.
        given: the data that tasks are made of; None: the stream has its own.
        sets: all data that are given, where a stream takes several.
    """

    name: str
    num_tasks: int | None
    scenario: Scenario
    seed: int
    given: Task | None = None
    sets: tuple[Task, ...] = ()

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def data(self) -> Task:
        """The data that tasks are made of.

        Raises:
            OptionError: there are none.
        """
        if self.given is None:
            raise OptionError(f"stream {self.name}: of which data? Give --data: a name, a path or module:function.")
        return self.given


@dataclass(frozen=True, kw_only=True)
class StreamEntry(Entry):
    """A sequence of tasks; `make(plan, options)` gives its `Stream`.

    Attributes:
        data: name of the data that its tasks are made of; empty: those that are given, or its own.
        several: whether the data that are given may be several, with commas between them.
        num_tasks: how many unless asked otherwise; None: as many as there can be, such as all classes make.
        scenario: unless asked otherwise.
    """

    data: str = ""
    several: bool = False
    num_tasks: int | None = None
    scenario: Scenario = "domain"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)


STREAMS: Registry[StreamEntry] = Registry("stream", StreamEntry)

register_stream = STREAMS.register


@dataclass(frozen=True, kw_only=True)
class PermutedOptions:
    """Of permuted images.

    Attributes:
        fraction: share of the pixels that a permuted stream permutes, 0..1.
    """

    fraction: Annotated[float, Within(0, 1)] = 1.0


def permuted_stream(plan: StreamPlan, options: PermutedOptions) -> Stream:
    """The inputs in another order in each task."""
    return permuted(
        plan.data,
        plan.num_tasks or 5,
        seed=plan.seed,
        fraction=options.fraction,
        scenario=plan.scenario,
        name=plan.name,
    )


def rotated_stream(plan: StreamPlan) -> Stream:
    """Images turned by 0 to 90 degrees."""
    return rotated(plan.data, plan.num_tasks or 5, scenario=plan.scenario, name=plan.name)


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Of classes that come one after the other.

    Attributes:
        classes_per_task: how many classes are new in each task.
    """

    classes_per_task: Annotated[int, Within(1, 10**6)] = 2


def split_stream(plan: StreamPlan, options: SplitOptions) -> Stream:
    """Some classes in each task."""
    return split(plan.data, options.classes_per_task, num_tasks=plan.num_tasks, scenario=plan.scenario, name=plan.name)


for _end, _data, _told, _num_tasks in (
    ("-digits", "digits", "embedded 8x8 digits", 5),
    ("-mnist", "mnist", "MNIST", 10),
    ("", "", "data of your own (--data)", 5),
):
    register_stream(
        f"permuted{_end}",
        summary=f"{_told}, the pixels in another order in each task",
        data=_data,
        num_tasks=_num_tasks,
        options=PermutedOptions,
    )(permuted_stream)
    register_stream(f"rotated{_end}", summary=f"{_told}, turned by 0 to 90 degrees", data=_data, num_tasks=_num_tasks)(
        rotated_stream
    )
    register_stream(
        f"split{_end}", summary=f"{_told}, two classes a task", data=_data, scenario="task", options=SplitOptions
    )(split_stream)


@register_stream(
    "sequence", summary="data sets of your own one after the other (--data A,B,C)", several=True, scenario="task"
)
def sequence_stream(plan: StreamPlan) -> Stream:
    """A data set a task."""
    if not plan.sets:
        raise OptionError(f"stream {plan.name}: of which data? Give --data A,B: names, paths or module:function.")
    return sequence(plan.sets, num_tasks=plan.num_tasks, scenario=plan.scenario, name=plan.name)


def given_data(
    entry: StreamEntry,
    source: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    pictures: PictureSettings = AS_THEY_ARE,
) -> tuple[Task, ...]:
    """The data that a stream is made of: of `source`, or of each of several with commas between them.

    Raises:
        OptionError, DataFileError: as `load_data`.
    """
    sources = [each.strip() for each in source.split(",")] if entry.several else [source]
    return tuple(load_data(each, data_dir=data_dir, pictures=pictures) for each in sources)


def build_stream(
    name: str,
    *,
    num_tasks: int | None = None,
    seed: int = 0,
    scenario: Scenario | None = None,
    data: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    pictures: PictureSettings = AS_THEY_ARE,
    catalog: Registry[StreamEntry] = STREAMS,
    **settings: Any,
) -> Stream:
    """The stream of a name.

    Args:
        name: one of the catalog, or "module:function" of a `StreamPlan`.
        num_tasks: default the catalog's: 5, or 10 of permuted and rotated MNIST; of split images all that their classes
            make, which is also the most.
        seed: of the permutations; rotated and split streams have nothing random.
        scenario: default the catalog's: "domain" for permuted and rotated, "task" for split images.
        data: that its tasks are made of, as `load_data` takes it; None: the stream's own.
        data_dir: where MNIST is; see `mnist`. The digits are embedded.
        pictures: how those of `data` are read.
        catalog: the streams that have a name.
        settings: values of its options.

    Raises:
        UnknownNameError: there is no stream, option of it, or scenario, of this name.
        OptionError: an option is out of its range, or has no meaning for this stream; or what was made is no `Stream`.
        DataFileError, OutputError: the data cannot be read.
    """
    entry = catalog.named(name)
    check_settings(entry, settings, kind="stream")
    if data is not None and entry.data:
        raise OptionError(f"stream {name}: its data are {entry.data}, and data={data!r} is given. Leave one out.")
    source = data or entry.data
    sets = given_data(entry, source, data_dir=data_dir, pictures=pictures) if source else ()
    plan = StreamPlan(
        name,
        entry.num_tasks if num_tasks is None else num_tasks,
        entry.scenario if scenario is None else scenario,
        seed,
        sets[0] if sets else None,
        sets,
    )
    stream = chosen(entry, settings)(plan)
    if not isinstance(stream, Stream):
        raise OptionError(f"stream {name}: made a {type(stream).__name__}; expected a holdfast.lab.Stream.")
    return stream if stream.name == name else replace(stream, name=name)
