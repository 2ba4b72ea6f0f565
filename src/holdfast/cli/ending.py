"""How a command ended: its exit status, and the line that says why where it did not do its work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.errors import FailedRunsError, HoldfastError, LostProcessError
from holdfast.lab.foreign import foreign_trace, in_a_line, is_foreign

LOST = 1
"""The exit status where another process is gone."""

FAILED = 1
"""That where runs failed, or code of the user's that was called."""

REFUSED = 2
"""That of bad input."""

INTERRUPTED = 130


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes:
        status: for the system; 0 where all went well.
        line: what is to be said of an error; empty where nothing is.
        trace: where it came about in code of the user's, lines to be said before.
    """

    status: int
    line: str = ""
    trace: str = ""


def ending_of(command: Callable[[], int]) -> Ending:
    """Run a command; errors that were foreseen become a line, and so do those of the user's own code."""
    try:
        return Ending(command())
    except LostProcessError as error:
        return Ending(LOST, in_a_line(error))
    except HoldfastError as error:
        return Ending(FAILED if isinstance(error, FailedRunsError) else REFUSED, in_a_line(error))
    except KeyboardInterrupt:
        return Ending(INTERRUPTED, "interrupted. The same command goes on where it was.")
    except BrokenPipeError:  # nobody reads on, as in `holdfast run list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Ending(1)
    except OSError as error:  # what a system says of a path that was typed, such as a name that is too long
        if is_foreign(error):
            return _ending_of_foreign(error)
        if error.filename is None:
            raise
        return Ending(REFUSED, f"{error.filename!s:.200}: {error.strerror}. Give another path.")
    except Exception as error:
        if not is_foreign(error):
            raise
        return _ending_of_foreign(error)


def _ending_of_foreign(error: Exception) -> Ending:
    return Ending(FAILED, in_a_line(error), foreign_trace(error))


def guarded(command: Callable[[], int]) -> int:
    """The exit status of a command, whose errors are told in one line."""
    found = ending_of(command)
    if found.line:
        before = "\n" if found.status == INTERRUPTED else ""  # the terminal shows ^C
        print(f"{found.trace}{before}holdfast: {found.line}", file=sys.stderr)
    return found.status
