"""The one door through which folders are written: nothing that holdfast did not write is ever replaced or deleted.

A folder is filled in a hidden folder inside its place, which is then renamed to `.holdfast-commit`. From that moment on
it counts as saved, and its files move up one by one. A process that is killed leaves either the save before or this
one: whoever comes next, a reader too, looks into `.holdfast-commit` first. The folder itself never moves, so that
mounts, links and files of others inside it stay as they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from holdfast.errors import FileFormatError, OutputError
from holdfast.files.manifest import MANIFEST, listed, write_manifest

try:
    from fcntl import LOCK_EX, flock

    def _take(folder: int) -> None:
        flock(folder, LOCK_EX)

    _HAS_LOCKS = True
except ImportError:  # Windows, where two processes must not write into one folder at the same time
    _HAS_LOCKS = False

COMMIT = ".holdfast-commit"
_STAGING = ".holdfast-new-"
_HIDDEN = ".holdfast-"
_SYSTEM = {"lost+found", ".DS_Store"}
"""What a system puts into folders that count as empty."""


def check_output(path: str | os.PathLike[str], *, reading: Iterable[str | os.PathLike[str]] = ()) -> Path:
    """Refuse a folder that holdfast may not write into, before any work is done.

    Args:
        path: of the folder, which need not exist; links are followed.
        reading: files and folders that the work at hand reads.

    Returns:
        Where the folder really is.

    Raises:
        OutputError: it is a file, the working directory or above it, a repository, read from, or holds something and
            was not written by holdfast.
    """
    try:
        target = Path(path).resolve()
        is_folder, is_there = target.is_dir(), os.path.lexists(target)
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL
        raise OutputError(f"cannot write {path}: {error}. Choose a folder that can be written.") from error
    if is_there and not is_folder:
        raise OutputError(f"{path} is a file; a folder is to be written there. Give another path.")
    here = Path.cwd()
    if target == here or target in here.parents:
        above = "the working directory" if target == here else "above the working directory"
        raise OutputError(f"{path} is {above}; nothing is saved over it. Give a folder of its own.")
    for source in map(Path, reading):
        found = source.resolve()
        if target == found or target in found.parents:
            raise OutputError(f"{path} is read from ({source}), so that nothing is saved over it. Give another folder.")
    if os.path.lexists(target / ".git"):
        raise OutputError(f"{path} contains .git: a repository is not written over. Give a folder of its own.")
    _listed(target)
    return target


@contextmanager
def new_folder(path: str | os.PathLike[str], *, reading: Iterable[str | os.PathLike[str]] = ()) -> Iterator[Path]:
    """A temporary folder whose files become those of the folder `path` when the block ends without an error.

    Files that an earlier save listed in `holdfast.json` and this one does not write are removed; all else that stands
    in the folder stays. A list of this save's files, with their sha256, is written with them.

    Args:
        path: of the folder, made where it is missing; links are followed.
        reading: see `check_output`.

    Raises:
        OutputError: as `check_output`, or it cannot be written, or a file of somebody else's has a name that is needed;
            what stood at `path` is then unchanged.
    """
    target = check_output(path, reading=reading)
    made = _missing(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            _finish(target)
            _sweep(target)
            fresh = target / f"{_STAGING}{os.getpid()}"
            try:
                fresh.mkdir()
                yield fresh
                _commit(target, fresh)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {path}: {error}. Choose a folder that can be written.") from error
    finally:
        for folder in made:
            with suppress(OSError):  # a folder with something in it stays
                folder.rmdir()


def _missing(target: Path) -> list[Path]:
    """The folders that making `target` makes, the innermost first."""
    made = []
    for folder in (target, *target.parents):
        if folder.exists():
            break
        made.append(folder)
    return made


def _listed(target: Path) -> set[str]:
    """The files in a folder that may be replaced.

    Raises:
        OutputError: there is something, and the folder is not ours.
    """
    if not target.is_dir():
        return set()
    try:
        entries = {entry.name for entry in target.iterdir()}
        others = sorted(name for name in entries - _SYSTEM if not name.startswith(_HIDDEN))
        staged = listed(target / COMMIT) or set()
        found = listed(target)
    except FileFormatError as error:
        raise OutputError(f"{target} is not written over, for it cannot be told what is ours in it: {error}") from error
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error}. Choose a folder that can be written.") from error
    if found is None and set(others) - {name.partition("/")[0] for name in staged}:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise OutputError(
            f"{target} holds what holdfast did not write ({shown}), and is left as it is. Give a new or an empty "
            "folder, or one that holdfast wrote."
        )
    return (found or set()) | staged


def _commit(target: Path, fresh: Path) -> None:
    """Make what was written to a temporary folder the content of `target`."""
    names, ours = write_manifest(fresh), _listed(target)
    taken = sorted(name for name in names if name not in ours and os.path.lexists(target / name))
    taken += [name for name in names if not _is_within(target, name)]
    if taken:
        raise OutputError(
            f"{target}: {', '.join(taken)} stands there already and was not written by holdfast; nothing was saved. "
            "Move it away, or give another folder."
        )
    fresh.rename(target / COMMIT)
    _finish(target)


def _finish(target: Path) -> None:
    """Move the files of a save up into their place; also those of a process that was killed while it did so."""
    commit = target / COMMIT
    new = listed(commit) if (commit / MANIFEST).is_file() else None
    if new is None:
        shutil.rmtree(commit, ignore_errors=True)  # its manifest is the last to move: all others have
        return
    for name in (listed(target) or set()) - {MANIFEST}:
        if (name not in new or (commit / name).exists()) and _is_within(target, name):
            (target / name).unlink(missing_ok=True)
            _remove_empty(target, (target / name).parent)
    for name in sorted(new - {MANIFEST}):
        if (commit / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (commit / name).replace(target / name)
    (commit / MANIFEST).replace(target / MANIFEST)
    shutil.rmtree(commit)


def _is_within(target: Path, name: str) -> bool:
    """Whether the folder that a listed file is in lies in the target, and not behind a link that leads out of it."""
    parent = (target / name).parent.resolve()
    return parent == target or target in parent.parents


def _remove_empty(target: Path, folder: Path) -> None:
    while folder != target:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _sweep(target: Path) -> None:
    """Remove what killed writers left half written; the lock is held, so that no other writes now."""
    for folder in target.glob(f"{_STAGING}*"):
        if _HAS_LOCKS or folder.name == f"{_STAGING}{os.getpid()}":
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: one process at a time writes into it."""
    if not _HAS_LOCKS:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            _take(descriptor)
        yield
    finally:
        os.close(descriptor)
