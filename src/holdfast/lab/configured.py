"""What the configurations of runs share: settings that every run of a kind has, and the options of what these name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self

from holdfast.errors import OptionError, UnknownNameError
from holdfast.files.typed import Within
from holdfast.lab.options import checked, default_of, names_of, naming
from holdfast.lab.registry import Entry, Registry, all_options, chosen, own_settings
from holdfast.lab.streams import PictureSettings, Stream, build_stream, fingerprint, given_data


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every run is to be told, of whatever kind it is.

    Attributes:
        stream: name of the task stream.
        method: name of the method.
        seed: of the stream's permutations, the initial weights, the order of batches and sampled labels.
    """

    stream: str
    method: str
    seed: Annotated[int, Within(0, 2**31 - 1)] = 0


@dataclass(frozen=True, kw_only=True)
class GivenSettings(PictureSettings, CommonSettings):
    """What runs are told whose data may be yours; see `PictureSettings`, too.

    Attributes:
        data: what the stream's tasks are made of, where it has no data of its own: a name, a path or module:function.
    """

    data: str | None = None


OF_PICTURES = names_of(PictureSettings) | {"augment"}
"""Settings of data that are pictures, which are not told where they are the usual ones."""


@dataclass(frozen=True, kw_only=True)
class Configured(GivenSettings):
    """One run: its settings, checked, and the name of its folder. A subclass says which settings there are.

    An option of what is named (the stream, the method, ...) is read as an attribute of that name, too:
    `config.strength`. What none of them has is None.

    Attributes, beside the settings:
        options: those of what is named, and of what their options name, by option.
        record: of the class: the dataclass of the settings.
        registries: likewise: of everything whose options may be settings of such a run.
        fingerprint: of the data, where they are given and not the stream's own.
    """

    fingerprint: str = ""

    options: Mapping[str, Any]
    record: ClassVar[type]
    registries: ClassVar[tuple[Registry[Any], ...]]

    def __post_init__(self) -> None:
        common = {own.name: getattr(self, own.name) for own in fields(self.record)}
        for name, value in checked(self.record, common).items():
            object.__setattr__(self, name, value)
        options: dict[str, Any] = {}
        before: list[str] = []
        for kind, entry in self.entries.items():
            own = _flat(chosen(entry, self.options))
            if twice := sorted(options.keys() & own.keys()):
                told = " or ".join(before)
                raise OptionError(f"{entry.name}: its option {twice[0]!r} is one of {told}, too. Choose another name.")
            options |= own
            before.append(f"{kind} {entry.name}")
        for name in self.options:
            if name not in options:
                raise self.foreign(name, {*common, *options})
        object.__setattr__(self, "options", MappingProxyType(options))

    @classmethod
    def named(cls, settings: Mapping[str, Any]) -> dict[str, Entry]:
        """What settings name, by setting; the method last."""
        registries = sorted(naming(cls.record).items(), key=lambda pair: pair[0] == "method")
        return {name: registry.named(settings.get(name, default_of(cls.record, name))) for name, registry in registries}

    @classmethod
    def known_options(cls) -> set[str]:
        """Every option that some registered entry has."""
        return {name for registry in cls.registries for entry in registry.values() for name in names_of(entry.options)}

    @classmethod
    def settings_of(cls, stream: str, method: str, given: Mapping[str, Any]) -> set[str]:
        """The names of the settings that a run of a stream and a method has, under those that are given."""
        entries = cls.named({**given, "stream": stream, "method": method}).values()
        return names_of(cls.record).union(*(all_options(entry, given) for entry in entries))

    @classmethod
    def protocol(cls, stream: str, method: str) -> Mapping[str, Any]:
        """The settings that a stream, and a method on it, have unless you say otherwise."""
        raise NotImplementedError

    @classmethod
    def usual(cls, stream: str, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """What `configured` sets beside what is given: the protocol's settings, of those that the run has."""
        found = cls.protocol(stream, method)
        has = cls.settings_of(stream, method, {**found, **given})
        return {name: value for name, value in found.items() if name in has}

    @classmethod
    def configured(
        cls, stream: str, method: str, *, data_dir: str | os.PathLike[str] | None = None, **settings: Any
    ) -> Self:
        """The protocol of the stream, the method's own settings on it, and yours above both.

        Args:
            stream: name of the stream.
            method: name of the method.
            data_dir: where data by name are, which `settings` may have.
            settings: by name; None leaves the protocol's value.

        Raises:
            UnknownNameError: an unknown stream, method or setting; the message offers the nearest.
            OptionError: a value out of its range, or a setting that belongs to something else.
            DataFileError: the data cannot be read.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        merged = cls.usual(stream, method, given) | given
        if "data" in given:
            source = os.fspath(given["data"])
            entry: Any = cls.named({**merged, "stream": stream, "method": method})["stream"]
            sets = given_data(entry, source, data_dir=data_dir, pictures=_pictures(merged))
            merged |= {"data": source, "fingerprint": fingerprint(*sets)}
        found = cls.from_dict({**merged, "stream": stream, "method": method})
        found.check_has(given)
        return found

    @property
    def entries(self) -> dict[str, Any]:
        """What the settings name, by setting; the method last."""
        return self.named({name: getattr(self, name) for name in naming(self.record)})

    @property
    def source(self) -> str:
        """Of the data that the stream's tasks are made of; empty where it makes its own."""
        return self.data or self.entries["stream"].data

    def build_stream(self, *, data_dir: str | os.PathLike[str] | None = None) -> Stream:
        """The stream that is learned; `data_dir` is where MNIST is.

        Raises:
            OptionError: it cannot be made under these settings.
            DataFileError: the data cannot be read.
        """
        plan = {name: getattr(self, name) for name in ("num_tasks", "seed", "scenario", "data") if name in self._own}
        own = own_settings(self.entries["stream"], self.options)
        given = {"data_dir": data_dir, "pictures": self.pictures}
        return build_stream(self.stream, catalog=naming(self.record)["stream"], **given, **plan, **own)

    @property
    def pictures(self) -> PictureSettings:
        """How pictures are read."""
        return _pictures({name: getattr(self, name) for name in names_of(PictureSettings) & self._own})

    @property
    def _own(self) -> set[str]:
        """The settings that every run of this kind has."""
        return names_of(self.record)

    def __getattr__(self, name: str) -> Any:
        """An option of what is named; None of one that they have not."""
        if name.startswith("_") or name == "options":
            raise AttributeError(name)
        options = object.__getattribute__(self, "options")
        if name not in options and name not in self.known_options():
            raise AttributeError(f"a run has no setting {name!r}")
        return options.get(name)

    def __hash__(self) -> int:
        """Of all settings."""
        return hash(json.dumps(self.to_dict(), sort_keys=True, default=str))

    def __reduce__(self) -> tuple[Any, ...]:
        """As JSON values, also in another process."""
        return type(self).from_dict, (self.to_dict(),)

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits that stand for every setting that is not its default."""
        return settings_hash(self.to_dict(), self.defaults())

    @property
    def name(self) -> str:
        """Name of the run's folder: stream-method-seed-hash."""
        return "-".join((folder_name(self.stream), folder_name(self.method), str(self.seed), self.hash))

    def modules(self) -> set[str]:
        """Those in which everything is written that the settings and their options name."""
        return set().union(*(chosen(entry, self.options).modules() for entry in self.entries.values()))

    def defaults(self) -> dict[str, Any]:
        """Setting -> its default as a JSON value, for every one that this run has."""
        found = {own.name: own.default for own in fields(self.record) if own.default is not MISSING}
        for entry in self.entries.values():
            found |= {name: default_of(record, name) for name, record in all_options(entry, self.options).items()}
        return {name: _jsonable(value) for name, value in {**found, "fingerprint": ""}.items()}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, in one level; what is not there is not the run's, or of `OF_PICTURES` the usual.

        In the order of pages: the method's options, then what all runs have, the stream's and the net's options in it.
        """
        own = {kind: all_options(entry, self.options) for kind, entry in self.entries.items()}
        found = {name: self.options[name] for name in own["method"]}
        for setting in fields(self.record):
            found[setting.name] = getattr(self, setting.name)
            after = {"num_tasks": own["stream"], "net": own.get("net", ())}.get(setting.name, ())
            found |= {name: self.options[name] for name in after}
        if self.fingerprint:
            found["fingerprint"] = self.fingerprint
        usual, told = self.defaults(), {name: _jsonable(value) for name, value in found.items()}
        return {name: value for name, value in told.items() if name not in OF_PICTURES or value != usual[name]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """From JSON values; what belongs to other methods and nets is passed over, as earlier versions wrote it, too.

        Raises:
            OptionError: an unknown setting, or a value out of its range.
        """
        common = names_of(cls) - {"options"}
        given = {name: content[name] for name in content if name in common}
        rest = {name: content[name] for name in content if name not in common}
        own = set().union(*(all_options(entry, rest) for entry in cls.named(given).values()))
        elsewhere = cls.known_options() - own
        return cls(**given, options={name: value for name, value in rest.items() if name not in elsewhere})

    def changed(self, **settings: Any) -> Self:
        """The same run with other settings.

        Raises:
            OptionError: one that the run does not have, or a value out of its range.
        """
        found = self.from_dict({**self.to_dict(), **settings})
        found.check_has(settings)
        return found

    def check_has(self, names: Iterable[str]) -> None:
        """Raise `OptionError` for a setting that this run does not have."""
        own = {*self.options, *names_of(type(self))} - {"options"}
        for name in names:
            if name not in own:
                raise self.foreign(name, own)

    def foreign(self, name: str, known: Iterable[str]) -> OptionError:
        """The error for a setting that this run does not have."""
        chosen_here = {kind: entry.name for kind, entry in self.entries.items() if kind != "method"}
        return foreign_option(name, owners(name, self.registries), chosen_here, [self.method], known)


def owners(name: str, registries: Iterable[Registry[Any]]) -> list[str]:
    """The names of the entries that have an option."""
    return [entry.name for registry in registries for entry in registry.values() if name in names_of(entry.options)]


def foreign_option(
    name: str,
    belongs_to: Sequence[str],
    chosen_here: Mapping[str, str],
    methods: Sequence[str],
    known: Iterable[str] = (),
) -> OptionError:
    """The error for a setting that a run does not have: it belongs to something else, or to nothing.

    Args:
        name: of the setting.
        belongs_to: what has it.
        chosen_here: what was chosen beside methods, by kind.
        methods: that were chosen.
        known: the settings that there are, of which the nearest is offered.
    """
    if not belongs_to:
        return UnknownNameError("setting", name, known)
    told = ", ".join(belongs_to[:6]) + (" and others" if len(belongs_to) > 6 else "")
    here = ", ".join(f"{kind} {entry}" for kind, entry in chosen_here.items())
    return OptionError(
        f"{name} has no effect with {here} and {', '.join(methods) or 'no method'}; it belongs to {told}."
    )


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


def _pictures(settings: Mapping[str, Any]) -> PictureSettings:
    own = {name: value for name, value in settings.items() if name in names_of(PictureSettings)}
    return PictureSettings(**checked(PictureSettings, own))


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _flat(choice: Any) -> dict[str, Any]:
    found = {own.name: getattr(choice.options, own.name) for own in fields(choice.options)}
    for part in choice.parts.values():
        found |= _flat(part)
    return found
