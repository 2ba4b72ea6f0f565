"""What may be written over: only what holdfast itself wrote. Everything else is refused, before any work is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from holdfast.errors import FileFormatError, OutputError
from holdfast.files.locks import undisturbed
from holdfast.files.manifest import listed_files
from holdfast.files.plain import read_json

COMMIT = ".holdfast-commit"
"""The folder inside a folder of ours whose files are moving up."""

_HIDDEN = ".holdfast-"
_SYSTEM = {"lost+found", ".DS_Store"}
"""What a system puts into folders that count as empty."""
_DESCRIPTIONS = {"config.json", "importance_config.json", "keeper_config.json", "report.html"}
"""By which a model, an importance, a keeper and a report are known."""


def check_output(
    path: str | os.PathLike[str],
    *,
    reading: Iterable[str | os.PathLike[str]] = (),
    names: Iterable[str] = (),
    is_ours: Callable[[Path], bool] | None = None,
) -> Path:
    """Refuse a folder that holdfast may not write into, before any work is done.

    Args:
        path: of the folder, which need not exist; links are followed.
        reading: files and folders that the work at hand reads.
        names: of files that will be written into it, as far as they are known.
        is_ours: whether a folder that has no manifest was written by holdfast, and may be written into, all the same.

    Returns:
        Where the folder really is.

    Raises:
        OutputError: it is a file, the working directory or above it, a repository, read from, cannot be written, or
            holds something and was not written by holdfast, or something else that holdfast wrote, or a file of
            somebody else's has a name that is needed.
    """
    try:
        target = Path(path).resolve()
        is_folder, is_there = target.is_dir(), os.path.lexists(target)
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL
        raise OutputError(f"cannot write {path}: {error}. Choose a folder that can be written.") from error
    if is_there and not is_folder:
        raise OutputError(f"{path} is a file; a folder is to be written there. Give another path.")
    here = Path.cwd()
    if target in here.parents or _same(target, here):
        above = "the working directory" if _same(target, here) else "above the working directory"
        raise OutputError(f"{path} is {above}; nothing is saved over it. Give a folder of its own.")
    for source in reading:
        found = Path(source).resolve()
        if target in found.parents or _same(target, found):
            raise OutputError(f"{path} is read from ({source}), so that nothing is saved over it. Give another folder.")
    if os.path.lexists(target / ".git"):
        raise OutputError(f"{path} contains .git: a repository is not written over. Give a folder of its own.")
    check_place(target, told=path)
    if is_ours is None or not is_ours(target):
        ours, names = _settled(target), set(names)
        check_free(target, names, ours)
        if names:
            check_same_kind(target, names, ours)
    return target


def check_files(
    paths: Iterable[str | os.PathLike[str]],
    *,
    is_ours: Callable[[Path], bool],
    reading: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Refuse files that holdfast may not write, which stand among others in a folder that is nobody's, before any work.

    Args:
        paths: of the files, which need not exist.
        is_ours: whether an existing file was written by holdfast.
        reading: files that the work at hand reads.

    Raises:
        OutputError: one is a folder, a pipe or a device, is read from, cannot be written, or was not written by
            holdfast; all of these are named.
    """
    read = [Path(source).resolve() for source in reading]
    foreign = []
    for path in map(Path, paths):
        if any(_same(path.resolve(), source) for source in read):
            raise OutputError(f"{path} is read from, so that nothing is written over it. Give another place.")
        if path.is_file():
            if not is_ours(path):
                foreign.append(str(path))
        elif os.path.lexists(path):
            raise OutputError(f"{path} is no file (a folder, a pipe or a link to nothing). Give another place.")
        check_place(path.parent, told=path)
    if foreign:
        raise OutputError(
            f"{', '.join(foreign)} stands there already and was not written by holdfast; nothing was written. "
            "Move it away, or give another place."
        )


def holds(path: Path, keys: Iterable[str]) -> bool:
    """Whether a file is a JSON object that has all these keys, by which a file of ours is known."""
    try:
        return read_json(path).keys() >= set(keys)
    except FileFormatError:
        return False


def check_place(folder: Path, *, told: str | os.PathLike[str]) -> None:
    """Raise `OutputError` unless the folder can be made, or written into; `told` is what the message names."""
    place = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    why = "" if os.access(place, os.W_OK | os.X_OK) else "there is no permission to write there"
    if not place.is_dir():
        why = "that is no folder"
    if why:
        raise OutputError(f"cannot write {told}: {place}: {why}. Choose a folder that can be written.")


def _same(one: Path, other: Path) -> bool:
    """Whether two resolved paths are one place, also where it is mounted twice."""
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


def _settled(target: Path) -> set[str]:
    """As `ours_in`; looks again, with writers kept out, before it refuses: their files may just have been moving."""
    try:
        return ours_in(target)
    except OutputError:
        with undisturbed(target):
            return ours_in(target)


def ours_in(target: Path) -> set[str]:
    """The files in a folder that may be replaced.

    Raises:
        OutputError: there is something, and the folder is not ours.
    """
    if not target.is_dir():
        return set()
    try:
        entries = {entry.name for entry in target.iterdir()}
        others = sorted(name for name in entries - _SYSTEM if not name.startswith(_HIDDEN))
        staged = {name for name in listed_files(target / COMMIT) or () if not (target / COMMIT / name).exists()}
        found = listed_files(target)
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


def check_same_kind(target: Path, names: Iterable[str], ours: set[str]) -> None:
    """Raise `OutputError` where the save would delete a model, an importance, a keeper or a report of ours.

    A save deletes the files that only the save before it had; one of the same kind writes the description again.
    """
    gone = sorted(_DESCRIPTIONS & ours - set(names))
    if gone:
        raise OutputError(
            f"{target} holds something else that holdfast wrote ({', '.join(gone)}), and is left as it is. Give "
            "another folder, or delete this one first."
        )


def check_free(target: Path, names: Iterable[str], ours: set[str]) -> None:
    """Raise `OutputError` where another's file, folder or link has the name of a file that is to be written."""
    taken = sorted(name for name in names if not _is_free(target, name, ours))
    if taken:
        raise OutputError(
            f"{target}: {', '.join(taken)} stands there already and was not written by holdfast; nothing was saved. "
            "Move it away, or give another folder."
        )


def _is_free(target: Path, name: str, ours: set[str]) -> bool:
    path = target / name
    for parent in path.relative_to(target).parents:
        if os.path.lexists(target / parent) and not (target / parent).is_dir():
            return False
    if path.is_dir() and not path.is_symlink():
        return False
    return is_within(target, name) and (name in ours or not os.path.lexists(path))


def is_within(target: Path, name: str) -> bool:
    """Whether the folder that a listed file is in lies in the target, and not behind a link that leads out of it."""
    parent = (target / name).parent.resolve()
    return parent == target or target in parent.parents
