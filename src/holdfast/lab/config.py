"""Everything that decides the figures of a run, in one frozen record."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Annotated, Any, Literal

from holdfast.errors import OptionError, UnknownNameError
from holdfast.files.typed import Within
from holdfast.lab.methods import METHODS
from holdfast.lab.methods.dgr import GENERATORS
from holdfast.lab.methods.pairs import check_strength
from holdfast.lab.methods.registry import MethodEntry
from holdfast.lab.options import OneOf, checked, default_of
from holdfast.lab.protocols import defaults_of
from holdfast.lab.registry import Entry, Registry, all_options, chosen
from holdfast.lab.streams import STREAMS, StreamEntry, fingerprint, load_data
from holdfast.lab.training import NETS, OptimizerName, Schedule
from holdfast.likelihoods.masks import Mask, Scenario


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every run is to be told, whatever its stream, network and method.

    Attributes:
        stream: name of the task stream.
        method: name of the method.
        seed: of the stream's permutations, the initial weights, the order of batches and sampled labels.
        data: what the stream's tasks are made of, where it has no data of its own: a name, a path or module:function.
        scenario: what is to be told at test time: "task", "domain" or "class"; None: the stream's own.
        num_tasks: how many tasks; None: the stream's own number.
        net: name of the network, or module:function of (input_shape, outputs).
        optimizer: "sgd", "momentum" (0.9), "nesterov" (0.9), "adam" or "adamw".
        lr: learning rate.
        weight_decay: as the optimizer has it.
        schedule: of the learning rate within a task: "constant" or "cosine" (down to zero).
        fresh_optimizer: a new optimizer for every task, or one for all.
        epochs: passes over a task's training data; ignored where iterations is given.
        iterations: optimizer steps a task, in place of epochs.
        batch_size: examples a step.
        clip: gradients are scaled down to this norm; None: they are not.
        mask: output columns in the loss: "task" (those of the task: one head a task), "seen", or "all".
        importance_data: a task is closed, and its importance measured, on "validation" or "train" examples.
        importance_examples: on so many of them; None: all.
    """

    stream: Annotated[str, OneOf(STREAMS)]
    method: Annotated[str, OneOf(METHODS)]
    seed: Annotated[int, Within(0, 2**31 - 1)] = 0
    data: str | None = None
    scenario: Scenario | None = None
    num_tasks: Annotated[int, Within(1, 1000)] | None = None
    net: Annotated[str, OneOf(NETS)] = "mlp"
    optimizer: OptimizerName = "sgd"
    lr: Annotated[float, Within(0, 1e6)] = 0.1
    weight_decay: Annotated[float, Within(0, 1e6)] = 0.0
    schedule: Schedule = "constant"
    fresh_optimizer: bool = True
    epochs: Annotated[int, Within(1, 10**6)] = 4
    iterations: Annotated[int, Within(1, 10**9)] | None = None
    batch_size: Annotated[int, Within(1, 10**9)] = 100
    clip: Annotated[float, Within(1e-12, math.inf)] | None = None
    mask: Mask | None = None
    importance_data: Literal["validation", "train"] = "validation"
    importance_examples: Annotated[int, Within(1, 10**9)] | None = None


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunSettings):
    """One run: a stream, a method, a seed, and every setting. Make one with `configure`.

    An option of the stream, the net or the method is read as an attribute of that name, too: `config.strength`. What
    none of them has is None.

    Attributes, beside those of `RunSettings`:
        fingerprint: of the data, where they are given and not the stream's own.
        options: those of the stream, the net, the method and what the method's name, by option.
    """

    fingerprint: str = ""
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        common = {own.name: getattr(self, own.name) for own in fields(RunSettings)}
        for name, value in checked(RunSettings, common).items():
            object.__setattr__(self, name, value)
        options: dict[str, Any] = {}
        for entry in self._entries:
            own = _flat(chosen(entry, self.options))
            if twice := sorted(options.keys() & own.keys()):
                raise OptionError(
                    f"{entry.name}: its option {twice[0]!r} is one of stream {self.stream} or net {self.net}, "
                    "too. Choose another name."
                )
            options |= own
        for name in self.options:
            if name not in options:
                raise foreign_option(name, self.stream, self.net, [self.method], {*common, *options})
        object.__setattr__(self, "options", MappingProxyType(options))
        if METHODS.named(options.get("hold") or self.method).holds_weights:
            check_strength(self.method, options)

    @property
    def _entries(self) -> tuple[StreamEntry, Entry, MethodEntry]:
        return STREAMS.named(self.stream), NETS.named(self.net), METHODS.named(self.method)

    def __getattr__(self, name: str) -> Any:
        """An option of the stream, the net or the method; None of one that they have not."""
        if name.startswith("_") or name == "options":
            raise AttributeError(name)
        options = object.__getattribute__(self, "options")
        if name not in options and name not in known_options():
            raise AttributeError(f"a run has no setting {name!r}")
        return options.get(name)

    def __hash__(self) -> int:
        """Of all settings."""
        return hash(json.dumps(self.to_dict(), sort_keys=True, default=str))

    def __reduce__(self) -> tuple[Any, ...]:
        """As JSON values, also in another process."""
        return RunConfig.from_dict, (self.to_dict(),)

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits that stand for every setting that is not its default."""
        return settings_hash(self.to_dict(), self.defaults())

    @property
    def name(self) -> str:
        """Name of the run's folder: stream-method-seed-hash."""
        return "-".join((folder_name(self.stream), folder_name(self.method), str(self.seed), self.hash))

    def modules(self) -> set[str]:
        """Those in which its stream, net and method are written, and what the method's options name."""
        return set().union(*(chosen(entry, self.options).modules() for entry in self._entries))

    def defaults(self) -> dict[str, Any]:
        """Setting -> its default as a JSON value, for every one that this run has."""
        found = {own.name: own.default for own in fields(RunSettings) if own.default is not MISSING}
        for entry in self._entries:
            found |= {name: default_of(record, name) for name, record in all_options(entry, self.options).items()}
        return {name: _jsonable(value) for name, value in (found | {"fingerprint": ""}).items()}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, in one level; what is not there is not the run's.

        In the order of pages: the method's options, then what all runs have, the stream's and the net's options in it.
        """
        stream, net, method = (all_options(entry, self.options) for entry in self._entries)
        found = {name: self.options[name] for name in method}
        for own in fields(RunSettings):
            found[own.name] = getattr(self, own.name)
            after = {"num_tasks": stream, "net": net}.get(own.name, ())
            found |= {name: self.options[name] for name in after}
        found |= {"fingerprint": self.fingerprint} if self.fingerprint else {}
        return {name: _jsonable(value) for name, value in found.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunConfig:
        """From JSON values; what belongs to other methods and nets is passed over, as earlier versions wrote it, too.

        Raises:
            OptionError: an unknown setting, or a value out of its range.
        """
        common = {own.name for own in fields(RunSettings)} | {"fingerprint"}
        elsewhere = known_options() - settings_of(content["stream"], content["method"], content)
        given = {name: value for name, value in content.items() if name in common}
        options = {name: value for name, value in content.items() if name not in common | elsewhere}
        return cls(**given, options=options)

    def changed(self, **settings: Any) -> RunConfig:
        """The same run with other settings.

        Raises:
            OptionError: one that the run does not have, or a value out of its range.
        """
        found = RunConfig.from_dict({**self.to_dict(), **settings})
        found.check_has(settings)
        return found

    def check_has(self, names: Iterable[str]) -> None:
        """Raise `OptionError` for a setting that this run does not have."""
        own = {*self.to_dict(), "fingerprint"}
        for name in names:
            if name not in own:
                raise foreign_option(name, self.stream, self.net, [self.method], own)


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _flat(choice: Any) -> dict[str, Any]:
    found = {own.name: getattr(choice.options, own.name) for own in fields(choice.options)}
    for part in choice.parts.values():
        found |= _flat(part)
    return found


BUDGET = 0.05
"""Nats, of methods that can keep a budget, where neither you nor the protocol has a strength."""

REGISTRIES: tuple[Registry[Any], ...] = (METHODS, NETS, STREAMS, GENERATORS)
"""Of everything whose options may be settings of a run."""


def known_options(registries: Iterable[Registry[Any]] = REGISTRIES) -> set[str]:
    """Every option that some registered entry has."""
    return {own.name for registry in registries for entry in registry.values() for own in fields(entry.options)}


def foreign_option(name: str, stream: str, net: str, methods: Sequence[str], known: Iterable[str] = ()) -> OptionError:
    """The error for a setting that a run does not have: it belongs to something else, or to nothing.

    Args:
        name: of the setting.
        stream: of the run.
        net: likewise.
        methods: likewise.
        known: the settings that it has, of which the nearest is offered.
    """
    entries = [entry for registry in REGISTRIES for entry in registry.values()]
    owners = [entry.name for entry in entries if name in {own.name for own in fields(entry.options)}]
    if not owners:
        return UnknownNameError("setting", name, known)
    told = ", ".join(owners[:6]) + (" and others" if len(owners) > 6 else "")
    here = ", ".join(methods) or "no method"
    return OptionError(f"{name} has no effect with stream {stream}, net {net} and {here}; it belongs to {told}.")


def folder_name(text: str) -> str:
    """A name without what a file system refuses."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in text)


def settings_hash(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for every setting that is not its default.

    So that a setting which a later version adds leaves the names of older runs as they are. Of data that are given the
    fingerprint stands for their place.
    """
    told = {name: value for name, value in settings.items() if name not in defaults or value != defaults[name]}
    if told.get("fingerprint"):
        told.pop("data", None)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def configure(
    stream: str, method: str, *, data_dir: str | os.PathLike[str] | None = None, **settings: Any
) -> RunConfig:
    """A run's configuration: the protocol of the stream, the method's own settings on it, and yours above both.

    Args:
        stream: name of the stream.
        method: name of the method.
        data_dir: where data by name are; see `holdfast.lab.load_data`.
        settings: those of `RunSettings`, and options of the stream, the net and the method; None leaves the protocol's
            value. A budget takes the strength's place, and is kept at each step. `data` are read, for their
            fingerprint.

    Raises:
        UnknownNameError: an unknown stream, method or setting; the message offers the nearest.
        OptionError: a value out of its range, or a setting that belongs to something else.
        DataFileError: the data cannot be read.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    merged = default_settings(stream, method, given) | given
    if "data" in given:
        merged["fingerprint"] = fingerprint(load_data(given["data"], data_dir=data_dir))
        merged["data"] = os.fspath(given["data"])
    found = RunConfig.from_dict({**merged, "stream": stream, "method": method})
    found.check_has(given)
    return found


def settings_of(stream: str, method: str, given: Mapping[str, Any]) -> set[str]:
    """The names of the settings that a run of a stream and a method has, under those that are given."""
    net = NETS.named(given.get("net", default_of(RunSettings, "net")))
    entries = (STREAMS.named(stream), net, METHODS.named(method))
    return {own.name for own in fields(RunSettings)}.union(*(all_options(entry, given) for entry in entries))


def default_settings(stream: str, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What `configure` sets beside what is given: the protocol's settings, of those that the run has."""
    usual = defaults_of(stream, method)
    has = settings_of(stream, method, {**usual, **given})
    found = {name: value for name, value in usual.items() if name in has}
    if "budget" not in has or given.get("strength") is not None:
        return found
    if "budget" in given or found.get("strength") is None:  # a budget is kept at each step
        found |= {"strength": None, "budget": BUDGET, "pull_every": 1}
    return found
