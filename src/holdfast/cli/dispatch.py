"""From what was typed to the command that does it, and from its errors to an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from holdfast.cli.language_options import (
    DreamOptions,
    EvaluateOptions,
    FinetuneOptions,
    ImportanceOptions,
)
from holdfast.cli.options import AdviseOptions, DemoOptions, ReportOptions, ReproduceOptions, RunOptions, SweepOptions
from holdfast.cli.parsing import parse, show_help
from holdfast.errors import FailedRunsError, HoldfastError, OptionError, UnknownNameError
from holdfast.lab.foreign import foreign_trace, in_a_line, is_foreign
from holdfast.version import __version__

FAILED, INTERRUPTED = 1, 130

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


def dispatch(argv: Sequence[str]) -> int:
    """Run the command that `argv` names; see `holdfast.cli.main`. Errors of code of others are told with its lines."""

    def command() -> int:
        try:
            return _command(argv)
        except Exception as error:
            if not is_foreign(error):
                raise
            print(f"{foreign_trace(error)}holdfast: {in_a_line(error)}", file=sys.stderr)
            return FAILED

    return guarded(command)


def guarded(command: Callable[[], int]) -> int:
    """The exit status of a command, whose errors are told in one line."""
    try:
        return command()
    except HoldfastError as error:
        print(f"holdfast: {in_a_line(error)}", file=sys.stderr)
        return FAILED if isinstance(error, FailedRunsError) else 2
    except KeyboardInterrupt:
        print("\nholdfast: interrupted. The same command goes on where it was.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads on, as in `holdfast run list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # what a system says of a path that was typed, such as a name that is too long
        if error.filename is None:
            raise
        print(f"holdfast: {error.filename!s:.200}: {error.strerror}. Give another path.", file=sys.stderr)
        return 2


def _command(argv: Sequence[str]) -> int:
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
    _check_alone(name)
    # each command imports what it needs, so that --help and a mistyped option answer at once
    module = import_module(f"holdfast.cli.{name}")
    getattr(module, f"{name}_command")(options)
    return 0


def _check_alone(name: str) -> None:
    """Raise where several processes were started, which would do the same work and write to the same place."""
    size = os.environ.get("WORLD_SIZE", "")
    if size.isdigit() and int(size) > 1:
        raise OptionError(
            f"{name}: WORLD_SIZE is {size}, so {size} processes were started, and each would write the same files. The "
            f"command line runs as one process: start it without torchrun, as holdfast {name} ..."
        )
