"""Errors of code that is not holdfast's: where a function of somebody else's failed, in a line."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path
from types import FrameType

from holdfast.errors import HoldfastError

_INSTALLED = {"site-packages", "dist-packages"}
_HOLDFAST = Path(__file__).parents[1]
_PYTHON = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")]

_known: set[str] = set()


def note_foreign(module: str) -> None:
    """Note that a module is somebody else's, with all of its package, wherever it is installed."""
    _known.add(module.partition(".")[0])


def is_foreign(error: BaseException) -> bool:
    """Whether an error, which is none of holdfast's own, came in code of somebody else's that holdfast called."""
    return not isinstance(error, HoldfastError) and bool(_frames(error))


def in_a_line(error: BaseException) -> str:
    """What an error says: of a foreign one its class, and the function, the file and the line that raised it."""
    told = " ".join(str(error).split())
    if isinstance(error, HoldfastError):
        return told
    told = f"{type(error).__name__}: {told}".rstrip(": ")
    if frames := _frames(error):
        frame, line = frames[-1]
        name, where = frame.f_code.co_qualname, f"{_shown(frame.f_code.co_filename)}, line {line}"
        return f"{where if name == '<module>' else f'{name} ({where})'} raised {told}"
    return told


def foreign_trace(error: BaseException) -> str:
    """The traceback of an error without the lines of holdfast, torch and Python; the whole one where none are left."""
    if not is_foreign(error):
        return "".join(traceback.format_exception(error))
    listed = traceback.StackSummary.extract(iter(_frames(error)))
    told = [*listed.format(), *traceback.format_exception_only(error)]
    return f"Traceback (most recent call last), without the lines of holdfast:\n{''.join(told)}"


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """The frames of code that holdfast called, and the line in each."""
    return [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_foreign(frame)]


def _is_foreign(frame: FrameType) -> bool:
    path, module = Path(frame.f_code.co_filename), str(frame.f_globals.get("__name__", ""))
    if not path.is_absolute() or path.is_relative_to(_HOLDFAST):
        return False
    if _INSTALLED & set(path.parts):
        return module.partition(".")[0] in _known
    return not any(path.is_relative_to(folder) for folder in _PYTHON)


def _shown(path: str) -> str:
    """A path as it is shortest: from the working folder where it is below it."""
    beside = os.path.relpath(path)
    return path if beside.startswith(os.pardir) else beside
