"""Typed tables: Parquet and Arrow files, folders that `datasets` saved, and names on its hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from holdfast.errors import DataFileError, OptionError
from holdfast.files import special_files
from holdfast.language.forms.table import Entries, Table, library, readable, told_by

SAVED = ("state.json", "dataset_dict.json")
"""What `save_to_disk` writes beside a data set, and beside several splits."""
_ROWS = 1024
"""Read at once."""


def typed_table(path: Path) -> Table:
    """A Parquet file, an Arrow file, or a stream of record batches; classes keep the names that `datasets` wrote.

    Raises:
        DataFileError: it is damaged.
        OptionError: two columns of one name; or without pyarrow.
    """
    broken = library("pyarrow", path).ArrowException
    with readable(path, broken):
        schema = next(_batches(path))
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise OptionError(f"{path}: 2 columns are named {repeated[0]!r}. Rename one, and write the file anew.")
    classes: Mapping[str, tuple[str, ...]] = {}
    if b"huggingface" in (schema.metadata or {}):
        classes = _classes(library("datasets", path).Features.from_arrow_schema(schema))

    def entries() -> Entries:
        number = 0
        with readable(path, broken):
            for batch in islice(_batches(path), 1, None):
                for start in range(0, batch.num_rows, _ROWS):
                    for entry in batch.slice(start, _ROWS).to_pylist():
                        number += 1
                        yield f"{path}, row {number}", entry

    return Table("Parquet" if path.suffix.lower() == ".parquet" else "Arrow", entries, tuple(schema.names), classes)


def _batches(path: Path) -> Iterator[Any]:
    """The schema, and then the batches."""
    import pyarrow
    from pyarrow import parquet

    if path.suffix.lower() == ".parquet":
        with parquet.ParquetFile(path) as file:
            yield file.schema_arrow
            yield from file.iter_batches(batch_size=_ROWS)
        return
    with pyarrow.memory_map(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"  # which `datasets` writes as a stream
        file.seek(0)
        with (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(file) as reader:
            yield reader.schema
            found = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            for batch in found:
                batch.validate(full=True)  # what is not looked at before could end the process
                yield batch


def saved_tables(folder: Path) -> dict[str, Table]:
    """The splits of a folder that `datasets` saved; under "" where it is a data set without splits.

    Raises:
        DataFileError: it cannot be loaded.
        OptionError: without the `datasets` library.
    """
    datasets = library("datasets", folder)
    special = special_files(folder.rglob("*"))
    if special:
        raise DataFileError(f"{folder}: {', '.join(special)} is a pipe or a device; expected files. Take it away.")
    try:
        found = datasets.load_from_disk(str(folder))
        splits = dict(found) if hasattr(found, "keys") else {"": found}
        for data in splits.values():
            data.data.validate(full=True)  # what is not looked at before could end the process
    except Exception as error:  # whatever a foreign library can say of a damaged folder
        raise DataFileError(
            f"{folder}: datasets cannot load it ({told_by(error)}). Save it again with save_to_disk."
        ) from error
    return {split: _of_library(f"{folder}", data, "saved by datasets") for split, data in splits.items()}


def named_table(source: str, split: str) -> Table:
    """A data set of the hub, streamed.

    Raises:
        DataFileError: there is none, or it cannot be reached.
        OptionError: without the `datasets` library.
    """
    datasets = library("datasets", source)
    name, _, configuration = source.partition(":")
    try:
        found = datasets.load_dataset(name, configuration or None, split=split, streaming=True)
    except Exception as error:  # whatever a network and a foreign library can say
        raise DataFileError(
            f"{source}: neither a file or folder nor a data set that datasets can load: {told_by(error)}. Give a file "
            "or folder, or NAME:CONFIGURATION with a network."
        ) from error
    return _of_library(source, found, "streamed by datasets")


def _of_library(source: str, data: Any, form: str) -> Table:
    features = getattr(data, "features", None) or {}

    def entries() -> Entries:
        number = 0
        try:
            for number, entry in enumerate(data, start=1):
                yield f"{source}, row {number}", entry
        except Exception as error:  # likewise
            raise DataFileError(f"{source}: no more than {number} rows can be read: {told_by(error)}.") from error

    return Table(form, entries, tuple(features), _classes(features))


def _classes(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names of the classes of every column that has some."""
    return {
        column: tuple(feature.names)
        for column, feature in features.items()
        if type(feature).__name__ == "ClassLabel" and feature.names
    }
