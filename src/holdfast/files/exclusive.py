"""A place that one process at a time works in, set free by the system itself when that process dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from holdfast.errors import OutputError

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
    lock = FileLock(path, poll_interval=SECONDS)
    try:
        path.parent.resolve().mkdir(parents=True, exist_ok=True)  # where a link leads, too
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                waiting()
            lock.acquire()
    except OSError as error:
        raise OutputError(f"cannot write {path.parent}: {error}. Choose another --output.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held: one that waits sees that the file is gone, and makes its own
            path.unlink()
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock file."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
