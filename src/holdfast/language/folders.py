"""The files of a language model: read as they were saved where holdfast wrote them, and never waited for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from holdfast.errors import FileFormatError, OptionError
from holdfast.files import MANIFEST, Saved, is_saved, opened, read_folder, read_json, special_files
from holdfast.files.typed import Within, listed_mistakes, typed
from holdfast.language.heads import HEAD

T = TypeVar("T")

_NumLabels: Any = Annotated[int, Within(0, 10**6)]
_CONFIG: Mapping[str, Any] = {
    "architectures": list[str] | None,
    "id2label": dict[str, Any] | None,
    "num_labels": _NumLabels | None,
}


def read_model_folder(folder: Path, load: Callable[[Path], T]) -> T:
    """What `load` makes of the folder of a model, each file held against its digest where holdfast wrote it.

    Raises:
        FileFormatError: a file is damaged, edited, a pipe or a device.
    """
    if is_saved(folder) or os.path.lexists(folder / MANIFEST):

        def read(saved: Saved) -> T:
            with saved.whole() as place:
                return load(place)

        return read_folder(folder, read)
    special = special_files(folder.iterdir())
    if special:
        raise FileFormatError(f"{folder}: {', '.join(special)} is a pipe or a device; expected files. Take it away.")
    return load(folder)


def config_of(path: Path) -> dict[str, Any]:
    """What is read here of a transformers configuration: `architectures`, `id2label` and `num_labels`.

    Raises:
        FileFormatError: it is damaged, or one of these is of another type.
    """
    content, mistakes = typed(read_json(path), _CONFIG, optional=_CONFIG)
    numbers = content.get("id2label") or {}
    if not mistakes and not all(number.isdecimal() for number in numbers):
        mistakes = [f"id2label has the keys {', '.join(map(repr, numbers))[:80]}, expected whole numbers"]
    if mistakes:
        raise FileFormatError(f"{path} is damaged: {listed_mistakes(mistakes)}. Copy it again.")
    return content


def has_config(folder: Path) -> bool:
    """Whether holdfast saved a model there, also where its writer was killed while the files moved to their place."""
    return is_saved(folder) and "config.json" in Saved.at(folder).files


def revision_of(folder: Path) -> str:
    """The sha256 of a model's weights, shard after shard in the order of their names.

    Raises:
        OptionError: there are no weights.
    """
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith(HEAD))
    files = files or sorted(folder.glob("*.bin"))
    if not files:
        raise OptionError(f"{folder}: no weights in it; expected *.safetensors.")
    digest = hashlib.sha256()
    for file in files:
        with opened(file) as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
