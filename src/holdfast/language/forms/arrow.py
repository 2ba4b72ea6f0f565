"""Typed tables: Parquet and Arrow files, folders that `datasets` saved, and names on its hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from holdfast.errors import DataFileError, OptionError
from holdfast.files import special_files
from holdfast.language.forms.opened import pyarrow_library, readable
from holdfast.language.forms.table import Entries, Table

SAVED = ("state.json", "dataset_dict.json")
"""What `save_to_disk` writes beside a data set, and beside several splits."""
_ROWS = 1024
"""Read at once."""


def parquet_table(path: Path) -> Table:
    """A Parquet file; classes keep the names that `datasets` wrote into it.

    Raises:
        DataFileError: it is damaged.
        OptionError: without pyarrow.
    """
    pyarrow_library(path)
    from pyarrow import parquet

    with _whole(path, "Parquet"), parquet.ParquetFile(path) as file:
        schema, num_rows = file.schema_arrow, file.metadata.num_rows
    return _typed(path, "Parquet", schema, num_rows, lambda: _parquet_batches(path))


def _parquet_batches(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with _whole(path, "Parquet"), parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=_ROWS)


def arrow_table(path: Path) -> Table:
    """An Arrow file, or a stream of record batches, as `datasets` writes them.

    Raises:
        DataFileError: it is damaged.
        OptionError: without pyarrow.
    """
    pyarrow_library(path)
    with _whole(path, "Arrow"):
        schema = next(_arrow_batches(path))
    return _typed(path, "Arrow", schema, None, lambda: _after_first(_arrow_batches(path)))


def _arrow_batches(path: Path) -> Iterator[Any]:
    """The schema, and then the batches."""
    pyarrow = pyarrow_library(path)
    with _whole(path, "Arrow"), pyarrow.memory_map(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        with (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(file) as reader:
            yield reader.schema
            found = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            for batch in found:
                batch.validate(full=True)  # what is not looked at before could end the process
                yield batch


def _after_first(batches: Iterator[Any]) -> Iterator[Any]:
    next(batches)
    return batches


def _typed(path: Path, form: str, schema: Any, num_rows: int | None, batches: Callable[[], Iterator[Any]]) -> Table:
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise OptionError(f"{path}: 2 columns are named {repeated[0]!r}. Rename one, and write the file anew.")
    classes: Mapping[str, tuple[str, ...]] = {}
    if b"huggingface" in (schema.metadata or {}):
        classes = _classes(datasets_library(str(path)).Features.from_arrow_schema(schema))

    def entries() -> Entries:
        number = 0
        for batch in batches():
            for start in range(0, batch.num_rows, _ROWS):
                for entry in batch.slice(start, _ROWS).to_pylist():
                    number += 1
                    yield f"{path}, row {number}", entry

    return Table(form, entries, tuple(schema.names), num_rows, classes)


@contextmanager
def _whole(path: Path, form: str) -> Iterator[None]:
    import pyarrow

    try:
        with readable(path):
            yield
    except pyarrow.ArrowException as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataFileError(f"{path} is no whole {form} file ({told}). Copy it again.") from error


def saved_tables(folder: Path) -> dict[str, Table]:
    """The splits of a folder that `datasets` saved; under "" where it is a data set without splits.

    Raises:
        DataFileError: it cannot be loaded.
        OptionError: without the `datasets` library.
    """
    library = datasets_library(str(folder))
    special = special_files(folder.rglob("*"))
    if special:
        raise DataFileError(f"{folder}: {', '.join(special)} is a pipe or a device; expected files. Take it away.")
    try:
        found = library.load_from_disk(str(folder))
        for data in found.values() if hasattr(found, "keys") else [found]:
            data.data.validate(full=True)  # what is not looked at before could end the process
    except Exception as error:  # whatever a foreign library can say of a damaged folder
        raise DataFileError(
            f"{folder}: datasets cannot load it ({_told(error)}). Save it again with save_to_disk."
        ) from error
    splits = dict(found) if hasattr(found, "keys") else {"": found}
    return {split: _of_library(f"{folder}", data, "saved by datasets", len(data)) for split, data in splits.items()}


def named_table(source: str, split: str) -> Table:
    """A data set of the hub, streamed.

    Raises:
        DataFileError: there is none, or it cannot be reached.
    """
    library = datasets_library(source)
    name, _, configuration = source.partition(":")
    try:
        found = library.load_dataset(name, configuration or None, split=split, streaming=True)
    except Exception as error:  # whatever a network and a foreign library can say
        raise DataFileError(
            f"{source}: neither a file or folder nor a data set that datasets can load: {_told(error)}. Give a file "
            "or folder, or NAME:CONFIGURATION with a network."
        ) from error
    return _of_library(source, found, "streamed by datasets", None)


def _of_library(source: str, data: Any, form: str, num_rows: int | None) -> Table:
    features = getattr(data, "features", None) or {}

    def entries() -> Entries:
        number, rows = 0, iter(data)
        while True:
            try:
                entry = next(rows, None)
            except Exception as error:  # likewise
                raise DataFileError(f"{source}: no more than {number} rows can be read: {_told(error)}.") from error
            if entry is None:
                return
            number += 1
            yield f"{source}, row {number}", entry

    return Table(form, entries, tuple(features), num_rows, _classes(features))


def _classes(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names of the classes of every column that has some."""
    return {
        column: tuple(feature.names)
        for column, feature in features.items()
        if type(feature).__name__ == "ClassLabel" and feature.names
    }


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def datasets_library(source: str) -> Any:
    """The module `datasets`.

    Raises:
        DataFileError: it is not installed.
    """
    try:
        return import_module("datasets")
    except ImportError as error:
        raise DataFileError(
            f"{source}: this is for the datasets library, which is not installed. Give a file of text, JSON or CSV, "
            'or: pip install "torch-holdfast[transformers]"'
        ) from error
