from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from holdfast.lab.sweep import session as module
from holdfast.lab.sweep.session import living


class Memory:
    """A ledger that forgets when the test is over."""

    def __init__(self) -> None:
        self.user_attrs: dict[str, Any] = {}

    def set_user_attr(self, key: str, value: Any) -> None:
        self.user_attrs[key] = value


DIES = """
import json, os, sys
from pathlib import Path
from tests.lab.sweep.test_session import Memory
from holdfast.lab.sweep.session import living
with living([Memory()], folder=Path(sys.argv[1])) as session:
    print(json.dumps(session.owner), flush=True)
    os.kill(os.getpid(), 9)
"""


def test_it_lives_within_the_block(tmp_path):
    ledger = Memory()
    with living([ledger], folder=tmp_path) as other, living([ledger], folder=tmp_path) as session:
        assert not session.is_dead(session.owner, ledger)
        assert not session.is_dead(other.owner, ledger)
    assert session.is_dead(other.owner, ledger)
    assert not list(tmp_path.iterdir())


def test_one_that_was_killed_is_dead_at_once_on_its_own_machine(tmp_path):
    done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -9
    with living([Memory()], folder=tmp_path) as session:
        assert session.is_dead(json.loads(done.stdout), Memory())


def test_on_another_machine_the_beats_count(tmp_path, monkeypatch):
    ledger, now = Memory(), 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with living([], folder=tmp_path) as far, living([], folder=tmp_path) as session:
        owner = {**far.owner, "machine": "far away"}
        far.beat(ledger, 0)
        assert not session.is_dead(owner, ledger)
        now += module.GRACE - 1
        assert not session.is_dead(owner, ledger)
        far.beat(ledger, 1)
        now += 2
        assert not session.is_dead(owner, ledger)
        now += module.GRACE + 1
        assert session.is_dead(owner, ledger)


def test_one_that_died_before_it_wrote_its_name(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with living([], folder=tmp_path) as session:
        assert not session.is_dead(None, Memory())
        now += module.GRACE + 1
        assert session.is_dead(None, Memory())
