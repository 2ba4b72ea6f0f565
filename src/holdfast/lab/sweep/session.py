"""One process at work on a sweep: its signs of life, and those of others."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from holdfast.files.exclusive import is_held, locked

BEAT = 20.0
"""Seconds between two signs of life."""

GRACE = 180.0
"""Seconds without one after which a session on another machine counts as dead."""


class Ledger(Protocol):
    """Where all sessions write their signs of life: an Optuna study."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        """What is written there."""
        ...

    def set_user_attr(self, key: str, value: Any) -> None:
        """Write there."""
        ...


class Session:
    """This process, as other processes see it.

    It holds a lock file, by which processes on the same machine know at once whether it lives. Those on others count
    its beats; clocks need not agree.

    Attributes:
        owner: what is written at the trials that it is at work on.
    """

    def __init__(self, lock: Path) -> None:
        self._seen: dict[str, tuple[Any, float]] = {}
        self.owner = {"session": uuid.uuid4().hex, "machine": machine(), "lock": str(lock.absolute())}

    def beat(self, ledger: Ledger, number: int) -> None:
        """Give a sign of life."""
        ledger.set_user_attr(f"beat {self.owner['session']}", number)

    def is_dead(self, owner: Mapping[str, str] | None, ledger: Ledger) -> bool:
        """Whether the session that wrote `owner` is gone; None, of one that died before it wrote it, becomes so."""
        if owner is not None and owner["session"] == self.owner["session"]:
            return False
        if owner is not None and owner["machine"] == self.owner["machine"]:
            return not is_held(Path(owner["lock"]))
        name = "" if owner is None else owner["session"]
        beat = ledger.user_attrs.get(f"beat {name}")
        before, since = self._seen.setdefault(name, (beat, time.monotonic()))
        if beat != before:
            self._seen[name] = (beat, time.monotonic())
            return False
        return time.monotonic() - since > GRACE


@contextmanager
def living(ledgers: Sequence[Ledger], *, folder: Path) -> Iterator[Session]:
    """A session that beats in all ledgers for the length of the block; its lock file stands in `folder`."""
    lock = folder / f".holdfast-sweep-{uuid.uuid4().hex[:12]}.lock"
    session = Session(lock)
    over = threading.Event()

    def beat() -> None:
        for number in count():
            for ledger in ledgers:
                session.beat(ledger, number)
            if over.wait(BEAT):
                return

    with locked(lock):
        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield session
        finally:
            over.set()
            heart.join()


def machine() -> str:
    """A name that no two machines share."""
    return f"{socket.gethostname()}-{uuid.getnode():x}"
