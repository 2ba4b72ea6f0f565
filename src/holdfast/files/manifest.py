"""`holdfast.json`, the list of what holdfast wrote into a folder: its marker, and the sha256 of each file.

It tells a folder of ours from a user's own. A later save may replace what it lists, and touches nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from holdfast.errors import FileFormatError
from holdfast.files.plain import opened, parsed_json, read_bytes, write_json
from holdfast.files.tensors import sha256_of
from holdfast.version import __version__

MANIFEST = "holdfast.json"
MANIFEST_VERSION = 2
FORMAT_VERSION = 3
"""Of descriptions, and so of what is described: the version in which importances are means over targets."""

_MEANS_OVER_EXAMPLES = (
    "it is of means over examples, and since version 3 importances are means over targets, so that strengths and "
    "budgets would mean something else. Measure again, with hf.fisher and its like or `holdfast importance`."
)
_RETIRED = {1: _MEANS_OVER_EXAMPLES, 2: _MEANS_OVER_EXAMPLES}
"""Why a version of descriptions is read no more, and what to do."""

DESCRIPTIONS = ("importance_config.json", "keeper_config.json")
"""These held the digests of tensors, and were the marker, in format version 1."""

_OF_TRAINER = (
    *("config.json", "generation_config.json", "kept_and_learned.json", "training_args.bin", "trainer_state.json"),
    *("model*.safetensors", "model.safetensors.index.json", "holdfast_head.*", "optimizer.pt", "scheduler.pt"),
    *("rng_state*.pth", "scaler.pt", "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template*"),
)
"""What a Trainer writes for `holdfast finetune`, or into a checkpoint that has a keeper in it, without a manifest."""


def write_manifest(folder: Path) -> list[str]:
    """List and digest all files below a folder that was just filled; returns their names, in order."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    digests = {}
    for name, path in zip(names, paths):
        if name != MANIFEST:
            with opened(path) as file:
                digests[name] = sha256_of(file)
    content = {"format_version": MANIFEST_VERSION, "library_version": __version__, "files": digests}
    write_json(folder / MANIFEST, content)
    return list(digests)


def parsed_manifest(content: bytes, *, where: Path) -> dict[str, str]:
    """File name -> sha256, from the content of a manifest.

    Raises:
        FileFormatError: it is damaged, of another version, or names a file outside its folder.
    """
    found = parsed_json(content, where=where)
    _check_version(found, MANIFEST_VERSION, where=where)
    return checked_files(found.get("files"), where=where)


def check_described(content: Mapping[str, Any], *, where: Path | str) -> None:
    """Raise `FileFormatError` unless a description is of the format version that is read here."""
    version = content.get("format_version")
    if type(version) is int and version in _RETIRED:
        raise FileFormatError(f"{where}: format_version is {version}: {_RETIRED[version]}")
    _check_version(content, FORMAT_VERSION, where=where)


def _check_version(content: Mapping[str, Any], expected: int, *, where: Path | str) -> None:
    version = content.get("format_version")
    if isinstance(version, bool) or version != expected:
        raise FileFormatError(
            f"{where}: format_version is {version!r}; this holdfast reads version {expected}. "
            "Read it with the holdfast version that wrote it (library_version), and save it again."
        )


def checked_files(files: object, *, where: Path) -> dict[str, str]:
    """A list of files with their digests, if it is one.

    Raises:
        FileFormatError: something else, or a name that leads out of the folder.
    """
    if not isinstance(files, dict):
        raise FileFormatError(f"{where}: 'files' is {files!r:.80}; expected names with their sha256. Save it again.")
    for name, digest in files.items():
        if not _is_inside(name) or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise FileFormatError(f"{where}: {name!r:.80} in 'files' is no file with its sha256. Save it again.")
    return files


def listed_files(folder: Path) -> set[str] | None:
    """Names of the files in a folder that holdfast wrote and may replace; None where it is no folder of ours.

    Raises:
        FileFormatError: its manifest is damaged.
    """
    if (folder / MANIFEST).exists():
        return {*parsed_manifest(read_bytes(folder / MANIFEST), where=folder / MANIFEST), MANIFEST}
    for name in DESCRIPTIONS:
        if (folder / name).is_file():
            files = _first_version(folder / name)
            if files is not None:
                shards = {f"{stem}.safetensors.index.json" for stem in ("importance", "anchors", "factors")}
                return {*files, *shards, name, "README.md"}
    if (folder / "kept_and_learned.json").is_file() or (folder / "holdfast" / "keeper_config.json").is_file():
        return {path.name for pattern in _OF_TRAINER for path in folder.glob(pattern) if path.is_file()}
    return None


def _first_version(description: Path) -> dict[str, str] | None:
    """The digests in a description of format version 1, which is replaced though not read; None where it is none."""
    try:
        content = parsed_json(read_bytes(description), where=description)
        _check_version(content, 1, where=description)
        return checked_files(content.get("files"), where=description)
    except FileFormatError:
        return None


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    parts = path.parts
    return bool(parts) and not path.is_absolute() and ".." not in parts and "\0" not in name and "\\" not in name
