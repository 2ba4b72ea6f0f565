"""Folders for the tests of the door: filled, and looked at with checksums."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from holdfast import files
from holdfast.files.manifest import write_manifest


def fill(path, text="new", *, names=("text",), **options):
    with files.new_folder(path, **options) as folder:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)


def edit(path: Path, **changes) -> None:
    """Change entries of a JSON file in a saved folder, and its digest in the manifest with them."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    write_manifest(path.parent)


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
