"""One run done in this process, or in a process that does many, one after the other."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import torch

from holdfast.errors import HoldfastError
from holdfast.lab.config import RunConfig
from holdfast.lab.engine import EventCallback
from holdfast.lab.foreign import foreign_trace, in_a_line
from holdfast.lab.plugins import load_plugins, named_plugins
from holdfast.lab.result import RunResult
from holdfast.lab.running import run

PATIENCE = 1.0
"""Seconds between two looks at whether a process that says nothing is alive: one of its own may hold its pipe open."""

_SPAWN = multiprocessing.get_context("spawn")


class WorkerDiedError(Exception):
    """A worker process has died."""


@dataclass(frozen=True)
class Done:
    """How a run ended.

    Attributes:
        result: what it found; None where it is not finished.
        error: why it failed; empty where it did not.
        kind: name of the class of that error.
    """

    result: RunResult | None = None
    error: str = ""
    kind: str = ""

    @classmethod
    def failed(cls, error: Exception) -> Done:
        """With what an error says; of one that is none of holdfast's its trace goes to the standard error."""
        if not isinstance(error, HoldfastError) and sys.stderr is not None:
            sys.stderr.write(foreign_trace(error))
        return cls(error=in_a_line(error), kind=type(error).__name__)


Perform = Callable[[RunConfig, EventCallback], Done]
"""Does a run; each event has the name of the run's folder under "run". An error of the callback ends it, resumable."""


def perform(config: RunConfig, on_event: EventCallback, **where: Any) -> Done:
    """Do a run in this process.

    Args:
        config: of the run.
        on_event: see `Perform`.
        where: output, device and data_dir, as `run` takes them.
    """
    raised: list[Exception] = []

    def told(event: Mapping[str, Any]) -> None:
        try:
            on_event({**event, "run": config.name})
        except Exception as error:
            raised.append(error)
            raise

    try:
        return Done(run(config, on_event=told, **where))
    except Exception as error:
        if error in raised:
            raise
        return Done.failed(error)


class Worker:
    """A process of one torch thread that does runs, one after the other, and ends when this process does.

    It loads the plug-ins of this process. What it prints appears on this process' standard error, its warnings are
    given here, and Ctrl-C is left to this process.

    Args:
        perform: what does a run there.
    """

    def __init__(self, perform: Perform) -> None:
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs, perform, named_plugins()))
        with _started_safely():
            self._process.start()
        theirs.close()

    def __call__(self, config: RunConfig, on_event: EventCallback) -> Done:
        """Have a run done; `on_event` is called in this thread, and the run goes on when it returns.

        An error of `on_event` ends the run, resumable, and is raised here.

        Raises:
            WorkerDiedError: the process has died; the run can be resumed by another.
        """
        error: BaseException | None = None
        self._send(config.to_dict())
        while True:
            kind, told = self._received()
            match kind:
                case "event":
                    try:
                        on_event(told)
                    except BaseException as raised:
                        error = raised
                    self._send(error is not None)
                case "warning":
                    warnings.warn(told, stacklevel=2)
                case "printed":
                    with suppress(OSError, ValueError, AttributeError):  # standard error is closed, or there is none
                        sys.stderr.write(told)
                case "done":
                    if error is not None:
                        raise error
                    return told
                case _:
                    raise AssertionError(kind)

    def _send(self, message: object) -> None:
        with self._alive():
            self._connection.send(message)

    def _received(self) -> tuple[str, Any]:
        with self._alive():
            while not self._connection.poll(PATIENCE):
                if not self._process.is_alive() and not self._connection.poll():
                    raise EOFError
            return self._connection.recv()

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            self.end(patience=PATIENCE)
            raise WorkerDiedError(how_it_died(self._process.exitcode)) from error

    def end(self, *, patience: float = 0.0) -> None:
        """End the process, however busy it is, unless it ends by itself in so many seconds."""
        self._process.join(patience)
        self._process.kill()
        self._process.join()


def how_it_died(status: int | None) -> str:
    """An exit status in words, with a remedy.

    Args:
        status: as `multiprocessing` has it: -n after signal n.
    """
    if status == -signal.SIGKILL:
        return (
            f"exit status {status}, killed. The system does so where memory is short: give it more, or use fewer jobs."
        )
    name = f", {signal.strsignal(-status)}" if status is not None and status < 0 else ""
    return f"exit status {status}{name}. Run it alone, with one job, to see why."


def leave_interrupts() -> None:
    """Leave Ctrl-C to the main thread: block it in this one, and in the processes that this one starts."""
    if sys.platform != "win32":
        resource_tracker.ensure_running()  # else the first process starts it, and it takes the block away
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextmanager
def _started_safely() -> Iterator[None]:
    """No file of the working folder takes the place of a module while Python starts; the path is then this one's."""
    wanted = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _StoppedError(Exception):
    """The parent's `on_event` has raised an error."""


class _Printed(io.TextIOBase):
    """Tells what is written, line by line."""

    def __init__(self, tell: Callable[[str, Any], None]) -> None:
        self._tell, self._begun = tell, ""

    def write(self, text: str, /) -> int:
        lines, end, self._begun = (self._begun + text).rpartition("\n")
        if end:
            self._tell("printed", lines + end)
        return len(text)


def _serve(connection: Connection, perform: Perform, plugins: tuple[str, ...]) -> None:
    """The work of the process: does the runs that it is sent, until this process' parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    lock = threading.Lock()

    def tell(kind: str, told: Any) -> None:
        with lock:
            connection.send((kind, told))

    def on_event(event: Mapping[str, Any]) -> None:
        tell("event", dict(event))
        if connection.recv():
            raise _StoppedError

    os.dup2(2, 1)  # what is written past Python is no output of the command
    sys.stdout = sys.stderr = _Printed(tell)
    warnings.showwarning = lambda message, *_, **__: tell("warning", " ".join(str(message).split()))
    while True:
        content = connection.recv()
        try:
            load_plugins(plugins)
            done = perform(RunConfig.from_dict(content), on_event)
        except _StoppedError:
            done = None
        except Exception as error:
            done = Done.failed(error)
        tell("done", done)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # in mid-run, too: a run can be resumed
