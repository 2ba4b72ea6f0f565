"""From what was typed to the command that does it, and from its errors to an exit status."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from importlib import import_module

import torch

from holdfast.cli.ending import guarded
from holdfast.cli.language_options import (
    DreamOptions,
    EvaluateOptions,
    FinetuneOptions,
    ImportanceOptions,
)
from holdfast.cli.options import AdviseOptions, DemoOptions, ReportOptions, ReproduceOptions, RunOptions, SweepOptions
from holdfast.cli.parsing import parse, show_help
from holdfast.cli.together import run_beside, run_together
from holdfast.errors import OptionError, UnknownNameError
from holdfast.language.launched import Launch, launch_of
from holdfast.language.processes import ALONE, Processes
from holdfast.version import __version__

COMMANDS: dict[str, type] = {
    "demo": DemoOptions,
    "run": RunOptions,
    "sweep": SweepOptions,
    "report": ReportOptions,
    "reproduce": ReproduceOptions,
    "importance": ImportanceOptions,
    "dream": DreamOptions,
    "finetune": FinetuneOptions,
    "evaluate": EvaluateOptions,
    "advise": AdviseOptions,
}
"""Every command, and the record of its options."""

_WITH_SETTINGS = ("run", "sweep")
"""Commands to whose options those of the stream, the net and the methods are added that were typed."""

TOGETHER = ("importance", "dream", "finetune", "evaluate")
"""Commands whose work several processes share."""

BESIDE = ("sweep",)
"""Commands that processes run beside each other, on one storage."""


def dispatch(argv: Sequence[str]) -> int:
    """Run the command that `argv` names; see `holdfast.cli.main`."""
    try:
        launch = launch_of(os.environ)
    except OptionError as error:
        return guarded(partial(_raise, error))
    if launch is None:
        return guarded(lambda: perform(argv))
    name = argv[0] if argv else ""
    if name in TOGETHER and not {"-h", "--help"} & {*argv}:
        return run_together(launch, lambda processes: _agreed(argv, processes))
    if name in BESIDE:
        return run_beside(launch, lambda: perform(argv))
    # a process that ends well does not end the others, so that the first comes to tell why
    return guarded(lambda: perform(argv, launch=launch)) if launch.rank == 0 else 0


def _raise(error: Exception) -> int:
    raise error


def _agreed(argv: Sequence[str], processes: Processes) -> int:
    processes.agree(argv[0], command=list(argv), version_of_holdfast=__version__, version_of_torch=torch.__version__)
    return perform(argv, processes=processes)


def perform(argv: Sequence[str], *, launch: Launch | None = None, processes: Processes = ALONE) -> int:
    """Run the command that `argv` names.

    Args:
        argv: what stands behind the program's name.
        launch: of several processes for a command that only one can do; None for any other.
        processes: that share the work.

    Returns:
        0; what goes wrong is raised.
    """
    if not argv or argv[0] in ("-h", "--help"):
        show_help(COMMANDS)
        return 0
    if argv[0] == "--version":
        print(f"holdfast {__version__}")
        return 0
    name, rest = argv[0], list(argv[1:])
    if name not in COMMANDS:
        raise UnknownNameError(
            "option" if name.startswith("-") else "command", name, [*COMMANDS, "--help", "--version"]
        )
    record, explain = COMMANDS[name], None
    if name in _WITH_SETTINGS:
        from holdfast.cli import settings

        record, explain = getattr(settings, f"{name}_record")(record, rest), settings.misplaced
    options = parse(record, rest, command=name, explain=explain)
    if options is None:
        return 0
    if launch is not None:
        raise OptionError(
            f"{name}: {launch.count} processes were started, and each would do the same work and write the same files. "
            f"Start it without torchrun, as holdfast {name} ...; several processes share the work of "
            f"{', '.join(TOGETHER)}, and of {', '.join(BESIDE)} each takes settings."
        )
    # each command imports what it needs, so that --help and a mistyped option answer at once
    run = getattr(import_module(f"holdfast.cli.{name}"), f"{name}_command")
    run(options, processes=processes) if name in TOGETHER else run(options)
    return 0
