"""Single files: read where they are regular files, written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from io import BufferedReader
from pathlib import Path
from typing import Any

from holdfast.errors import FileFormatError, OutputError

TEMPORARY = ".holdfast-{name}.{pid}.new"
"""The name under which a file is written before it takes its place."""


_ABANDONED = 120.0
"""Seconds after which nobody writes a temporary file any more; a process of another machine may, whose number is free
here.
"""

_MOST_DIGITS = 40
"""Of a whole number in a JSON file; seeds and hashes have half as many."""


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: if the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there takes its place when the block ends without an error.

    Raises:
        OutputError: an `OSError` in the block or in the renaming; what stood at `path` is kept.
    """
    temporary = path.with_name(TEMPORARY.format(name=path.name, pid=os.getpid()))
    _sweep(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}. Choose a place that can be written.") from error
    finally:
        _discard(temporary)  # also after Ctrl-C; gone already where all went well


def _sweep(path: Path) -> None:
    """Remove what killed processes left of writing this file."""
    with suppress(OSError):
        for stale in path.parent.glob(TEMPORARY.format(name=escape(path.name), pid="*")):
            pid = stale.name.split(".")[-2]
            is_ours = pid.isdecimal() and stale.is_file() and not stale.is_symlink()
            if is_ours and time.time() - stale.stat().st_mtime > _ABANDONED and not _is_alive(int(pid)):
                _discard(stale)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def _discard(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def special_files(paths: Iterable[Path]) -> list[str]:
    """The names of those that are neither files nor folders, such as pipes, on which a library could wait forever."""
    there = [path for path in sorted(paths) if path.exists()]
    return [path.name for path in there if not (path.is_file() or path.is_dir())]


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A regular file, opened to be read; a pipe or a device, which could wait forever, is refused.

    Raises:
        FileFormatError: it is missing, no regular file, or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileFormatError(f"{path} is no regular file (a folder, a pipe or a device); expected a file.")
        file = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    with file:
        yield file


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        FileFormatError: it is missing, no regular file, or cannot be read.
    """
    with opened(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise FileFormatError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileFormatError: if the file is missing, no regular file, or holds no JSON object.
    """
    return parsed_json(read_bytes(path), where=path)


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def parsed_json(content: bytes, *, where: Path) -> dict[str, Any]:
    """The JSON object in the content of a file.

    Raises:
        FileFormatError: it is not one; `where` is named.
    """
    try:
        found = json.loads(content.decode("utf-8"), parse_int=_whole_number)
        if b"\\ud" in content.lower():  # half a character may be escaped, and could be neither shown nor written
            json.dumps(found, ensure_ascii=False).encode()
    except ValueError as error:
        raise FileFormatError(f"{where} is no valid JSON ({error}): truncated or edited. Save it again.") from error
    except RecursionError as error:
        raise FileFormatError(f"{where} is JSON nested too deeply: edited. Save it again.") from error
    if not isinstance(found, dict):
        raise FileFormatError(f"{where} holds a JSON {type(found).__name__}; expected an object.")
    return found
