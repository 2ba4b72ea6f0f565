"""Rows of text and label, streamed from files of text, JSON, CSV and Parquet, folders of them, and `datasets` names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from holdfast.errors import DataFileError, EmptyDataError, OptionError
from holdfast.language.forms.arrow import SAVED, named_table, saved_tables, typed_table
from holdfast.language.forms.columns import (
    DECLINED,
    Chosen,
    Columns,
    Label,
    Row,
    as_number,
    choose_columns,
    is_unnamed,
    row_of,
)
from holdfast.language.forms.folders import ALL, FAMILIES, FolderFiles, files_in, split_named
from holdfast.language.forms.plain import INTENTS, intents_table, json_table, lines_table, text_table
from holdfast.language.forms.separated import separated_table
from holdfast.language.forms.table import COMPRESSED, Table, suffix_of

__all__ = [
    "DECLINED",
    "Columns",
    "Label",
    "Row",
    "RowStream",
    "Source",
    "as_number",
    "is_unnamed",
    "read_rows",
]


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
        is_empty = True
        for table in self.tables:
            for row in _lines(table) if table.is_text else self._rows(table):
                is_empty = is_empty and not any(map(str.strip, row.texts))
                yield row
        if is_empty:
            raise EmptyDataError(f"{self.source}: no row in it ({self.tables[0].form}). Give data that have some.")

    @cached_property
    def chosen(self) -> Chosen:
        """The columns that are read; where only the entries tell them, those of the first.

        Raises:
            EmptyDataError: there is no row.
            OptionError: they cannot be told.
        """
        table = self.tables[0]
        if table.is_text:
            return Chosen(())
        first = next(((where, entry) for each in self.tables for where, entry in each.entries()), None)
        if first is None:
            raise EmptyDataError(f"{self.source}: no row in it ({table.form}). Give data that have some.")
        return choose_columns(table.names or tuple(first[1]), self.columns, where=first[0])

    def describe(self) -> str:
        """What was found, in one line, for the user to see before any work; raises what `chosen` does."""
        chosen, num_files = self.chosen, len(self.tables)
        found = [f"{self.source}: {' and '.join(dict.fromkeys(table.form for table in self.tables))}"]
        found += [f"{num_files} files"] if num_files > 1 else []
        found += [f"split {self.split}"] if self.split else []
        found += [f"text {' and '.join(map(repr, chosen.text))}"] if chosen.text else []
        found += [f"label {chosen.label!r}"] if chosen.label else []
        found += [f"label one of {', '.join(map(repr, chosen.candidates))}"] if len(chosen.candidates) > 1 else []
        found += [f"not read: {_some(names)} ({why})" for why, names in self.left_out.items()]
        return ", ".join(found)

    def _rows(self, table: Table) -> Iterator[Row]:
        by_names: dict[tuple[str, ...], Chosen] = {}
        for where, entry in table.entries():
            names = tuple(entry)
            chosen = by_names.get(names)
            if chosen is None:
                chosen = by_names[names] = choose_columns(names, self.columns, where=where)
            yield row_of(entry, chosen, where=where, classes=table.classes.get(chosen.label or "", ()))


@dataclass(frozen=True)
class Source:
    """Data as they are asked for.

    Attributes:
        path: see `read_rows`.
        columns: of a table.
        split: which one of data that have several.
    """

    path: str
    columns: Columns = field(default_factory=Columns)
    split: str = "train"

    def rows(self) -> RowStream:
        """The stream of rows, which can be read again and again."""
        return read_rows(self.path, columns=self.columns, split=self.split)

    def first(self) -> Row | None:
        """The first row."""
        return next(iter(self.rows()), None)


def read_rows(source: str, *, columns: Columns | None = None, split: str = "train") -> RowStream:
    """The rows of a source, as a stream; nothing is held but the row at hand.

    Labels keep their type: text stays text, as all of CSV is, and classes that are stored as numbers get their names.
    Texts are unpacked (`.gz`, `.bz2`, `.xz`, `.zst`) and read in UTF-8, or as their byte order mark says.

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
    if suffix == ".json":
        return json_table(path, split)
    if FAMILIES.get(suffix) == "JSON":
        return lines_table(path)
    if FAMILIES.get(suffix) == "CSV":
        return separated_table(path, columns)
    if suffix in (".parquet", ".arrow"):
        if path.suffix.lower() in COMPRESSED:
            raise OptionError(f"{path}: {suffix} files are read as they are. Unpack it first.")
        return typed_table(path)
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
