"""JSON files that stand alone, with a digest of their own content: what was edited or damaged is not read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import FileFormatError
from holdfast.files.plain import read_json, write_json

SEAL = "sha256"
"""The entry that holds the digest of all others."""


def seal_of(content: Mapping[str, Any]) -> str:
    """The sha256 of JSON values, whatever their order and however they are laid out."""
    read_back = json.loads(json.dumps(content))  # numbers that are keys become texts, and are then in another order
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with its digest, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_json(path, {**content, SEAL: seal_of(content)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the digest; a file without one, of an earlier version, is read as it is.

    Raises:
        FileFormatError: it is missing, no JSON object, or was edited or damaged.
    """
    content = read_json(path)
    seal = content.pop(SEAL, None)
    if seal is not None and seal != seal_of(content):
        raise FileFormatError(f"{path} is damaged or was edited: its content is not that of its {SEAL}.")
    return content
