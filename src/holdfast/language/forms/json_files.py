"""JSON in the forms in which data come: a line an object, an array of objects, an object of columns, `{"data": [...]}`.

The builder of the `datasets` library is not used here: it makes dates of texts that look like one, reads an object of
columns as one row, reads arrays whole, and does not say in which line an error is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from holdfast.errors import DataFileError
from holdfast.language.forms.opened import opened_text
from holdfast.language.forms.table import Entries, Table

_PIECE = 2**16
"""Characters of an array that are read at once."""
_SPACE = " \t\r\n"


def lines_table(path: Path) -> Table:
    """One object a line; blank lines are passed over."""

    def entries() -> Entries:
        with opened_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, _object(_parsed(line, where), where)

    return Table("JSON Lines", entries)


def json_table(path: Path, *, split: str) -> Table:
    """A `.json` file: the form shows in its beginning.

    Args:
        path: of the file.
        split: which of the splits, where the file is an object of them.

    Raises:
        DataFileError: nothing in it that could be rows.
    """
    with opened_text(path) as file:
        first = next((line for line in file if line.strip()), "").strip()
        if first.startswith("["):
            return Table("JSON array", lambda: _array(path))
        if first.startswith("{") and _is_whole(first) and any(line.strip() for line in file):
            return lines_table(path)  # under another name
    return Table("JSON object", lambda: _document(path, split))


def _is_whole(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _array(path: Path) -> Entries:
    """The entries of an array, decoded one by one."""
    with opened_text(path) as file:
        for number, value in enumerate(_elements(file, path), start=1):
            where = f"{path}, entry {number}"
            yield where, _object(value, where)


def _elements(file: IO[str], path: Path) -> Iterator[Any]:
    """What stands in an array; the pieces that are read double while an element does not fit into one."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    text, place, number, size = file.read(_PIECE).lstrip(_SPACE)[1:], 0, 0, _PIECE
    ended = False
    while True:
        place = _skipped(text, place)
        if text[place : place + 1] == "]":
            if (text[place + 1 :] + file.read(_PIECE)).strip():
                raise DataFileError(f"{path}: more text follows the end of the array. Give one array, or JSON Lines.")
            return
        if place < len(text):
            try:
                start = place
                if number:
                    if text[start] != ",":
                        raise DataFileError(f"{path}: no comma after entry {number} of the array: edited or damaged.")
                    start = _skipped(text, start + 1)
                value, after = decoder.raw_decode(text, start)
                if after < len(text) or ended:  # a number may go on in the next piece
                    yield value
                    place, number, size = after, number + 1, _PIECE
                    continue
            except json.JSONDecodeError as error:
                if ended:
                    raise DataFileError(
                        f"{path}, entry {number + 1} is no JSON ({error.msg}): truncated or edited."
                    ) from error
            except _RepeatedName as error:
                raise DataFileError(f"{path}, entry {number + 1} has {error.name!r} twice. Rename one.") from error
            except RecursionError as error:
                raise DataFileError(f"{path}, entry {number + 1} is nested too deeply. Give plain objects.") from error
        elif ended:
            raise DataFileError(f"{path}: the array does not end after entry {number}: truncated. Copy it again.")
        more = file.read(size)
        text, place, size, ended = text[place:] + more, 0, 2 * size, not more


def _skipped(text: str, place: int) -> int:
    while place < len(text) and text[place] in _SPACE:
        place += 1
    return place


def _document(path: Path, split: str) -> Entries:
    """The rows in one object: under "data", under the name of the split, or as columns of equal length."""
    with opened_text(path) as file:
        content = file.read()
    if not content.strip():
        return
    value = _object(_parsed(content, str(path)), str(path))
    rows = value.get("data", value.get(split))
    if isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows):
        for number, row in enumerate(rows, start=1):
            yield f"{path}, entry {number}", row
        return
    columns = {name: column for name, column in value.items() if isinstance(column, Sequence) and column}
    if columns and len(columns) == len(value) and not any(isinstance(column, str) for column in columns.values()):
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name!r}: {length}" for name, length in lengths.items())
            raise DataFileError(f"{path}: its columns differ in length ({shown}); expected as many values in each.")
        for number, values in enumerate(zip(*columns.values()), start=1):
            yield f"{path}, entry {number}", dict(zip(columns, values))
        return
    yield str(path), value


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        if isinstance(error, _RepeatedName):
            raise DataFileError(f"{where} has {error.name!r} twice. Rename one.") from error
        raise DataFileError(f"{where} is no JSON ({error}): truncated or edited.") from error
    except RecursionError as error:
        raise DataFileError(f"{where} is nested too deeply. Give plain objects.") from error


class _RepeatedName(ValueError):
    """An object has two values of one name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedName(next(name for name in names if names.count(name) > 1))
    return found


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataFileError(
            f'{where} is a JSON {type(value).__name__}; expected an object, such as {{"text": ..., "label": ...}}.'
        )
    return value
