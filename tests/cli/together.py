"""What each of several processes does: `python together.py FOLDER`, its commands in FOLDER/commands.json.

All commands are done in one process group. Where there is FOLDER/dies.json, one command is done as typed, and the last
process kills itself when the work that is named there is so far.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from holdfast.cli import importance, main
from holdfast.cli.dispatch import perform
from holdfast.cli.progress import Stages
from holdfast.language.launched import joined, launch_of


def die_at(work: str, step: int, *, by: str = "SIGKILL") -> None:
    """Send this process a signal when so much of the work is done."""
    shown = Stages.__call__

    def shows(self: Stages, name: str, done: int, total: int | None) -> None:
        if name.startswith(work) and done >= step:
            os.kill(os.getpid(), signal.Signals[by])
        shown(self, name, done, total)

    Stages.__call__ = shows  # type: ignore[method-assign]


def run(folder: Path) -> int:
    commands: list[list[str]] = json.loads((folder / "commands.json").read_text())
    launch: Any = launch_of(os.environ)
    if (folder / "dies.json").exists():
        when = json.loads((folder / "dies.json").read_text())
        seconds = when.pop("checkpoint_seconds", 30)
        importance.measure_importance = partial(importance.measure_importance, checkpoint_seconds=seconds)
        if launch.rank == launch.count - 1:
            die_at(**when)
        return main(commands[0])
    with joined(launch) as (processes, _):
        for command in commands:
            perform(command, processes=processes)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(Path(sys.argv[1])))
