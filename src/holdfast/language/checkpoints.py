"""Where a fine-tuning keeps what it goes on from: inside its output, under a name that is never a user's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

from holdfast.errors import FileFormatError, OutputError, RunMismatchError
from holdfast.files import MANIFEST, Saved, read_json, write_json
from holdfast.files.exclusive import locked
from holdfast.files.manifest import write_manifest
from holdfast.language.dreamt import DREAMS
from holdfast.language.processes import ALONE, Processes

TRAINING = ".holdfast-training"

MEASURED = "importance"
"""Beside the trainings: what was measured on what the model rehearses. Its dreams are there, too."""


@contextmanager
def checkpoints(output: Path, identity: Mapping[str, Any], *, processes: Processes = ALONE) -> Iterator[Path]:
    """The folder of the checkpoints, of which each training takes one below it.

    It is removed when the block ends without an error, and otherwise where no checkpoint is in it yet; dreams stay.

    Args:
        output: of the fine-tuned model; made where it is missing, and removed again if it stays empty.
        identity: what must be the same to go on from checkpoints that are there, as JSON values.
        processes: that train together; the first makes the folder and removes it, and all of them must see it.

    Raises:
        OutputError: another process trains for the same output, or it cannot be written, or not all see it.
        RunMismatchError: the checkpoints that are there are of another training.
        FileFormatError: nothing tells of which training they are.
    """
    if processes.count == 1:
        with _own_checkpoints(output, identity) as folder:
            yield folder
        return
    with ExitStack() as stack:
        if processes.is_first:
            stack.enter_context(_own_checkpoints(output, identity))
        processes.wait()
        folder = output / TRAINING
        if blind := [number for number, (_, sees) in enumerate(processes.told(folder.is_dir())) if not sees]:
            raise OutputError(
                f"{output}: process {blind[0]} of {processes.count} does not see what the first wrote there. Give a "
                "folder on storage that all of them share."
            )
        yield folder
        processes.wait()


@contextmanager
def _own_checkpoints(output: Path, identity: Mapping[str, Any]) -> Iterator[Path]:
    made = [folder for folder in (output, *output.absolute().parents) if not os.path.lexists(folder)]
    folder = output / TRAINING

    def busy() -> None:
        raise OutputError(f"{output}: another process trains for it now. Wait for that, or give another folder.")

    try:
        with locked(output / f"{TRAINING}.lock", waiting=busy):
            try:
                _check_identity(folder, json.loads(json.dumps(identity)))
                yield folder
                rmtree(folder, ignore_errors=True)
            finally:
                if not any(folder.glob("*/checkpoint-*")):
                    _leave_dreams(folder)
    finally:
        for each in made:
            with suppress(OSError):  # a folder with something in it stays
                each.rmdir()


def _leave_dreams(folder: Path) -> None:
    """Remove all else: they tell by themselves whose they are, and serve a training with other settings as well."""
    for each in folder.iterdir() if folder.is_dir() else ():
        if each.is_dir() and each.name != DREAMS:
            rmtree(each, ignore_errors=True)
        elif not each.is_dir():
            each.unlink(missing_ok=True)
    with suppress(OSError):  # dreams are in it
        folder.rmdir()


def seal(checkpoint: Path) -> None:
    """List the files of a checkpoint that is now whole, with their digests."""
    write_manifest(checkpoint)


def last_checkpoint(folder: Path, *, processes: Processes = ALONE) -> Path | None:
    """The last checkpoint of a training that is whole; None where there is none.

    What a killed process left half written, which has no list of its files, is removed. Of several processes the first
    looks and removes.

    Raises:
        FileFormatError: it is damaged or was edited.
        LostProcessError: another process is gone.
    """
    _, name = processes.of_first(lambda: ({}, None if (last := _last(folder)) is None else last.name))
    return None if name is None else folder / name


def _last(folder: Path) -> Path | None:
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    sealed = [path for path in found if os.path.lexists(path / MANIFEST)]
    if sealed:
        try:
            with Saved.at(sealed[-1]).whole():
                pass
        except FileFormatError as error:
            raise FileFormatError(f"{error} Delete {sealed[-1]} to go on from before it.") from error
    for path in found:
        if path not in sealed:
            rmtree(path, ignore_errors=True)
    return sealed[-1] if sealed else None


def _check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note whose checkpoints they are, or check that they are those of this training."""
    path = folder / "training.json"
    if not os.path.lexists(path):
        if any(folder.glob("*/checkpoint-*")):
            raise FileFormatError(f"{path} is missing beside checkpoints. Delete {folder} to begin anew.")
        folder.mkdir(exist_ok=True)
        write_json(path, identity)
        return
    found = read_json(path)
    changed = [name for name in sorted({*found, *identity}) if found.get(name) != identity.get(name)]
    if unknown := [name for name in changed if name not in identity]:
        options = ", ".join(f"{name} ({found[name]!r})" for name in unknown)
        raise RunMismatchError(
            f"{folder} is of a training by another version of holdfast, with {options}, which this one does not know. "
            "Go on with that version, or delete the folder to begin anew."
        )
    if changed:
        raise RunMismatchError(
            f"{folder} is of a training with another {', '.join(changed)}. Give the same command to go on, or delete "
            "it to begin anew."
        )
