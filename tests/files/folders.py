"""Folders for the tests of the door: filled, and looked at with checksums."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from holdfast import files


def fill(path, text="new", *, names=("text",), **options):
    with files.new_folder(path, **options) as folder:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)


def listing(root: Path) -> dict[str, str]:
    """Everything below a folder: kind, mode, and the digest of files or the target of links."""
    found = {}
    for path in sorted(root.rglob("*")):
        name, mode = path.relative_to(root).as_posix(), oct(path.lstat().st_mode)
        if path.is_symlink():
            found[name] = f"{mode} -> {os.readlink(path)}"
        elif path.is_file():
            found[name] = f"{mode} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        else:
            found[name] = mode
    return found
