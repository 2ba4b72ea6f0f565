"""Documents of lines, sentences with their intents in two files, and JSON in the forms in which data come.

The builder of the `datasets` library is not used for JSON: it makes dates of texts that look like one, reads an object
of columns as one row, reads arrays whole, and does not say in which line an error is.
"""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

from holdfast.errors import DataFileError
from holdfast.language.forms.table import Entries, Table, opened_text

INTENTS = "seq.in"
_PIECE = 2**14
"""Characters of an array that are read at once."""


def text_table(path: Path) -> Table:
    """A document, a line an entry."""

    def entries() -> Entries:
        with opened_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                yield f"{path}, line {number}", {"text": line}

    return Table("text", entries, ("text",), is_text=True)


def intents_table(path: Path) -> Table:
    """The sentences of `seq.in`, and beside them the file `label`; one is missing, or longer: `DataFileError`."""
    labels_path = path.with_name("label")
    if not labels_path.is_file():
        raise DataFileError(f"{labels_path} is missing beside {INTENTS}.")

    def entries() -> Entries:
        with opened_text(path) as texts, opened_text(labels_path) as labels:
            for number, (text, label) in enumerate(zip_longest(texts, labels), start=1):
                if text is None or label is None:
                    shorter = INTENTS if text is None else "label"
                    raise DataFileError(
                        f"{path.parent}: {shorter} ends before line {number}; expected as many in both."
                    )
                if text.strip() or label.strip():
                    yield f"{path}, line {number}", {"text": text.rstrip("\n"), "label": label.rstrip("\n")}

    return Table(f"intents ({INTENTS} and label)", entries, ("text", "label"))


def lines_table(path: Path) -> Table:
    """One JSON object a line; blank lines are passed over."""

    def entries() -> Entries:
        with opened_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, _object(_parsed(line, where), where)

    return Table("JSON Lines", entries)


def json_table(path: Path, split: str) -> Table:
    """A `.json` file: an array, an object, or lines under another name, as its beginning shows.

    Args:
        path: of the file.
        split: which of the splits, where the file is an object of them.
    """
    with opened_text(path) as file:
        first = next((line for line in file if line.strip()), "").strip()
        if first.startswith("["):
            return Table("JSON array", lambda: _array(path))
        if first.startswith("{") and any(line.strip() for line in file):
            try:
                json.loads(first)
                return lines_table(path)
            except ValueError:  # an object over several lines
                pass
    return Table("JSON object", lambda: _document(path, split))


def _array(path: Path) -> Entries:
    """The entries of an array, decoded one by one; the pieces that are read double while an entry does not fit."""
    decoder, number, size = json.JSONDecoder(), 1, _PIECE
    with opened_text(path) as file:
        text = file.read(size).lstrip()[1:]
        while not (text := text.lstrip(" \t\r\n,")).startswith("]"):
            where = f"{path}, entry {number}"
            try:
                value, end = decoder.raw_decode(text)
            except (ValueError, RecursionError) as error:
                more = file.read(size)
                if not more:
                    raise DataFileError(f"{where} is no JSON ({error}): truncated or edited.") from error
                text, size = text + more, 2 * size
                continue
            yield where, _object(value, where)
            text, number, size = text[end:], number + 1, _PIECE
        if (text[1:] + file.read(_PIECE)).strip():
            raise DataFileError(f"{path}: more text follows the end of the array. Give one array, or JSON Lines.")


def _document(path: Path, split: str) -> Entries:
    """The rows in one object: under "data", under the name of the split, or as columns of equal length."""
    with opened_text(path) as file:
        content = file.read()
    if not content.strip():
        return
    value = _object(_parsed(content, str(path)), str(path))
    rows = value.get("data", value.get(split))
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        rows = [value]
        if value and all(isinstance(column, list) for column in value.values()):
            lengths = {name: len(column) for name, column in value.items()}
            if len(set(lengths.values())) > 1:
                shown = ", ".join(f"{name!r}: {length}" for name, length in lengths.items())
                raise DataFileError(f"{path}: its columns differ in length ({shown}); expected as many values in each.")
            rows = [dict(zip(value, each)) for each in zip(*value.values())]
    for number, row in enumerate(rows, start=1):
        yield f"{path}, entry {number}", row


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataFileError(f"{where} is no JSON ({error}): truncated or edited.") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataFileError(
            f'{where} is a JSON {type(value).__name__}; expected an object, such as {{"text": ..., "label": ...}}.'
        )
    return value
