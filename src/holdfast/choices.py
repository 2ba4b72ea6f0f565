"""Options whose value is one of a few names, or a number: what is raised for any other.

Where a name has passed one of these, the last case of a `match` on it is `assert_never`: no name chooses what it does
not mean.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from holdfast.errors import OptionError, UnknownNameError


def check_choice(what: str, value: object, choices: Iterable[object]) -> None:
    """Raise unless a value is one of the choices.

    Args:
        what: what is chosen, such as "kind of fisher".
        value: that was given.
        choices: names, and None where it may be left out.

    Raises:
        UnknownNameError: the value is none of them; the message offers the nearest.
    """
    known = tuple(choices)
    if value not in known:
        raise UnknownNameError(what, str(value), [name for name in known if isinstance(name, str)])


def check_choices(record: Any) -> None:
    """Raise unless every field of a dataclass that is annotated with a `Literal` has one of its values.

    Raises:
        UnknownNameError: a field has another value; the message names the field and offers the nearest.
    """
    for name, choices in choices_of(type(record)).items():
        check_choice(name, getattr(record, name), choices)


def check_count(option: str, value: object, *, where: str, least: int = 1, none: str = "") -> None:
    """Raise `OptionError` unless a value is a whole number >= `least`, or None where `none` says what that means."""
    if value is None and none:
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        other = f", or None for {none}" if none else ""
        raise OptionError(f"{where}: {option}={value!r}, expected a whole number >= {least}{other}.")


def check_share(option: str, value: object, *, where: str, example: float) -> None:
    """Raise `OptionError` unless a value is a finite number >= 0."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < math.inf:
        raise OptionError(f"{where}: {option}={value!r}, expected a number >= 0, such as {example:g}.")


@functools.cache
def choices_of(record: type) -> Mapping[str, tuple[object, ...]]:
    """The values that a dataclass allows for each field of `Literal` type, None among them where it is optional."""
    found = {name: _values(hint) for name, hint in get_type_hints(record).items()}
    return {name: values for name, values in found.items() if values}


def _values(hint: Any) -> tuple[object, ...]:
    """Of a `Literal`, or of one or None; nothing of any other type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = [part for part in get_args(hint) if part is not type(None)]
    if len(parts) == 1 and get_origin(parts[0]) is Literal and len(get_args(hint)) == 2:
        return (*get_args(parts[0]), None)
    return ()
