"""Rows of text and label, streamed from files of text, JSON, CSV and Parquet, folders of them, and `datasets` names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.errors import DataFileError, EmptyDataError, OptionError
from holdfast.language.forms.arrow import SAVED, arrow_table, named_table, parquet_table, saved_tables
from holdfast.language.forms.columns import DECLINED, Chosen, Columns, Label, Row, choose_columns, row_of
from holdfast.language.forms.folders import ALL, FAMILIES, FolderFiles, files_in, split_named
from holdfast.language.forms.json_files import json_table, lines_table
from holdfast.language.forms.opened import COMPRESSED, opened_text, suffix_of
from holdfast.language.forms.separated import separated_table
from holdfast.language.forms.table import Table
from holdfast.language.forms.text import INTENTS, intents_table, text_table

__all__ = ["DECLINED", "Columns", "Label", "Row", "RowStream", "SourceDescription", "read_rows"]

_Reader = Callable[[Path, Columns, str], Table]
_READERS: Mapping[str, _Reader] = {
    ".jsonl": lambda path, *_: lines_table(path),
    ".ndjson": lambda path, *_: lines_table(path),
    ".json": lambda path, _, split: json_table(path, split=split),
    ".csv": lambda path, columns, _: separated_table(path, columns),
    ".tsv": lambda path, columns, _: separated_table(path, columns),
    ".parquet": lambda path, *_: parquet_table(path),
    ".arrow": lambda path, *_: arrow_table(path),
}
_NO_TEXT = "\0\1\2\3\4\5\6\7\b\016\017\020\021\022\023\024\025\026\027\030\031\034\035\036\037\177"
"""Characters that no text has."""


@dataclass(frozen=True)
class SourceDescription:
    """What a source was found to be, for the user to see before any work.

    Attributes:
        source: as it was asked for.
        form: of its files, in words.
        num_files: that are read.
        text: the columns of the text; empty for a document of lines.
        label: the column of the label, or None.
        candidates: the columns that could be the label, where there are several.
        split: which one is read; None where there are no splits.
        left_out: why -> what there is beside and is not read.
        num_rows: how many; None where that takes a reading.
        columns: all that there are; empty for a document of lines.
    """

    source: str
    form: str
    num_files: int
    text: tuple[str, ...]
    label: str | None
    candidates: tuple[str, ...] = ()
    split: str | None = None
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    num_rows: int | None = None
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In one line."""
        found = [f"{self.source}: {self.form}"]
        found += [f"{self.num_files} files"] if self.num_files > 1 else []
        found += [f"{self.num_rows:,} rows"] if self.num_rows is not None else []
        found += [f"split {self.split}"] if self.split else []
        found += [f"text {' and '.join(map(repr, self.text))}"] if self.text else []
        found += [f"label {self.label!r}"] if self.label else []
        found += [f"label one of {', '.join(map(repr, self.candidates))}"] if len(self.candidates) > 1 else []
        found += [f"not read: {_some(names)} ({why})" for why, names in self.left_out.items()]
        return ", ".join(found)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class RowStream:
    """The rows of a source, a stream that can be read from the beginning again and again.

    Attributes:
        source: as it was asked for.
        tables: one by one.
        columns: as they were asked for.
        split: which one they are; None where there are no splits.
        left_out: why -> what there is beside and is not read.
    """

    source: str
    tables: Sequence[Table]
    columns: Columns
    split: str | None = None
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Row]:
        """The rows.

        Raises:
            EmptyDataError: there is none.
        """
        numbers, is_empty = self._numbers(), True
        for table in self.tables:
            for row in _lines(table) if table.is_text else self._rows(table, numbers):
                is_empty = is_empty and not any(map(str.strip, row.texts))
                yield row
        if is_empty:
            raise EmptyDataError(f"{self.source}: no row in it ({self.tables[0].form}). Give data that have some.")

    def describe(self) -> SourceDescription:
        """What was found; where only the entries tell the columns, by the first of them.

        Raises:
            EmptyDataError: there is no row.
            OptionError: the columns cannot be told.
        """
        table = self.tables[0]
        counts = [each.num_rows for each in self.tables]
        chosen, names = Chosen((), None), ()
        if not table.is_text:
            first = next(((where, entry) for each in self.tables for where, entry in each.entries()), None)
            if first is None:
                raise EmptyDataError(f"{self.source}: no row in it ({table.form}). Give data that have some.")
            names = table.names or tuple(first[1])
            chosen = choose_columns(names, self.columns, where=first[0])
        forms = dict.fromkeys(each.form for each in self.tables)
        return SourceDescription(
            self.source,
            " and ".join(forms),
            len(self.tables),
            chosen.text,
            chosen.label,
            chosen.candidates,
            self.split,
            self.left_out,
            sum(counts) if None not in counts else None,  # type: ignore[arg-type]
            names,
        )

    def _rows(self, table: Table, numbers: Mapping[str, type]) -> Iterator[Row]:
        by_names: dict[tuple[str, ...], Chosen] = {}
        for where, entry in table.entries():
            names = tuple(entry)
            chosen = by_names.get(names)
            if chosen is None:
                chosen = by_names[names] = choose_columns(names, self.columns, where=where)
            label = chosen.label or ""
            number = None if table.numbers is None else numbers.get(label)
            yield row_of(entry, chosen, where=where, classes=table.classes.get(label, ()), number=number)

    def _numbers(self) -> dict[str, type]:
        """Of tables without types, the columns that are numbers in each of them."""
        found = [table.numbers for table in self.tables if table.numbers is not None]
        shared = set(found[0]).intersection(*found) if found else ()
        return {name: float if any(each[name] is float for each in found) else int for name in shared}


def read_rows(source: str, *, columns: Columns | None = None, split: str = "train") -> RowStream:
    """The rows of a source, as a stream; nothing is held but the row at hand.

    Labels keep their type: text stays text, classes that are stored as numbers get their names, and of a form without
    types (CSV) a column is one of numbers where each of its values is. Texts are unpacked (`.gz`, `.bz2`, `.xz`,
    `.zst`) and read in UTF-8, or as their byte order mark says.

    Args:
        source: a file (`.json`, `.jsonl`, `.ndjson`, `.csv`, `.tsv`, `.parquet`, `.arrow`; any other that is text is
            read as one, a row a line); a folder of such files, in the order of their names; a folder with `seq.in` and
            `label`; one that `datasets` saved; or a name of the `datasets` library, with its configuration behind a
            colon where it has one.
        columns: which columns of a table count; of a table without a header by their numbers from 0.
        split: which one of a source that has several; "all" for every file of a folder.

    Raises:
        DataFileError: it is not there, or damaged; the file and, where there is one, the line is named.
        OptionError: a column that is not there, or none or several that could be the text.
        BatchError: a text is no text, or a label is none.
        EmptyDataError: no row, when it is read.
    """
    columns = columns or Columns()
    path = Path(source)
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED):
            return _saved(source, columns, split)
        if (path / INTENTS).is_file():
            found = FolderFiles([path / INTENTS])
        else:
            found = files_in(path, split)
        return RowStream(
            source, [_table(file, columns, split) for file in found.files], columns, found.split, found.left_out
        )
    if path.is_file():
        return RowStream(source, [_table(path, columns, split)], columns)
    if path.exists():
        raise DataFileError(f"{path} is no regular file. Give a file or a folder.")
    if suffix_of(path) in FAMILIES or path.is_absolute() or source.startswith((".", "~")) or len(path.parts) > 2:
        raise DataFileError(
            f"{path}: no such file or folder. Give a file, a folder, or a name of the datasets library."
        )
    return RowStream(source, [named_table(source, split)], columns, split)


def _table(path: Path, columns: Columns, split: str) -> Table:
    if path.name == INTENTS:
        return intents_table(path)
    suffix = suffix_of(path)
    if suffix in _READERS:
        if suffix in (".parquet", ".arrow") and path.suffix.lower() in COMPRESSED:
            raise OptionError(f"{path}: {suffix} files are read as they are. Unpack it first.")
        return _READERS[suffix](path, columns, split)
    if suffix not in FAMILIES:
        try:
            with opened_text(path) as file:
                beginning = file.read(2**12)
        except DataFileError as error:
            if error.__cause__ is not None and not isinstance(error.__cause__, UnicodeError):
                raise
            beginning = _NO_TEXT
        if any(character in beginning for character in _NO_TEXT):
            raise DataFileError(
                f"{path} is no text, and {path.suffix or 'a name without an ending'} is none of the forms that are "
                f"read ({', '.join(FAMILIES)}). Write it as one of them."
            )
    return text_table(path)


def _saved(source: str, columns: Columns, split: str) -> RowStream:
    tables = saved_tables(Path(source))
    if "" in tables:
        return RowStream(source, [tables[""]], columns)
    by_name = {split_named(name): name for name in tables} | {name: name for name in tables}
    asked = split if split in by_name else split_named(split)
    if split == ALL and split not in by_name:
        return RowStream(source, list(tables.values()), columns, ALL)
    if asked not in by_name:
        shown = ", ".join(map(repr, tables))
        raise DataFileError(f"{source}: no split {split!r} in it; found {shown}. Choose one with --split.")
    left_out = {f"split {name!r}": (name,) for name in tables if name != by_name[asked]}
    return RowStream(source, [tables[by_name[asked]]], columns, by_name[asked], left_out)


def _lines(table: Table) -> Iterator[Row]:
    for where, entry in table.entries():
        yield Row((entry["text"],), ends=False, where=where)
    yield Row(("",))
