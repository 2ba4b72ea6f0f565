"""Tables of separated values: delimiter, header and the columns that hold numbers are told from the file itself.

Python's `csv` reads them. pandas, and the `datasets` library over it, would fill short rows with nothing, take the
first cell of long ones for an index, and make numbers of "007" and nothing of "NA".
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import IO, Any

from holdfast.errors import DataFileError, OptionError
from holdfast.language.forms.columns import KNOWN, Columns
from holdfast.language.forms.opened import opened_text, suffix_of
from holdfast.language.forms.table import Entries, Table

_DELIMITERS = ",;\t|"
_NAMES = {",": "CSV", ";": "CSV with ';'", "\t": "TSV", "|": "CSV with '|'"}
_LONGEST_CELL = 2**31 - 1
_SAMPLE = 2**17
"""Characters at the beginning that show the form."""
_TOP = 6
"""Lines among which the names of the columns are looked for."""
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?(e[+-]\d\d+)?")
"""As a program writes numbers; "007" and "1_0" are none."""
_FEW_WORDS = 2
"""A first line of so few may be a header."""
_MOST_WORDS = 3
"""In the name of a column."""
_MANY = 1.5
"""Times as many words: those are the texts."""


@dataclass(frozen=True)
class _Form:
    """How a file is written.

    Attributes:
        delimiter: between two cells.
        quoted: whether quotation marks join lines and delimiters to one cell.
        has_header: whether names stand in the first line.
        names: of the columns.
    """

    delimiter: str
    quoted: bool
    has_header: bool
    names: tuple[str, ...]


def separated_table(path: Path, asked: Columns) -> Table:
    """A table of separated values; it is read once from end to end, to tell its numbers from its texts.

    Args:
        path: of the file.
        asked: columns, by name or, where the file has no header, by number from 0.

    Raises:
        DataFileError: a row has more or fewer cells than the others, or a quotation mark is never closed.
        OptionError: two columns of one name, or lines above the names; delimiter, header or the column of the text
            cannot be told.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with opened_text(path, newline="") as file:
        sample = file.read(_SAMPLE)
        if len(sample) == _SAMPLE:
            sample = sample[: sample.rfind("\n") + 1] or sample
    _check_top(sample, path)
    delimiter = "\t" if suffix_of(path) == ".tsv" else _delimiter(sample, path)
    shown = _sample(sample, delimiter)
    if not shown:
        return Table(_NAMES[delimiter], lambda: iter(()), num_rows=0)
    names, has_header = _header(shown, asked, path)
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise OptionError(f"{path}: 2 columns are named {repeated[0]!r}. Rename one in the first line.")
    form, num_rows, numbers = _form(path, delimiter, names, has_header=has_header)

    def entries() -> Entries:
        for number, cells in _rows(path, form):
            yield f"{path}, row {number}", dict(zip(names, cells))

    told = f"{_NAMES[delimiter]}, {'with' if has_header else 'without'} a header"
    return Table(told, entries, names, num_rows, numbers=numbers)


def _check_top(sample: str, path: Path) -> None:
    """Raise `OptionError` where a title or a comment stands above the names of the columns."""
    for number, line in enumerate(sample.splitlines()[:_TOP], start=1):
        cells = [{cell.strip(' "').lower() for cell in line.split(delimiter)} for delimiter in _DELIMITERS]
        num_known = max(len(KNOWN & each) for each in cells)
        if num_known and number == 1:
            return
        if num_known > 1:
            raise OptionError(
                f"{path}: the names of the columns stand in line {number}, and something else above them. Delete what "
                "is above."
            )


def _form(
    path: Path, delimiter: str, names: tuple[str, ...], *, has_header: bool
) -> tuple[_Form, int, dict[str, type]]:
    """How the file is written, and what a reading of it all shows; between tabs quotation marks may mean nothing."""
    found: list[tuple[_Form, int, dict[str, type]]] = []
    errors: list[DataFileError] = []
    for quoted in (True,) if delimiter != "\t" else (False, True):
        form = _Form(delimiter, quoted, has_header, names)
        try:
            found.append((form, *_survey(path, form)))
        except DataFileError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    if len({num_rows for _, num_rows, _ in found}) > 1:
        counts = " or ".join(str(num_rows) for _, num_rows, _ in found)
        raise OptionError(
            f"{path}: its quotation marks can be read as part of the texts or around cells with line ends, as {counts} "
            "rows. Write it as .csv or .jsonl."
        )
    return found[0]


def _delimiter(sample: str, path: Path) -> str:
    """What parts the columns: the usual names stand between it, or it stands equally often in every row."""
    fits: dict[str, tuple[int, bool]] = {}
    for delimiter in _DELIMITERS:
        rows = _sample(sample, delimiter)
        known = len(KNOWN & {cell.strip().lower() for cell in rows[0]}) if rows else 0
        fits[delimiter] = known, len({len(row) for row in rows}) == 1 and len(rows[0]) > 1
    best = max(fits.values())
    found = [delimiter for delimiter, fit in fits.items() if fit == best]
    if best == (0, True) and len(found) > 1:
        several = " or ".join(map(repr, found))
        raise OptionError(
            f"{path}: which character is between its columns, {several}? Put a line with the names of the columns on "
            "top, such as text,label."
        )
    return found[0]


def _sample(sample: str, delimiter: str) -> list[list[str]]:
    rows = [row for row in csv.reader(StringIO(sample, newline=""), delimiter=delimiter) if any(map(str.strip, row))]
    return rows[:-1] if len(sample) >= _SAMPLE // 2 and len(rows) > 1 else rows  # the last one may be cut


def _header(shown: Sequence[Sequence[str]], asked: Columns, path: Path) -> tuple[tuple[str, ...], bool]:
    """The names of the columns, and whether they stand in the first line."""
    first = tuple(cell.strip() for cell in shown[0])
    lowered, positions = {cell.lower() for cell in first}, tuple(map(str, range(len(first))))
    wanted = {name.strip().lower() for name in asked.named}
    if wanted <= set(positions) and wanted and not lowered <= KNOWN:
        return positions, False
    rows = [row for row in shown if len(row) == len(first)]
    columns = list(zip(*rows))
    if wanted or _is_header(first, columns):
        return first, True
    numeric = [all(map(_NUMBER.fullmatch, column)) for column in columns]
    if len(rows) > 2 and any(
        not _NUMBER.fullmatch(column[0]) and all(map(_NUMBER.fullmatch, column[1:])) for column in columns
    ):
        return first, True
    if len(first) == 3 and numeric == [False, False, True]:
        return ("sentence1", "sentence2", "score"), False
    if len(first) > 2:
        return positions, False
    text = 0 if len(first) == 1 else _text_column(columns, numeric)
    if text is None:
        raise OptionError(
            f"{path}: its first line {first} is no header that names a text, and which column is the text does not "
            "show. Name them: --text 0 --label 1, counted from 0; or put the line text,label on top."
        )
    if _may_be_header([row[text] for row in rows], [row[1 - text] for row in rows] if len(first) == 2 else []):
        named = f"--text {first[text]!r}" + (f" --label {first[1 - text]!r}" if len(first) == 2 else "")
        counted = f"--text {text}" + (f" --label {1 - text}" if len(first) == 2 else "")
        raise OptionError(f"{path}: is its first line {first} a header? If so, give {named}; if not, {counted}.")
    return (("text", "label") if text == 0 else ("label", "text"))[: len(first)], False


def _is_header(first: Sequence[str], columns: Sequence[Sequence[str]]) -> bool:
    """Whether a usual name stands in the first line, among short cells, and not below again."""
    if max(len(cell.split()) for cell in first) > _MOST_WORDS:
        return False
    return any(cell.lower() in KNOWN and cell not in column[1:] for cell, column in zip(first, columns))


def _text_column(columns: Sequence[Sequence[str]], numeric: Sequence[bool]) -> int | None:
    """Which of two columns holds the texts: not the numbers; more words; fewer repetitions. None if these disagree."""
    if numeric[0] != numeric[1]:
        return int(numeric[0])
    votes = set()
    words = [sum(len(cell.split()) for cell in column) for column in columns]
    if max(words) >= _MANY * min(words):
        votes.add(words.index(max(words)))
    kinds = [len(set(column)) for column in columns]
    if kinds[0] != kinds[1] and min(kinds) <= len(columns[0]) / 2:
        votes.add(kinds.index(max(kinds)))
    return votes.pop() if len(votes) == 1 else None


def _may_be_header(texts: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether the first line is unlike the others: far fewer words, and a label that never comes again."""
    if len(texts) < 2:
        return False
    mean = sum(len(text.split()) for text in texts[1:]) / len(texts[1:])
    few = len(texts[0].split())
    once = texts[0] not in texts[1:] and (not labels or labels[0] not in labels[1:])
    return once and few <= _FEW_WORDS and few * _MANY <= mean


def _rows(path: Path, form: _Form) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header, numbered from 1; blank lines are passed over.

    Raises:
        DataFileError: a row of another width, or a quotation mark that is never closed.
    """
    with opened_text(path, newline="") as file:
        number = 0 if form.has_header else 1
        for line, cells in _cells(file, form, path):
            if len(cells) <= 1 and not any(map(str.strip, cells)):
                continue
            if len(cells) != len(form.names):
                more = f"put a cell with {form.delimiter!r} in it between quotation marks"
                remedy = more if len(cells) > len(form.names) else "add what is missing, or delete the row"
                raise DataFileError(
                    f"{path}, row {number} has {len(cells)} cells; expected {len(form.names)}. See line {line}: "
                    f"{remedy}."
                )
            if number:
                yield number, cells
            number += 1


def _cells(file: IO[str], form: _Form, path: Path) -> Iterator[tuple[int, list[str]]]:
    quoting: Any = csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE
    reader = csv.reader(file, delimiter=form.delimiter, quoting=quoting, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataFileError(
                f"{path}, line {line}: {error}; a quotation mark in a cell is written twice, and the cell between two."
            ) from error
        if cells is None:
            return
        yield line, cells if form.quoted else [_unquoted(cell) for cell in cells]


def _unquoted(cell: str) -> str:
    """Without the quotation marks around it, where those within are doubled; else as it is."""
    if len(cell) < 2 or not (cell[0] == cell[-1] == '"'):
        return cell
    inner = cell[1:-1].replace('""', "\0")
    return cell if '"' in inner else inner.replace("\0", '"')


def _survey(path: Path, form: _Form) -> tuple[int, dict[str, type]]:
    """How many rows, and which columns are numbers throughout, empty cells aside."""
    kinds: list[type | None] = [int] * len(form.names)
    filled = [False] * len(form.names)
    num_rows = 0
    for _, cells in _rows(path, form):
        num_rows += 1
        for place, cell in enumerate(cells):
            if kinds[place] is None or not cell.strip():
                continue
            filled[place] = True
            match = _NUMBER.fullmatch(cell.strip())
            if match is None:
                kinds[place] = None
            elif match.group(2) or match.group(3):
                kinds[place] = float
    return num_rows, {
        name: kind for name, kind, is_filled in zip(form.names, kinds, filled) if is_filled and kind is not None
    }
