"""Programs that a test starts and listens to."""

from __future__ import annotations

import subprocess

import pytest


def read_until(program: subprocess.Popen[str], line: str) -> None:
    """Read what a program prints until it prints `line`; one that ends before it does fails the test."""
    assert program.stdout is not None
    read = []
    for told in program.stdout:
        if told.strip() == line:
            return
        read.append(told)
    pytest.fail(f"the program ended with status {program.wait()} before it said {line!r}; it said {read[-5:]}")
