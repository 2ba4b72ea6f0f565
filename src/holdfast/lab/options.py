"""The options of what is chosen by its name: a frozen dataclass, whose fields say what is checked.

An option may itself name an entry of a registry (`Annotated[str, OneOf(NETS)]`), whose options then belong to the
choice, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, make_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from holdfast.choices import check_choices
from holdfast.errors import OptionError
from holdfast.files.typed import typed


@dataclass(frozen=True)
class NoOptions:
    """Nothing is left open."""


@dataclass(frozen=True)
class OneOf:
    """Marks an option that names an entry of a registry, in an `Annotated` type."""

    registry: Any


def default_of(record: type, name: str) -> Any:
    """Of a field of a dataclass."""
    return next(own.default for own in fields(record) if own.name == name)


def names_of(record: type) -> set[str]:
    """The fields of a dataclass."""
    return {own.name for own in fields(record)}


@cache
def naming(record: type) -> Mapping[str, Any]:
    """The fields of a dataclass that name entries, and of which registry; also those that may be None."""
    return {
        name: mark.registry
        for name, hint in _hints(record).items()
        for part in (hint, *get_args(hint))
        for mark in getattr(part, "__metadata__", ())
        if isinstance(mark, OneOf)
    }


def checked(record: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as a dataclass's fields take them: numbers in their range, whole ones made floats where due.

    Raises:
        OptionError: a value is out of its range.
    """
    found, mistakes = typed(settings, {name: _hints(record)[name] for name in settings})
    if mistakes:
        raise OptionError(f"{mistakes[0]}.".replace(", expected", "; expected"))
    check_choices(record(**found))
    return found


@cache
def _hints(record: type) -> Mapping[str, Any]:
    return get_type_hints(record, include_extras=True)


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
