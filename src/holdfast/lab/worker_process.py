"""The parent's side of a worker process: how it is started, spoken to and ended, and why it died."""

from __future__ import annotations

import json
import os
import queue
import signal
import site
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import holdfast
from holdfast.lab.config import RunConfig

KEPT_LINES = 5
"""So many of the last lines that a worker wrote to its standard error are told when it dies."""
PATIENCE = 10.0
"""Seconds that a worker has to end by itself once its output has ended."""

Inbox = queue.SimpleQueue[tuple["WorkerProcess", "dict[str, Any] | None"]]
"""What workers tell, and None once one of them will say no more."""


class WorkerProcess:
    """One process of `holdfast.lab.worker`, which reads runs and writes events as lines of JSON.

    Python starts with `-P`, so that no file of the working folder takes the place of a module. What the process writes
    to its standard error appears on that of this process.

    Attributes:
        config: of the run that it is at; None while it waits.

    Args:
        greeting: the first message, which says where runs stand.
        inbox: where its messages are put.
    """

    def __init__(self, greeting: Mapping[str, Any], inbox: Inbox) -> None:
        self.config: RunConfig | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "holdfast.lab.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment(os.environ),
        )
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.send(greeting)
        self._readers = [
            threading.Thread(target=read, daemon=True) for read in (lambda: self._read(inbox), self._pass_on)
        ]
        for reader in self._readers:
            reader.start()

    def take(self, config: RunConfig) -> None:
        """Have a run done."""
        self.config = config
        self.send({"config": config.to_dict()})

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; one that is dead hears nothing, which its reader tells."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """End the process, however busy it is."""
        assert self._process.stdin is not None
        self._process.terminate()
        with suppress(OSError):
            self._process.stdin.close()
        self._readers[0].join()
        self._process.wait()
        self._readers[1].join(timeout=1)  # a process of its own may hold the pipe open

    def death(self) -> str:
        """How it died by itself: its exit status, and the last lines of its standard error."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self.end()
        return how_it_died(self._process.returncode, list(self._last_lines))

    def _read(self, inbox: Inbox) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with suppress(ValueError):  # half a line of a process that was killed
                    inbox.put((self, json.loads(line)))
        inbox.put((self, None))

    def _pass_on(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                if line.strip():
                    self._last_lines.append(line.strip())
                with suppress(OSError, ValueError, AttributeError):  # this process' own is closed, or there is none
                    sys.stderr.write(line)
                    sys.stderr.flush()


def how_it_died(status: int, last_lines: Sequence[str]) -> str:
    """An exit status in words, what was said last, and a remedy.

    Args:
        status: as `subprocess` has it: -n after signal n.
        last_lines: of standard error.
    """
    name = _signal_name(-status) if status < 0 else ""
    how = f"exit status {status}, killed by {name}" if name else f"exit status {status}"
    said = f" Its last words: {' / '.join(last_lines)}." if last_lines else ""
    if status == -signal.SIGKILL:
        return f"{how}.{said} The system does so where memory is short: give it more, or use fewer jobs."
    return f"{how}.{said} Run it alone, with one job, to see why."


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What a worker is to see of the environment: one thread, this very holdfast, and no empty entry of PYTHONPATH.

    Python takes an empty entry for the working folder. The packages that are installed are on the path anyhow, behind
    the standard library.
    """
    package = str(Path(holdfast.__file__).parents[1])
    own = [] if package in (*site.getsitepackages(), site.getusersitepackages()) else [package]
    path = [*own, *filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))]
    rest = {name: value for name, value in inherited.items() if name != "PYTHONPATH"}
    return {**rest, **({"PYTHONPATH": os.pathsep.join(path)} if path else {}), "OMP_NUM_THREADS": "1"}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
