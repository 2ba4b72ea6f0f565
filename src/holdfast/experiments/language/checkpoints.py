"""Where a fine-tuning keeps what it goes on from: inside its output, under a name that is never a user's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

from holdfast.errors import OutputError, RunMismatchError
from holdfast.experiments.lock import locked
from holdfast.files import read_json, write_json

TRAINING = ".holdfast-training"


@contextmanager
def checkpoints(output: Path, identity: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of the checkpoints, of which each training takes one below it.

    It is removed when the block ends without an error, and otherwise where no checkpoint is in it yet.

    Args:
        output: of the fine-tuned model; made where it is missing, and removed again if it stays empty.
        identity: what must be the same to go on from checkpoints that are there, as JSON values.

    Raises:
        OutputError: another process trains for the same output, or it cannot be written.
        RunMismatchError: the checkpoints that are there are of another training.
    """
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
                    rmtree(folder, ignore_errors=True)
    finally:
        for each in made:
            with suppress(OSError):  # a folder with something in it stays
                each.rmdir()


def _check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note whose checkpoints they are, or check that they are those of this training."""
    path = folder / "training.json"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        write_json(path, identity)
        return
    found = read_json(path)
    changed = [name for name in sorted({*found, *identity}) if found.get(name) != identity.get(name)]
    if changed:
        raise RunMismatchError(
            f"{folder} is of a training with another {', '.join(changed)}. Give the same command to go on, or delete "
            "it to begin anew."
        )
