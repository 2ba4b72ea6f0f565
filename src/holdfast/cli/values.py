"""From the text of an option to its value, with an error that says what was expected."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec


class RejectedValueError(Exception):
    """A text that an option cannot take; no ValueError, so that it passes through tyro unchanged."""


def option(name: str, annotation: Any, help_text: str) -> Any:
    """The annotation of a dataclass field that tyro reads as `--name`: of that type, or None where it is left out."""
    annotation = _without_none(annotation)
    metavar, read = _reader(annotation)
    several = get_origin(annotation) is tuple
    flag = "--" + name.replace("_", "-")

    def from_texts(texts: list[str]) -> Any:
        values = tuple(_read(flag, text, read) for text in texts)
        if several and not values:
            raise RejectedValueError(f"{flag} has no value; expected {_EXPECTED[read]}, one or more.")
        return values if several else values[0]

    spec = PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=f"{metavar} ..." if several else metavar,
        instance_from_str=from_texts,
        is_instance=lambda value: value is None or not isinstance(value, list),
        str_from_instance=lambda value: [str(value)],
    )
    return Annotated[Any, spec, arg(help=help_text, help_behavior_hint="")]


def _read(flag: str, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise RejectedValueError(f"{flag} is {text!r}; expected {_EXPECTED[read]}.") from error


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def _reader(annotation: Any) -> tuple[str, Callable[[str], Any]]:
    """How a value of this type is named in the help, and read."""
    if get_origin(annotation) is tuple:
        return _reader(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return "{" + ",".join(get_args(annotation)) + "}", str
    return {int: ("INT", _whole), float: ("FLOAT", _number), bool: ("{yes,no}", _yes_or_no), str: ("TEXT", str)}[
        annotation
    ]


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError
    return int(text)


def _number(text: str) -> float:
    return float(text)


def _yes_or_no(text: str) -> bool:
    try:
        return {"yes": True, "true": True, "no": False, "false": False}[text.lower()]
    except KeyError:
        raise ValueError from None


_EXPECTED: dict[Callable[[str], Any], str] = {
    _whole: "a whole number",
    _number: "a number, such as 0.1 or 1e-3",
    _yes_or_no: "yes or no",
    str: "a text",
}
