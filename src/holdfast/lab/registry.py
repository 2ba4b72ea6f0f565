"""What is chosen by its name, and the options that belong to the choice.

An entry is a function or a class with a frozen dataclass of options: its fields are the flags of the command line, what
is checked, what the help says and what a run's record holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.importing import check_takes, imported
from holdfast.lab.options import NoOptions, checked, default_of, naming

Made = TypeVar("Made")


FLAGS = frozenset(
    (
        *("stream", "method", "seed", "methods", "strengths", "optimizers", "lrs", "seeds", "sampler", "trials"),
        *("refine", "prune", "storage", "jobs", "output", "device", "data_dir", "plugin", "tensorboard", "quiet"),
        "help",
    )
)
"""Flags of the commands that take options, whatever is run."""

RESERVED = FLAGS | frozenset(
    (
        *("data", "scenario", "num_tasks", "net", "optimizer", "lr", "weight_decay", "schedule", "fresh_optimizer"),
        *("epochs", "iterations", "batch_size", "clip", "mask", "importance_data", "importance_examples"),
        *("fingerprint", "options", "side", "colors", "unreadable", "augment"),
    )
)
"""Names that options may not have: settings of every run, and flags of the commands that take them."""


_PLACES = ("ceiling", "", "floor")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a name stands for.

    Attributes:
        name: as it is typed.
        make: makes it. Called as its registry says, with the options as the last argument where it has any.
        label: as tables and pictures show it; left out: the name.
        summary: one line for people.
        options: a frozen dataclass in which every field has a default.
        place: "ceiling" and "floor" stand first and last wherever entries are listed.
        style: of its lines in pictures: "color" as matplotlib takes it, "linestyle", "marker"; what is left out is
            chosen.
        reserved: of the class: names that its options may not have.
    """

    name: str
    make: Callable[..., Any]
    label: str = ""
    summary: str = ""
    options: type = NoOptions
    place: str = ""
    style: Mapping[str, Any] = field(default_factory=dict)
    reserved: ClassVar[frozenset[str]] = RESERVED

    def __post_init__(self) -> None:
        if not callable(self.make):
            raise OptionError(f"{self.name}: a {type(self.make).__name__}; expected a function or a class.")
        if self.place not in _PLACES:
            raise OptionError(f"{self.name}: place is {self.place!r}; expected ceiling or floor, or none.")
        if not is_dataclass(self.options):
            raise OptionError(f"{self.name}: options is {self.options!r}; expected a frozen dataclass.")
        bare = [own.name for own in fields(self.options) if own.default is MISSING]
        if bare:
            raise OptionError(f"{self.name}: the options {', '.join(bare)} have no default; expected one each.")
        taken = [own.name for own in fields(self.options) if own.name in self.reserved]
        if taken:
            raise OptionError(f"{self.name}: an option is called {taken[0]}, as every run's is. Choose another name.")
        object.__setattr__(self, "label", self.label or self.name)

    def __call__(self, *args: Any, options: Any = None) -> Any:
        """Make it.

        Raises:
            OptionError: it does not take what its registry gives.
        """
        given = args if self.options is NoOptions else (*args, options or self.options())
        check_takes(self.make, given, what=self.name)
        return self.make(*given)

    @property
    def modules(self) -> frozenset[str]:
        """In which it is written."""
        return frozenset(getattr(self.make, "modules", None) or (getattr(self.make, "__module__", ""),))


class Registry(Mapping[str, Made], Generic[Made]):
    """Names and what they stand for, in the order in which they are listed.

    Args:
        kind: what the names are of, such as "method".
        entry: makes an entry; takes what `Entry` does, and perhaps more.
    """

    def __init__(self, kind: str, entry: Callable[..., Made]) -> None:
        self.kind = kind
        self._entry = entry
        self._found: dict[str, Any] = {}

    def register(self, name: str, **traits: Any) -> Callable[[Any], Any]:
        """A decorator that gives a function or a class a name; `traits` are those of the entry.

        Raises:
            OptionError: the name stands for something else.
        """

        def registered(make: Any) -> Any:
            self.add(self._entry(name=name, make=make, **traits))
            return make

        return registered

    def add(self, entry: Any) -> None:
        """Add an entry; one of the same module takes the older one's place, as when a module is reloaded."""
        there = self._found.get(entry.name)
        if there is not None and there.modules != entry.modules:
            told = ", ".join(sorted(there.modules))
            raise OptionError(f"{self.kind} {entry.name!r} is registered by {told}. Choose another name.")
        self._found[entry.name] = entry

    def named(self, name: str) -> Made:
        """What a name stands for; `module:attribute` stands for itself, and is imported.

        Raises:
            UnknownNameError: there is no such name; the message offers the nearest.
            OptionError: it cannot be imported.
        """
        if not isinstance(name, str):
            raise OptionError(f"{self.kind} is {name!r:.80}; expected a name. Register it, or give 'module:name'.")
        if name not in self._found and ":" in name:
            self.add(self._foreign(name))
        if name not in self._found:
            raise UnknownNameError(self.kind, name, self._found)
        return self._found[name]

    def _foreign(self, name: str) -> Any:
        make = imported(name, what=self.kind)
        return self._entry(name=name, make=make, options=getattr(make, "Options", NoOptions))

    def __getitem__(self, name: str) -> Made:
        """The entry of a registered name."""
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        """The names, from the ceiling to the floor."""
        return iter(sorted(self._found, key=lambda name: _PLACES.index(self._found[name].place)))

    def __len__(self) -> int:
        """How many names there are."""
        return len(self._found)

    def __eq__(self, other: object) -> bool:
        """Whether it is the same one."""
        return self is other

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]  # by which an option's type is looked up


@dataclass(frozen=True)
class Selection:
    """An entry with its options.

    Attributes:
        entry: which.
        options: an instance of its dataclass.
        parts: by option, the entries that these name.
    """

    entry: Any
    options: Any
    parts: Mapping[str, Selection]

    def __call__(self, *args: Any) -> Any:
        """Make it."""
        return self.entry(*args, options=self.options)

    def modules(self) -> set[str]:
        """Those of everything that was chosen."""
        return set(self.entry.modules).union(*(part.modules() for part in self.parts.values()))


def chosen(entry: Any, settings: Mapping[str, Any]) -> Selection:
    """An entry with the options that settings give it, and with those that it names.

    Args:
        entry: which.
        settings: values by option; what is left out has its default, and what belongs elsewhere is passed over.

    Raises:
        UnknownNameError, OptionError: a value that the option cannot take.
    """
    own = {name: settings[name] for name in settings if name in {each.name for each in fields(entry.options)}}
    options = entry.options(**checked(entry.options, own))
    parts = {
        name: chosen(registry.named(text), settings)
        for name, registry in naming(entry.options).items()
        if (text := getattr(options, name)) is not None
    }
    return Selection(entry, options, MappingProxyType(parts))


def own_settings(entry: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings those that are options of an entry, or of what its options name."""
    own = all_options(entry, settings)
    return {name: value for name, value in settings.items() if name in own}


def check_settings(entry: Any, settings: Mapping[str, Any], *, kind: str) -> None:
    """Raise `UnknownNameError` for a setting that is no option of an entry."""
    own = all_options(entry, settings)
    for name in settings:
        if name not in own:
            raise UnknownNameError(f"option of {kind} {entry.name}:", name, own)


def all_options(entry: Any, settings: Mapping[str, Any]) -> dict[str, type]:
    """Option -> the dataclass it is a field of, for an entry and everything that its options name under settings."""
    found = {own.name: entry.options for own in fields(entry.options)}
    for name, registry in naming(entry.options).items():
        text = settings.get(name, default_of(entry.options, name))
        if text is not None:
            found |= {
                own: kind for own, kind in all_options(registry.named(text), settings).items() if own not in found
            }
    return found
