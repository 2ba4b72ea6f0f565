"""Rows of text and label, streamed from text, JSONL, CSV and Parquet files, intent folders and `datasets` names."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from holdfast.errors import BatchError, DataFileError, OptionError

Label = str | int | float

PAIRS = (("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2"), ("premise", "hypothesis"))
TEXTS = ("text", "sentence", "content", "query", "utterance")
LABELS = ("label", "labels", "score", "similarity", "intent", "category")
_KNOWN = {*chain.from_iterable(PAIRS), *TEXTS, *LABELS}
_IN_FOLDERS = (".txt", ".md", ".py", ".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One example, or one line of a text.

    Attributes:
        texts: one, or the two of a pair.
        label: as the data have it; None where there is none.
        ends: whether a document ends here; a language model reads on over rows that do not.
        columns: of a table, those that the texts and the label come from.
    """

    texts: tuple[str, ...]
    label: Label | None = None
    ends: bool = True
    columns: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read; left out, they are told from the usual names.

    Attributes:
        text: of the text, or of the two texts of a pair.
        label: of the label.
    """

    text: tuple[str, ...] = ()
    label: str | None = None


def read_rows(source: str, *, columns: Columns | None = None, split: str = "train") -> Iterator[Row]:
    """Stream the rows of a source; nothing is held but the row at hand.

    Args:
        source: a file (`.jsonl`, `.csv`, `.parquet`; any other is text, a row a line); a folder of such files, in
            the order of their names; a folder with `seq.in` and `label`; or a name of the `datasets` library, with its
            configuration behind a colon where it has one.
        columns: which columns of a table count.
        split: of a `datasets` name.

    Raises:
        DataFileError: it is not there, or damaged; the file and, where there is one, the line is named.
        OptionError: a column that is not there, or none that can be told.
    """
    columns = columns or Columns()
    path = Path(source)
    if (path / "seq.in").is_file():
        return _intents(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _IN_FOLDERS)
        if not files:
            raise DataFileError(f"{path}: no file to read in it; expected some of {', '.join(_IN_FOLDERS)}.")
        return chain.from_iterable(_file(file, columns) for file in files)
    if path.is_file():
        return _file(path, columns)
    if path.suffix or len(path.parts) > 2:
        raise DataFileError(
            f"{path}: no such file or folder. Give a file, a folder, or a name of the datasets library."
        )
    return _of_datasets(source, columns, split)


def _file(path: Path, columns: Columns) -> Iterator[Row]:
    reader: Callable[[Path, Columns], Iterator[Row]] = {
        ".jsonl": _jsonl,
        ".csv": _csv,
        ".parquet": _parquet,
    }.get(path.suffix, _text)
    try:
        yield from reader(path, columns)
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}).") from error
    except OSError as error:
        if isinstance(error, DataFileError):
            raise
        raise DataFileError(f"{path} cannot be read: {error.strerror or error}.") from error


def _text(path: Path, _: Columns) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Row((line,), ends=False)
    yield Row(("",))


def _jsonl(path: Path, columns: Columns) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise DataFileError(f"{path}, line {number} is no JSON ({error}): truncated or edited.") from error
            if not isinstance(entry, dict):
                raise DataFileError(f"{path}, line {number} is a JSON {type(entry).__name__}; expected an object.")
            yield row_of(entry, columns, where=f"{path}, line {number}")


def _csv(path: Path, columns: Columns) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.reader(file)
        first = next(table, None)
        if first is None:
            return
        wanted = {*columns.text, *([columns.label] if columns.label else [])}
        if wanted & set(first) or _KNOWN & set(first):
            names, cells = first, table
        else:
            names, cells = _guessed(first), chain([first], table)
        for number, entry in enumerate(cells, start=1):
            if len(entry) != len(names):
                raise DataFileError(f"{path}, row {number} has {len(entry)} cells; expected {len(names)}.")
            yield row_of(dict(zip(names, entry)), columns, where=f"{path}, row {number}")


def _guessed(cells: Sequence[str]) -> list[str]:
    """Names for the columns of a table that has none, by its first row."""
    if len(cells) == 1:
        return ["text"]
    if len(cells) == 2:
        return ["text", "label"]
    if len(cells) == 3 and isinstance(_number(cells[2]), float | int):
        return ["sentence1", "sentence2", "score"]
    return [str(number) for number in range(len(cells))]


def _parquet(path: Path, columns: Columns) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise OptionError(
            f'{path}: Parquet needs pyarrow, which is not installed: pip install "torch-holdfast[report]"'
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for entry in batch.to_pylist():
                    yield row_of(entry, columns, where=str(path))
    except pyarrow.ArrowInvalid as error:
        raise DataFileError(
            f"{path} is no whole Parquet file ({str(error).splitlines()[0]}). Copy it again."
        ) from error


def _intents(folder: Path) -> Iterator[Row]:
    paths = [folder / name for name in ("seq.in", "label")]
    if not paths[1].is_file():
        raise DataFileError(f"{paths[1]} is missing beside seq.in.")
    texts, labels = (path.read_text(encoding="utf-8").splitlines() for path in paths)
    if len(texts) != len(labels):
        raise DataFileError(f"{folder}: seq.in has {len(texts)} lines and label {len(labels)}; expected as many.")
    return (Row((text,), label) for text, label in zip(texts, labels))


def _of_datasets(source: str, columns: Columns, split: str) -> Iterator[Row]:
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise DataFileError(
            f"{source}: no such file or folder, and the datasets library, where it could be a name, is not installed. "
            "Give a file, or: pip install datasets"
        ) from error
    name, _, configuration = source.partition(":")
    try:
        table: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            name, configuration or None, split=split, streaming=True
        )
    except Exception as error:  # whatever a network and a foreign library can say
        told = " ".join(str(error).split())[:200]
        raise DataFileError(
            f"{source}: neither a file or folder nor a data set that datasets can load: {told}"
        ) from error
    return (row_of(entry, columns, where=source) for entry in table)


def row_of(entry: Mapping[str, Any], columns: Columns, *, where: str) -> Row:
    """The row in a table's entry.

    Raises:
        OptionError: a column that was asked for is not there, or none is known by its name.
        BatchError: a text is no text.
    """
    asked = [*columns.text, *([columns.label] if columns.label else [])]
    missing = [name for name in asked if name not in entry]
    if missing:
        raise OptionError(f"{where}: no column {', '.join(map(repr, missing))}; found {', '.join(map(repr, entry))}.")
    names = columns.text or next((pair for pair in PAIRS if set(pair) <= set(entry)), ())
    names = names or tuple(name for name in TEXTS if name in entry)[:1]
    if not names:
        raise OptionError(
            f"{where}: which column is the text? Found {', '.join(map(repr, entry))}. Name it with --text."
        )
    texts = tuple(entry[name] for name in names)
    wrong = [name for name, text in zip(names, texts) if not isinstance(text, str)]
    if wrong:
        raise BatchError(f"{where}: {wrong[0]!r} is {entry[wrong[0]]!r}; expected a text.")
    label = columns.label or next((name for name in LABELS if name in entry and name not in names), None)
    read = (*names, *([] if label is None else [label]))
    return Row(texts, None if label is None else _number(entry[label]), columns=read)


def _number(value: Any) -> Label | None:
    """A number where the text is one, else the text."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
