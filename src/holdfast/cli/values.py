"""From the text of an option to its value, with an error that says what was expected."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from holdfast.choices import check_choice
from holdfast.errors import UnknownNameError
from holdfast.files.typed import Within


class RejectedValueError(Exception):
    """A text that an option cannot take; no ValueError, so that it passes through tyro unchanged."""


def option(name: str, annotation: Any, help_text: str) -> Any:
    """The annotation of a dataclass field that tyro reads as `--name`: of that type, or None where it is left out."""
    annotation = _without_none(annotation)
    several = get_origin(annotation) is tuple
    flag = "--" + name.replace("_", "-")
    metavar, read, expected = _reader(name, get_args(annotation)[0] if several else annotation)

    def from_texts(texts: list[str]) -> Any:
        if several and not texts:
            raise RejectedValueError(f"{flag} has no value; expected {expected}, one or more.")
        values = []
        for text in texts:
            try:
                values.append(read(text))
            except UnknownNameError as error:
                raise RejectedValueError from error
            except ValueError as error:
                raise RejectedValueError(f"{flag} is {error.args[0]}; expected {expected}.") from error
        return tuple(values) if several else values[0]

    spec = PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=f"{metavar} ..." if several else metavar,
        instance_from_str=from_texts,
        is_instance=lambda value: value is None or not isinstance(value, list),
        str_from_instance=lambda value: [str(value)],
    )
    return Annotated[Any, spec, arg(help=help_text, help_behavior_hint="")]


def switch(help_text: str) -> Any:
    """The annotation of a flag that is there or not."""
    return Annotated[bool, arg(help=help_text, help_behavior_hint="")]


def positional(kind: Any, metavar: str, help_text: str) -> Any:
    """The annotation of what is typed without a flag."""
    return Annotated[Positional[kind], arg(metavar=metavar, help=help_text, help_behavior_hint="")]


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def _reader(name: str, annotation: Any) -> tuple[str, Callable[[str], Any], str]:
    """How a value of this type is named in the help, how it is read, and what is expected."""
    if get_origin(annotation) is Literal:
        return "{" + ",".join(get_args(annotation)) + "}", partial(_choice, name, get_args(annotation)), "a text"
    if get_origin(annotation) is Annotated:
        kind, within = get_args(annotation)
        metavar, read, _ = _reader(name, kind)
        low = "above 0" if kind is float else f"from {within.low:g}"
        high = f" and at most {within.high:g}" if math.isfinite(within.high) else ""
        return metavar, partial(_within, read, within), f"a {'whole ' * (kind is int)}number {low}{high}"
    return {
        int: ("INT", _whole, "a whole number"),
        float: ("FLOAT", _number, "a number, such as 0.1 or 1e-3"),
        bool: ("{yes,no}", _yes_or_no, "yes or no"),
        str: ("TEXT", str, "a text"),
    }[annotation]


def _choice(name: str, known: tuple[str, ...], text: str) -> str:
    check_choice(name, text, known)
    return text


Positive = Annotated[float, Within(1e-12, math.inf)]
"""A number above 0."""


def _within(read: Callable[[str], float], within: Within, text: str) -> float:
    value = read(text)
    if not within.low <= value <= within.high:
        raise ValueError(value)
    return value


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError(repr(text))
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(repr(text)) from error


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("yes", "true", "no", "false"):
        raise ValueError(repr(text))
    return text.lower() in ("yes", "true")
