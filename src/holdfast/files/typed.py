"""Content of a JSON file by the type annotations of what is to be made of it."""

from __future__ import annotations

import math
import reprlib
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

MOST_TOLD = 3
"""Of the mistakes in a file."""
MOST_NESTED = 20
"""Lists and objects inside each other where anything may stand."""


@dataclass(frozen=True)
class Within:
    """The range of a number, both ends allowed; in an `Annotated` type."""

    low: float
    high: float


Fraction = Annotated[float, Within(-1e-9, 1 + 1e-9)]
"""0..1; a mean may be off by what rounding takes."""
Change = Annotated[float, Within(-1 - 1e-9, 1 + 1e-9)]
"""A difference of fractions."""
Amount = Annotated[float, Within(0, 1e18)]
"""Not negative."""
Count = Annotated[int, Within(0, 2**63 - 1)]
"""A whole number that is not negative."""

_ANY = {int: Within(-(2**63), 2**63 - 1), float: Within(-1e300, 1e300)}


def typed(
    content: Mapping[str, Any], hints: Mapping[str, Any], *, optional: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """What of the content has a hint, whole numbers made floats where a float is to be.

    Args:
        content: JSON values by name.
        hints: name -> str, bool, int, float, list[...], dict[str, ...], Any, one of them or None, or a number
            `Annotated` with its range; a value of another type is taken as it is.
        optional: names that may be missing.

    Returns:
        The values, and one text for each mistake: where, what was found, what was expected.
    """
    lacking = [name for name in hints if name not in content and name not in optional]
    mistakes = [f"it lacks {', '.join(lacking)}"] if lacking else []
    found = {name: _typed(name, content[name], hint, mistakes) for name, hint in hints.items() if name in content}
    return found, mistakes


def listed_mistakes(mistakes: Collection[str]) -> str:
    """The first mistakes in a line, and how many more there are."""
    first = list(mistakes)[:MOST_TOLD]
    more = len(mistakes) - len(first)
    return "; ".join(first) + (f"; and {more} more" if more else "")


def _typed(where: str, value: Any, hint: Any, mistakes: list[str]) -> Any:
    within: Within | None = None
    if get_origin(hint) is Annotated:
        hint, within = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (part for part in get_args(hint) if part is not type(None))
        return _typed(where, value, hint, mistakes)
    if hint is Any:
        return _anything(where, value, mistakes, depth=0)
    kind = get_origin(hint) or hint
    if kind in (int, float):
        return _number(where, value, kind, within or _ANY[kind], mistakes)
    if kind not in _NAMES:  # of a `Literal` or a tuple the owner of the record checks the value
        return value
    if not isinstance(value, kind):
        mistakes.append(f"{where} is {reprlib.repr(value)}, expected {_NAMES[kind]}")
        return value
    if kind is list:
        return [_typed(f"{where}[{i}]", part, get_args(hint)[0], mistakes) for i, part in enumerate(value)]
    if kind is dict:
        for name in value:
            _text(f"a name in {where}", name, mistakes)
        inner = get_args(hint)[1]
        return {name: _typed(f"{where}[{name!r:.40}]", part, inner, mistakes) for name, part in value.items()}
    return _text(where, value, mistakes) if kind is str else value


def _number(where: str, value: Any, kind: type, within: Within, mistakes: list[str]) -> Any:
    right = isinstance(value, int | (float if kind is float else int)) and not isinstance(value, bool)
    if right and within.low <= value <= within.high:
        return kind(value)
    what = "a whole number" if kind is int else "a number"
    low, high = (0 if -1e-6 < end < 0 else end for end in (within.low, within.high))
    mistakes.append(f"{where} is {reprlib.repr(value)}, expected {what} from {low:.6g} to {high:.6g}")
    return value


def _text(where: str, value: str, mistakes: list[str]) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        mistakes.append(f"{where} is {reprlib.repr(value)}, expected text of Unicode characters")
    return value


def _anything(where: str, value: Any, mistakes: list[str], *, depth: int) -> Any:
    """Any JSON value that can be shown and written again: no half characters, no number without end, not too deep."""
    if depth > MOST_NESTED:
        mistakes.append(f"{where} is nested more than {MOST_NESTED} times")
    elif isinstance(value, str):
        _text(where, value, mistakes)
    elif isinstance(value, int) and not isinstance(value, bool):
        _number(where, value, int, _ANY[int], mistakes)
    elif isinstance(value, float) and math.isnan(value):
        mistakes.append(f"{where} is nan, expected a number")
    elif isinstance(value, list):
        for part in value:
            _anything(where, part, mistakes, depth=depth + 1)
    elif isinstance(value, dict):
        for name, part in value.items():
            _text(f"a name in {where}", name, mistakes)
            _anything(where, part, mistakes, depth=depth + 1)
    return value


_NAMES = {str: "a text", bool: "yes or no", list: "a list", dict: "an object"}
