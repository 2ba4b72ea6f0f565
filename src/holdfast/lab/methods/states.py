"""What learners and estimators hand out to be written: tensors by name, and notes that JSON holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from holdfast.errors import OptionError


def checked_state(
    found: Any, *, whose: str, reserved: Collection[str] = ()
) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """What a `state` method gave, which `load_state` will be given back from a file.

    Args:
        found: what it gave.
        whose: for the message.
        reserved: names that the notes may not have, nor the tensors before a slash.

    Raises:
        OptionError: it is no pair of tensors by name and JSON notes by name.
    """
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Mapping) for part in found)):
        raise OptionError(
            f"{whose}.state: gave a {type(found).__name__}; expected two, tensors by name and JSON notes."
        )
    tensors, notes = found
    if wrong := [name for name, value in tensors.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        raise OptionError(f"{whose}.state: {wrong} are no tensors by name. Give what is no tensor among the notes.")
    if wrong := [name for name, value in notes.items() if not _is_json({name: value})]:
        raise OptionError(
            f"{whose}.state: the notes {wrong} are no JSON values: numbers, texts, lists, and mappings by text. Give "
            "tensors first, and all else in such a form."
        )
    if taken := {name.partition("/")[0] for name in (*tensors, *notes)} & set(reserved):
        raise OptionError(f"{whose}.state: {', '.join(sorted(taken))} is a name of holdfast's. Choose another one.")
    return tensors, notes


def _is_json(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_json(part) for name, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int | float)
