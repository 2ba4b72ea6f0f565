"""A place that one process at a time works in, set free by the system itself when that process dies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from holdfast.errors import OutputError

try:
    from fcntl import LOCK_EX, LOCK_NB, flock

    def _take(file: int) -> None:
        flock(file, LOCK_EX | LOCK_NB)

except ImportError:  # Windows
    import msvcrt

    def _take(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]


SECONDS = 0.2
"""Between two looks at a lock that another process holds."""


@contextmanager
def locked(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path` for the length of the block; a lock whose process is dead is free.

    Args:
        path: made where it is not there, with its folder, and removed at the end of the block.
        waiting: called once if another process holds it, before this one waits for it.

    Raises:
        OutputError: the file cannot be made.
    """
    while True:
        file = _open(path)
        try:
            if _taken(file) and _is(file, path):
                break
            if _is(file, path) and waiting is not None:
                waiting()
                waiting = None
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # held by another, or removed by the one that held it
        time.sleep(SECONDS)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock file."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _taken(file)
    finally:
        os.close(file)


def _open(path: Path) -> int:
    try:
        path.parent.resolve().mkdir(parents=True, exist_ok=True)  # where a link leads, too
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"cannot write {path.parent}: {error}. Choose another --output.") from error


def _taken(file: int) -> bool:
    """Take the lock of an open file; False where another process has it."""
    try:
        _take(file)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is(file: int, path: Path) -> bool:
    """Whether the open file is the one that stands at `path` now."""
    try:
        return os.fstat(file).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
