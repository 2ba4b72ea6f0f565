"""Programs that a test starts and listens to."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


def read_until(program: subprocess.Popen[str], line: str, *, first_word: bool = False) -> None:
    """Read what a program prints until it prints `line`, or one that begins with it; one that ends before fails."""
    assert program.stdout is not None
    read = []
    for told in program.stdout:
        if (told.split()[:1] == [line]) if first_word else (told.strip() == line):
            return
        read.append(told)
    pytest.fail(f"the program ended with status {program.wait()} before it said {line!r}; it said {read[-5:]}")


def workers_of(process: int) -> list[int]:
    """The worker processes that a process has started."""
    children = Path(f"/proc/{process}/task").glob("*/children")
    found = [int(child) for path in children for child in path.read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
