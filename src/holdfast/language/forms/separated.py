"""Tables of separated values: the delimiter, and whether there is a header, show in the first rows.

Python's `csv` reads them. pandas, and the `datasets` library over it, would fill short rows with nothing, take the
first cell of long ones for an index, and make numbers of "007" and nothing of "NA".
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import DataFileError, OptionError
from holdfast.language.forms.columns import KNOWN, Columns, as_number, in_brief
from holdfast.language.forms.table import Entries, Table, opened_text, suffix_of

_NAMES = {",": "CSV", ";": "CSV with ';'", "\t": "TSV", "|": "CSV with '|'"}
_LONGEST_CELL = 2**31 - 1
_LOOKED_AT = 2**17
"""Characters at the beginning that show the form."""
_MOST_WORDS = 3
"""In the name of a column."""
_PAIRS = ("sentence1", "sentence2", "score")
"""Of a file without a header whose rows are two texts and a number, as the STS benchmark has them."""

_Form = tuple[str, Any]
"""The delimiter, and how `csv` is to take quotation marks."""


def separated_table(path: Path, asked: Columns) -> Table:
    """A table of separated values; between tabs quotation marks mean nothing where they do not come in pairs.

    Args:
        path: of the file.
        asked: columns, by name or, where the file has no header, by number from 0.

    Raises:
        DataFileError: a row has more or fewer cells than the others, or a quotation mark is never closed.
        OptionError: two columns of one name, or no header that names a text.
    """
    csv.field_size_limit(_LONGEST_CELL)
    wanted = {name.strip().lower() for name in asked.named}
    tabs: list[_Form] = [("\t", csv.QUOTE_MINIMAL), ("\t", csv.QUOTE_NONE)]
    others: list[_Form] = [(delimiter, csv.QUOTE_MINIMAL) for delimiter in ",;|"]
    forms = tabs if suffix_of(path) == ".tsv" else [*others[:2], *tabs, *others[2:]]
    shown = {form: _beginning(path, form) for form in forms}

    def fit(form: _Form) -> tuple[int, bool]:
        """Usual or wanted names in the first row, and whether all rows have as many cells."""
        rows, is_whole = shown[form]
        names = {cell.strip().lower() for cell in rows[0]} if rows else set()
        return len(names & (KNOWN | wanted)), is_whole and bool(rows) and {*map(len, rows)} == {len(rows[0])} != {1}

    form = max(forms, key=fit)
    rows, _ = shown[form]
    told = _NAMES[form[0]]
    names, has_header = _header(rows, wanted, path) if rows else ((), False)
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise OptionError(f"{path}: 2 columns are named {repeated[0]!r}. Rename one in the first line.")

    def entries() -> Entries:
        for number, (line, cells) in enumerate(_rows(path, form), start=0 if has_header else 1):
            if len(cells) != len(names):
                more = f"put a cell with {form[0]!r} in it between quotation marks"
                remedy = more if len(cells) > len(names) else "add what is missing, or delete the row"
                raise DataFileError(
                    f"{path}, row {number} has {len(cells)} cells; expected {len(names)}. See line {line}: {remedy}."
                )
            if number:
                yield f"{path}, row {number}", dict(zip(names, cells))

    return Table(f"{told}, {'with' if has_header else 'without'} a header", entries, names)


def _header(rows: Sequence[Sequence[str]], wanted: set[str], path: Path) -> tuple[tuple[str, ...], bool]:
    """The names of the columns, and whether they stand in the first row."""
    first = tuple(cell.strip() for cell in rows[0])
    lowered = {cell.lower() for cell in first}
    if wanted and all(map(str.isdecimal, wanted)) and not wanted <= lowered and not lowered <= KNOWN:
        return tuple(map(str, range(len(first)))), False
    below = {cell.strip().lower() for row in rows[1:] for cell in row}
    is_short = max(len(cell.split()) for cell in first) <= _MOST_WORDS
    if wanted or (is_short and (lowered & KNOWN) - below):
        return first, True
    if [as_number(cell) is None for cell in first] == [True, True, False]:
        return _PAIRS, False
    raise OptionError(
        f"{path}: which column is the text? Its first line {in_brief(first)} has none of the usual names. Where "
        "these are names, give one with --text; a file without names has numbers from 0: --text 0 --label 1."
    )


def _beginning(path: Path, form: _Form) -> tuple[list[list[str]], bool]:
    """The first rows, and whether they could be read."""
    rows: list[list[str]] = []
    size = 0
    try:
        for _, cells in _rows(path, form):
            rows.append(cells)
            size += sum(map(len, cells))
            if size > _LOOKED_AT:
                break
    except DataFileError as error:
        if not isinstance(error.__cause__, csv.Error):
            raise
        return rows, False
    return rows, True


def _rows(path: Path, form: _Form) -> Iterator[tuple[int, list[str]]]:
    """The rows, with the line in which each begins; blank lines are passed over.

    Raises:
        DataFileError: a quotation mark that is never closed, or stands in the middle of a cell.
    """
    with opened_text(path, newline="") as file:
        reader = csv.reader(file, delimiter=form[0], quoting=form[1], strict=True)
        line = 1
        try:
            for cells in reader:
                if len(cells) > 1 or any(map(str.strip, cells)):
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataFileError(
                f"{path}, line {line}: {error}; a quotation mark in a cell is written twice, and the cell between two."
            ) from error
