"""tyro, held so that every mistake in what was typed becomes one line."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from itertools import dropwhile, takewhile
from typing import Annotated, Any, Union

import tyro
from tyro.conf import subcommand

from holdfast.cli.options import option_names
from holdfast.cli.values import RejectedValueError
from holdfast.errors import OptionError, UnknownNameError, nearest

_CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


Explain = Callable[[str, Sequence[str]], OptionError | None]


def parse(
    record: type, argv: Sequence[str], *, command: str, program: str = "holdfast", explain: Explain | None = None
) -> Any | None:
    """Read the options of a command into its record.

    Args:
        record: a dataclass.
        argv: what was typed after the command.
        command: its name.
        program: likewise.
        explain: given a flag that the record does not have and what was typed, the error that says more of it.

    Returns:
        The record; None when the help was asked for, and shown.

    Raises:
        OptionError: an option that the command does not have (the message offers the nearest), or a value that is
            missing, of the wrong kind, or one too many.
    """

    def refuse(unknown: Sequence[str]) -> None:
        for text in unknown:
            if explain is not None and (error := explain(text.partition("=")[0], argv)) is not None:
                raise OptionError(f"{command}: {error}")
        _refuse(unknown, record, command, program)

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            options, unknown = tyro.cli(
                record, prog=f"{program} {command}", args=list(argv), config=_CONFIG, return_unknown_args=True
            )
    except RejectedValueError as error:
        if isinstance(error.__cause__, UnknownNameError):
            raise error.__cause__ from None
        raise OptionError(f"{command}: {error}") from error
    except SystemExit as exit:
        if not exit.code:
            return None
        unknown = [text for text in argv if _is_unknown(text, record)]
        refuse(unknown)
        raise OptionError(f"{command}: {_first_sentence(said.getvalue())} See {program} {command} --help.") from exit
    refuse(unknown)
    return options


def show_help(commands: Mapping[str, type]) -> None:
    """Print what the program is for, and its commands."""
    choices: Any = Union[tuple(Annotated[record, subcommand(name)] for name, record in commands.items())]  # noqa: UP007
    description = "Keeps the skills of a neural network while it learns new ones. `--version` tells the version."
    try:
        tyro.cli(choices, prog="holdfast", description=description, args=["--help"], config=_CONFIG)
    except SystemExit:
        return


def _is_unknown(text: str, record: type) -> bool:
    name = text.partition("=")[0].replace("_", "-")
    return name.startswith("--") and name not in (*option_names(record), "--help")


def _refuse(unknown: Sequence[str], record: type, command: str, program: str) -> None:
    """Raise on the first text that the command has no place for."""
    for text in unknown:
        if text.startswith("-"):
            name = text.partition("=")[0]
            near = nearest(name.lstrip("-"), [own.lstrip("-") for own in option_names(record)])
            hint = f" Did you mean --{near}?" if near else ""
            raise OptionError(f"{command}: unknown option {name}.{hint} See {program} {command} --help.")
        raise OptionError(f"{command}: unexpected {text!r}. See {program} {command} --help.")


def _first_sentence(box: str) -> str:
    """What tyro says in the first paragraph of its box, whatever signs the box is drawn with."""
    inside = [line.strip("│| ") for line in box.splitlines()[1:]]
    bare = ["" if re.fullmatch(r"[─╰╯+-]*", line) else line for line in inside]
    told = " ".join(takewhile(bool, dropwhile(lambda line: not line, bare)))
    if missing := re.match(r"Missing from .*?: (\S+)", told):
        return f"{missing[1]} is missing."
    return told or "the options cannot be read."
