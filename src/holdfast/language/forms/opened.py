"""Text files opened whatever their compression and encoding, with errors that name the file."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import IO, Any

from holdfast.errors import DataFileError, OptionError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LOOKED_AT = 2**12
"""Bytes at the beginning of a file that show whether it is text."""


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
                "order mark."
            )
        with TextIOWrapper(file, encoding=encoding, newline=newline) as text:
            yield text


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What a file can have wrong, as one error that names it."""
    try:
        yield
    except UnicodeError as error:
        told = f"{error.reason} at byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
        raise DataFileError(f"{path} is no text in UTF-8 ({told}). Write it anew in UTF-8.") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise DataFileError(f"{path} is not whole, or not what its name says ({error}). Copy it again.") from error
    except OSError as error:
        if isinstance(error, DataFileError):
            raise
        raise DataFileError(f"{path} cannot be read: {error.strerror or error}.") from error


def _unpacked(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return BufferedReader(gzip.open(path))  # type: ignore[arg-type]
    if suffix == ".bz2":
        return BufferedReader(bz2.open(path))  # type: ignore[arg-type]
    if suffix == ".xz":
        return BufferedReader(lzma.open(path))  # type: ignore[arg-type]
    if suffix == ".zst":
        return BufferedReader(pyarrow_library(path).input_stream(str(path), compression="zstd"))
    return path.open("rb")


def pyarrow_library(path: Path) -> Any:
    """The module pyarrow.

    Raises:
        OptionError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise OptionError(
            f'{path}: {path.suffix} needs pyarrow, which is not installed: pip install "torch-holdfast[transformers]"'
        ) from error
    return pyarrow
