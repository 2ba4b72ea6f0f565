"""What is chosen by its name, and the options that belong to the choice.

An entry is a function or a class with a frozen dataclass of options: its fields are the flags of the command line, what
is checked, what the help says and what a run's record holds. An option may itself name an entry of a registry
(`Annotated[str, OneOf(NETS)]`), whose options then belong to the choice, too.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, ClassVar, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from holdfast.choices import check_choices
from holdfast.errors import HoldfastError, OptionError, UnknownNameError
from holdfast.files.typed import Within

Made = TypeVar("Made")


FLAGS = frozenset(
    (
        "stream",
        "method",
        "seed",
        "methods",
        "strengths",
        "optimizers",
        "lrs",
        "seeds",
        "sampler",
        "trials",
        "refine",
        "prune",
        "storage",
        "jobs",
        "output",
        "device",
        "data_dir",
        "plugin",
        "tensorboard",
        "quiet",
        "help",
    )
)
"""Flags of the commands that take options, whatever is run."""

RESERVED = FLAGS | frozenset(
    (
        "data",
        "scenario",
        "num_tasks",
        "net",
        "optimizer",
        "lr",
        "weight_decay",
        "schedule",
        "fresh_optimizer",
        "epochs",
        "iterations",
        "batch_size",
        "clip",
        "mask",
        "importance_data",
        "importance_examples",
        "fingerprint",
        "options",
    )
)
"""Names that options may not have: settings of every run, and flags of the commands that take them."""


@dataclass(frozen=True)
class NoOptions:
    """Nothing is left open."""


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


_PLACES = ("ceiling", "", "floor")


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
        name = str(name)
        if name not in self._found and ":" in name:
            self.add(self._foreign(name))
        if name not in self._found:
            raise UnknownNameError(self.kind, name, self._found)
        return self._found[name]

    def _foreign(self, name: str) -> Any:
        make = imported(name, what=self.kind)
        if not callable(make):
            raise OptionError(f"{self.kind} {name}: a {type(make).__name__}; expected a function or a class.")
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

    def __hash__(self) -> int:
        """Of this one."""
        return id(self)


@dataclass(frozen=True)
class OneOf:
    """Marks an option that names an entry, in an `Annotated` type."""

    registry: Registry[Any]


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


def default_of(record: type, name: str) -> Any:
    """Of a field of a dataclass."""
    return next(own.default for own in fields(record) if own.name == name)


def names_of(record: type) -> set[str]:
    """The fields of a dataclass."""
    return {own.name for own in fields(record)}


@cache
def naming(record: type) -> Mapping[str, Registry[Any]]:
    """The fields of a dataclass that name entries, and of which registry."""
    return {
        name: each.registry for name, (_, marks) in _hints(record).items() for each in marks if isinstance(each, OneOf)
    }


def checked(record: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as a dataclass's fields take them: numbers in their range, whole ones made floats where due.

    Raises:
        OptionError: a value is out of its range.
    """
    found = dict(settings)
    for name, value in settings.items():
        kind, marks = _hints(record)[name]
        within = next((each for each in marks if isinstance(each, Within)), None)
        optional = type(None) in get_args(kind)
        bare = next((part for part in get_args(kind) if part is not type(None)), kind) if optional else kind
        if (value is None and optional) or bare not in (int, float, bool, str):
            continue
        found[name] = _value(name, value, bare, within)
    check_choices(record(**found))
    return found


def _value(name: str, value: Any, kind: type, within: Within | None) -> Any:
    if kind in (bool, str):
        if not isinstance(value, kind):
            raise OptionError(f"{name} is {value!r}; expected {'yes or no' if kind is bool else 'a text'}.")
        return value
    low, high = (within.low, within.high) if within else (-float("inf"), float("inf"))
    right = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not (right and low <= value <= high):
        number = "whole number" if kind is int else "number"
        raise OptionError(f"{name} is {value!r}; expected a {number} from {low:g} to {high:g}.")
    return kind(value)  # 15 and 15.0 are one setting


@cache
def _hints(record: type) -> Mapping[str, tuple[Any, tuple[Any, ...]]]:
    """Field -> its type, and what stands beside it in an `Annotated`, also of one that may be None."""
    found = {}
    for name, hint in get_type_hints(record, include_extras=True).items():
        kind, marks = _bare(hint)
        if get_origin(kind) in (Union, UnionType):
            inner = [_bare(part) for part in get_args(kind)]
            marks += tuple(mark for _, own in inner for mark in own)
            kind = Union[tuple(part for part, _ in inner)]  # noqa: UP007  made at run time
        found[name] = (kind, marks)
    return found


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def combined(name: str, *records: type) -> type:
    """One dataclass with the fields of several.

    Raises:
        OptionError: two of them have a field of the same name.
    """
    seen: dict[str, type] = {}
    for record in records:
        for own in fields(record):
            if seen.setdefault(own.name, record) is not record:
                raise OptionError(f"{name}: both {seen[own.name].__name__} and {record.__name__} have {own.name!r}.")
    bases = tuple(record for record in records if record is not NoOptions)
    if len(bases) < 2:
        return bases[0] if bases else NoOptions
    return make_dataclass(name, [], bases=bases, frozen=True, kw_only=True)


def check_takes(make: Callable[..., Any], given: Sequence[Any], *, what: str) -> None:
    """Raise `OptionError` unless a function or class can be called with these arguments."""
    try:
        inspect.signature(make).bind(*given)
    except TypeError as error:
        kinds = ", ".join(type(each).__name__ for each in given) or "nothing"
        raise OptionError(f"{what}: {error}; expected one that is called with ({kinds}).") from error
    except ValueError:  # it tells no signature
        return


def imported(text: str, *, what: str) -> Any:
    """What "module:attribute" names; a module of the working folder is found, too.

    Raises:
        OptionError: it cannot be imported.
    """
    module, _, attribute = text.partition(":")
    here = os.getcwd()
    sys.path.append(here)
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except HoldfastError:
        raise
    except Exception as error:
        raise OptionError(
            f"{what} {text!r} cannot be imported: {type(error).__name__}: {error}. Expected module:name, of a module "
            "that can be imported here."
        ) from error
    finally:
        sys.path.remove(here)


def source_of(module: str) -> str:
    """Sixteen hexadecimal digits that stand for the source of a module; empty where it has no file.

    Of a package that is all of its files, of a single file that and those beside it that it imports.
    """
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is None or not Path(path).is_file():
        return ""
    depth = module.count(".")
    files = sorted(Path(path).parents[depth - 1].rglob("*.py")) if depth else sorted(_with_imports(Path(path), set()))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _with_imports(path: Path, found: set[Path]) -> set[Path]:
    """A file, and those beside it that it imports, and so on."""
    found.add(path)
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                beside = path.parent / f"{name.partition('.')[0]}.py"
                if beside.is_file() and beside not in found:
                    _with_imports(beside, found)
    return found
