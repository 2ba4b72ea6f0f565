"""Several processes that run one command: which of them tells an error, and what ends them all."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from holdfast.cli.ending import LOST, Ending, ending_of
from holdfast.errors import LostProcessError
from holdfast.language.launched import Launch, joined
from holdfast.language.processes import Processes, is_loss

PATIENCE = 15.0
"""Seconds in which the first process comes upon the same error."""

SOON = 2.0
"""Seconds in which it is known whether one that is gone told why, which it does first."""

GRACE = 10.0
"""Seconds from SIGTERM in which a process ends by itself; later it is one that waits for another in vain."""


class _TerminatedError(BaseException):
    """SIGTERM, by which torchrun ends all where one is gone. No `Exception`: nothing takes it for one of its own."""


def run_together(launch: Launch, command: Callable[[Processes], int]) -> int:
    """The exit status of a command that all processes run together.

    An error that they all meet with is told by the first alone. Where one is gone each of the others says so, unless
    that one said why.
    """
    with _terminated_in_a_line(launch) as over:
        try:
            with joined(launch) as (processes, store):
                try:
                    found = ending_of(lambda: _lost_told(processes, command))
                except BaseException:
                    over()
                    _tell(store, launch.rank, "an error of which there is a traceback")
                    raise
                over()
                found = Ending(found.status, _own_line(found, launch, store))
        except LostProcessError as error:  # they did not find each other
            found = Ending(LOST, _named(launch, str(error)))
        except _TerminatedError:  # while they looked
            found = Ending(LOST, _named(launch, str(Processes(launch.rank, launch.count).lost())))
        return _said(found)


def run_beside(launch: Launch, command: Callable[[], int]) -> int:
    """The exit status of a command that each process runs by itself, beside the others.

    Of an error that they all meet with the first tells, and at its end torchrun ends the others.
    """
    found = ending_of(command)
    if found.line and launch.rank:
        time.sleep(PATIENCE)
        found = Ending(found.status, _named(launch, found.line))
    return _said(found)


def _said(found: Ending) -> int:
    if found.line:
        print(f"holdfast: {found.line}", file=sys.stderr, flush=True)
    return found.status


def _named(launch: Launch, line: str) -> str:
    return f"process {launch.rank} of {launch.count}: {line}"


def _lost_told(processes: Processes, command: Callable[[Processes], int]) -> int:
    """Run the command; whatever shows that another process is gone becomes one error."""
    try:
        with warnings.catch_warnings():
            if not processes.is_first:
                warnings.simplefilter("ignore")
            return command(processes)
    except _TerminatedError as error:
        raise processes.lost() from error
    except RuntimeError as error:
        if is_loss(error):
            raise processes.lost() from error
        raise


def _own_line(found: Ending, launch: Launch, store: Any) -> str:
    """What this process is to say of an error; empty where another says it."""
    if found.status == LOST:
        with suppress(RuntimeError):  # the store may be gone with the process that held it
            if _has_told(store, range(launch.count), SOON):
                return ""
        return _named(launch, found.line)
    if not found.line:
        return ""
    _tell(store, launch.rank, found.line)
    if launch.rank == 0:
        return found.line
    try:
        first = store.get("0").decode() if _has_told(store, (0,), PATIENCE) else ""
    except RuntimeError:  # the first has told its error, and ended
        return ""
    return "" if first == found.line else _named(launch, found.line)


def _tell(store: Any, rank: int, line: str) -> None:
    with suppress(RuntimeError):
        store.set(str(rank), line)


def _has_told(store: Any, ranks: Iterable[int], seconds: float) -> bool:
    """Whether one of these processes told an error, or does so in time."""
    until, keys = time.monotonic() + seconds, list(map(str, ranks))
    while not (found := any(store.check([key]) for key in keys)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


@contextmanager
def _terminated_in_a_line(launch: Launch) -> Iterator[Callable[[], None]]:
    """Until the yielded function is called, SIGTERM ends the command as an error does, and later not at all.

    A process that waits inside torch for one that is gone cannot take a signal: a thread then ends it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    ends, wakes = socket.socketpair()
    wakes.setblocking(False)
    closed = threading.Event()

    def raises(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _TerminatedError

    def over() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        closed.set()

    def watch() -> None:
        while number := ends.recv(1):
            if number[0] == signal.SIGTERM and not closed.wait(GRACE):
                _said(Ending(LOST, _named(launch, str(Processes(launch.rank, launch.count).lost()))))
                os._exit(LOST)
        ends.close()

    before = signal.signal(signal.SIGTERM, raises)
    woken = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield over
    finally:
        signal.set_wakeup_fd(woken)
        wakes.close()
        signal.signal(signal.SIGTERM, before)
