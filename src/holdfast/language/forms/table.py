"""What every reader gives, a table whose entries can be read from the beginning again and again; and how files open."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import IO, Any

from holdfast.errors import DataFileError, OptionError

Entries = Iterator[tuple[str, Mapping[str, Any]]]
"""Where an entry stands, for an error's text, and its values by column."""

_OPENERS: Mapping[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED = (*_OPENERS, ".zst")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LOOKED_AT = 2**12
"""Bytes at the beginning of a file that show whether it is text."""


@dataclass(frozen=True)
class Table:
    """One file, or one split of a stored data set.

    Attributes:
        form: in words, for the user.
        entries: reads it from the beginning; nothing is held but the entry at hand.
        names: of the columns; empty where only the entries tell.
        classes: names of the classes of a column that is stored as their numbers.
        is_text: the entries are the lines of one document, each under "text".
    """

    form: str
    entries: Callable[[], Entries]
    names: tuple[str, ...] = ()
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    is_text: bool = False


def suffix_of(path: Path) -> str:
    """What the name ends with in lower case, without the ending of a compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


@contextmanager
def opened_text(path: Path, *, newline: str | None = None) -> Iterator[IO[str]]:
    """The file as text: UTF-8, or what its byte order mark says; unpacked where its name ends in .gz, .bz2, .xz, .zst.

    Args:
        path: of the file.
        newline: see `open`.

    Raises:
        DataFileError: it cannot be read, is no text, or ends before its time.
        OptionError: `.zst` without pyarrow.
    """
    with readable(path), _unpacked(path) as file:
        beginning = file.peek(_LOOKED_AT)[:_LOOKED_AT]
        encoding = next((name for mark, name in _MARKS if beginning.startswith(mark)), "utf-8")
        if encoding.startswith("utf-8") and b"\0" in beginning:
            raise DataFileError(
                f"{path} is no text: byte {beginning.index(0)} is zero. Give text in UTF-8, or in UTF-16 with a byte "
                "order mark, or a file of another form under a name that says so, such as .parquet."
            )
        with TextIOWrapper(file, encoding=encoding, newline=newline) as text:
            yield text


@contextmanager
def readable(path: Path, *foreign: type[Exception]) -> Iterator[None]:
    """What a file can have wrong, as one error that names it.

    Args:
        path: of the file.
        foreign: what else a library raises of a file that is not whole.
    """
    try:
        yield
    except UnicodeError as error:
        told = f"{error.reason} at byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
        raise DataFileError(f"{path} is no text in UTF-8 ({told}). Write it anew in UTF-8.") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, *foreign) as error:
        raise DataFileError(
            f"{path} is not whole, or not what its name says ({told_by(error)}). Copy it again."
        ) from error
    except OSError as error:
        if isinstance(error, DataFileError):
            raise
        raise DataFileError(f"{path} cannot be read: {error.strerror or error}.") from error


def told_by(error: Exception) -> str:
    """An error of a foreign library in one line."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def library(name: str, source: object) -> Any:
    """A module that reads what holdfast does not read by itself.

    Raises:
        OptionError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise OptionError(
            f"{source}: it is read by {name}, which is not installed. Give text, JSON or CSV, or: pip install "
            '"torch-holdfast[transformers]"'
        ) from error


def _unpacked(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        return BufferedReader(library("pyarrow", path).input_stream(str(path), compression="zstd"))
    return BufferedReader(_OPENERS[suffix](path)) if suffix in _OPENERS else path.open("rb")
