"""The lock of a folder: one process at a time writes into it, and a reader may keep writers out for a moment."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

    def _take_alone(folder: int) -> None:
        flock(folder, LOCK_EX)

    def _take_with_readers(folder: int) -> None:
        flock(folder, LOCK_SH | LOCK_NB)

    HAS_LOCKS = True
except ImportError:  # Windows, where two processes must not write into one folder at the same time
    HAS_LOCKS = False

_PATIENCE = 10.0
"""Seconds that a reader waits for writers; then it reads beside them."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: no other process writes into it."""
    if not HAS_LOCKS:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            _take_alone(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def undisturbed(folder: Path) -> Iterator[None]:
    """Keep writers out of a folder within the block, as other readers may; in vain where one writes for too long."""
    try:
        descriptor = os.open(folder, os.O_RDONLY) if HAS_LOCKS else -1
    except OSError:  # there is no such folder
        descriptor = -1
    try:
        until = time.monotonic() + _PATIENCE
        while descriptor >= 0 and time.monotonic() < until:
            try:
                _take_with_readers(descriptor)
                break
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)
