"""The streams that have a name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, assert_never
from weakref import WeakValueDictionary

from holdfast.choices import check_choices
from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.streams.digits import digits
from holdfast.lab.streams.mnist import mnist
from holdfast.lab.streams.permuted import permuted, rotated
from holdfast.lab.streams.split import split
from holdfast.lab.streams.stream import Stream, Task
from holdfast.likelihoods.masks import Scenario


@dataclass(frozen=True)
class StreamSpec:
    """What a name of the catalog stands for.

    Attributes:
        description: one line for people.
        images: where the images come from.
        kind: what makes its tasks.
        num_tasks: how many unless asked otherwise.
        scenario: unless asked otherwise.
    """

    description: str
    images: Literal["digits", "mnist"]
    kind: Literal["permuted", "rotated", "split"]
    num_tasks: int
    scenario: Scenario

    def __post_init__(self) -> None:
        check_choices(self)


STREAMS: dict[str, StreamSpec] = {
    "permuted-digits": StreamSpec(
        "embedded 8x8 digits, the pixels in another order in each task", "digits", "permuted", 5, "domain"
    ),
    "rotated-digits": StreamSpec("embedded 8x8 digits, turned by 0 to 90 degrees", "digits", "rotated", 5, "domain"),
    "split-digits": StreamSpec("embedded 8x8 digits, two classes a task", "digits", "split", 5, "task"),
    "permuted-mnist": StreamSpec("MNIST, the pixels in another order in each task", "mnist", "permuted", 10, "domain"),
    "rotated-mnist": StreamSpec("MNIST, turned by 0 to 90 degrees", "mnist", "rotated", 10, "domain"),
    "split-mnist": StreamSpec("MNIST, two classes a task", "mnist", "split", 5, "task"),
}


def build_stream(
    name: str,
    *,
    num_tasks: int | None = None,
    seed: int = 0,
    scenario: Scenario | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    fraction: float = 1.0,
) -> Stream:
    """The stream of a name.

    Args:
        name: one of `STREAMS`.
        num_tasks: default the catalog's: 5, or 10 of permuted and rotated MNIST; at most 5 of split images.
        seed: of the permutations; rotated and split streams have nothing random.
        scenario: default the catalog's: "domain" for permuted and rotated, "task" for split images.
        data_dir: where MNIST is; see `mnist`. The digits are embedded.
        fraction: of the pixels that change places; of permuted streams only.

    Raises:
        UnknownNameError: there is no stream, or no scenario, of this name.
        OptionError: an option is out of its range, or has no meaning for this stream.
        DataFileError, OutputError: the files of MNIST; see `mnist`.
    """
    spec = _spec(name)
    if fraction != 1.0 and spec.kind != "permuted":
        raise OptionError(f"{name}: fraction={fraction} has no meaning here: only permuted streams permute pixels.")
    num_tasks = spec.num_tasks if num_tasks is None else num_tasks
    scenario = spec.scenario if scenario is None else scenario
    images = load_images(name, data_dir=data_dir)
    match spec.kind:
        case "permuted":
            return permuted(images, num_tasks, seed=seed, fraction=fraction, scenario=scenario, name=name)
        case "rotated":
            return rotated(images, num_tasks, scenario=scenario, name=name)
        case "split":
            return split(images, num_tasks=num_tasks, scenario=scenario, name=name)
        case _:
            assert_never(spec.kind)


_loaded: WeakValueDictionary[tuple[str, str], Task] = WeakValueDictionary()


def load_images(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Task:
    """The images that a stream of the catalog is made of; those that someone still holds are not read again.

    Raises:
        UnknownNameError: there is no stream of this name.
        DataFileError, OutputError: the files of MNIST; see `mnist`.
    """
    kind = _spec(name).images
    place = str(data_dir or os.environ.get("HOLDFAST_DATA")) if kind == "mnist" else ""
    images = _loaded.get((kind, place))
    if images is None:
        match kind:
            case "digits":
                images = digits()
            case "mnist":
                images = mnist(data_dir)
            case _:
                assert_never(kind)
        _loaded[kind, place] = images
    return images


def _spec(name: str) -> StreamSpec:
    if name not in STREAMS:
        raise UnknownNameError("stream", name, STREAMS)
    return STREAMS[name]
