"""Where a fine-tuning keeps what it goes on from: inside its output, under a name that is never a user's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree

from holdfast.errors import OutputError
from holdfast.experiments.lock import locked

TRAINING = ".holdfast-training"


@contextmanager
def checkpoints(output: Path) -> Iterator[Path]:
    """The folder of the checkpoints, of which each training takes one below it.

    It is removed when the block ends without an error, and otherwise where no checkpoint is in it yet.

    Args:
        output: of the fine-tuned model; made where it is missing, and removed again if it stays empty.

    Raises:
        OutputError: another process trains for the same output, or it cannot be written.
    """
    made = [folder for folder in (output, *output.absolute().parents) if not os.path.lexists(folder)]
    folder = output / TRAINING

    def busy() -> None:
        raise OutputError(f"{output}: another process trains for it now. Wait for that, or give another folder.")

    try:
        with locked(output / f"{TRAINING}.lock", waiting=busy):
            try:
                yield folder
                rmtree(folder, ignore_errors=True)
            finally:
                if not any(folder.glob("*/checkpoint-*")):
                    rmtree(folder, ignore_errors=True)
    finally:
        for each in made:
            with suppress(OSError):  # a folder with something in it stays
                each.rmdir()
