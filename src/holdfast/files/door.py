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

from holdfast.errors import HoldfastError, OutputError
from holdfast.files.checks import COMMIT, check_free, check_output, check_same_kind, is_within, ours_in
from holdfast.files.locks import HAS_LOCKS, writing
from holdfast.files.manifest import MANIFEST, listed_files, write_manifest

_STAGING = ".holdfast-new-"


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
        with writing(target):
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
        if isinstance(error, HoldfastError):
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


def _commit(target: Path, fresh: Path) -> None:
    """Make what was written to a temporary folder the content of `target`."""
    names, ours = write_manifest(fresh), ours_in(target)
    check_free(target, names, ours)
    check_same_kind(target, names, ours)
    fresh.rename(target / COMMIT)
    _finish(target)


def _finish(target: Path) -> None:
    """Move the files of a save up into their place; also those of a process that was killed while it did so."""
    commit = target / COMMIT
    new = listed_files(commit) if (commit / MANIFEST).is_file() else None
    if new is None:
        shutil.rmtree(commit, ignore_errors=True)  # its manifest is the last to move: all others have
        return
    old = (listed_files(target) or set()) - {MANIFEST}
    check_free(target, [name for name in new - {MANIFEST} if (commit / name).exists()], old)
    for name in old:
        path = target / name
        gone = name not in new or (commit / name).exists()
        if gone and is_within(target, name) and (path.is_file() or path.is_symlink()):
            path.unlink()
            _remove_empty(target, path.parent)
    for name in sorted(new - {MANIFEST}):
        if (commit / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (commit / name).replace(target / name)
    (commit / MANIFEST).replace(target / MANIFEST)
    shutil.rmtree(commit)


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
        if HAS_LOCKS or folder.name == f"{_STAGING}{os.getpid()}":
            shutil.rmtree(folder, ignore_errors=True)
