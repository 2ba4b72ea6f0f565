"""Folders of tensors and their description on disk: safetensors and JSON, no pickle.

A folder is written under a temporary name beside its place and renamed when complete, so that a reader
sees the old one or the new one. Each tensor file's sha256 stands in the description; a damaged or edited
file is an error before anything is changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from holdfast.errors import FileFormatError, OutputError

FORMAT_VERSION = 1
SHARD_BYTES = 5 * 10**9


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends without an error.

    Raises:
        OutputError: if the place cannot be written; whatever stood at `path` before is kept.
    """
    target = Path(path).absolute()
    fresh = target.with_name(f".{target.name}.{os.getpid()}.new")
    old = _set_aside(target)
    try:
        if target.exists() and not target.is_dir():
            raise OutputError(f"{target} is a file; a folder is to be written there. Give another path.")
        shutil.rmtree(fresh, ignore_errors=True)  # of a killed process that had the same number
        fresh.mkdir(parents=True)
        yield fresh
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {target}: {error}. Choose a folder that can be written.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """The folder at `path`, put back in place if its replacement was interrupted between two renames.

    Raises:
        FileFormatError: if there is no such folder.
    """
    target = Path(path).absolute()
    if not target.exists() and _set_aside(target).is_dir():
        _set_aside(target).rename(target)
    if not target.is_dir():
        raise FileFormatError(f"{target}: no such folder; expected one that holdfast has saved.")
    return target


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}. Choose a place that can be written.") from error
    finally:
        _remove(temporary)  # also after Ctrl-C; gone already where all went well


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileFormatError: if the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise FileFormatError(f"{path} is no valid JSON ({error}): truncated or edited. Save it again.") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} holds a JSON {type(content).__name__}; expected an object.")
    return content


def write_description(path: Path, content: Mapping[str, Any]) -> None:
    """Write a folder's description: `content` under the format version of this library."""
    write_json(path, {"format_version": FORMAT_VERSION, **content})


def read_description(path: Path) -> dict[str, Any]:
    """Read a folder's description.

    Raises:
        FileFormatError: if it is missing, damaged, or of another format version.
    """
    content = read_json(path)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise FileFormatError(
            f"{path}: format_version is {version!r}; this holdfast reads version {FORMAT_VERSION}. "
            "Read it with the holdfast version that wrote it (library_version), and save it again."
        )
    return content


def write_tensors(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], *, limit: int = SHARD_BYTES
) -> dict[str, str]:
    """Write tensors as `stem.safetensors`, or as numbered shards of at most `limit` bytes with an index.

    Returns:
        File name -> sha256 of every tensor file, to be kept in the folder's description.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    else:
        names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / f"{stem}.safetensors.index.json", index)
    for file, shard in zip(names, shards, strict=True):
        _save(shard, folder / file, metadata={"format": "pt"})
    return {file: _sha256(folder / file) for file in names}


def read_tensors(folder: Path, stem: str, digests: Mapping[str, str]) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote, after checking each file against its sha256.

    Raises:
        FileFormatError: if a file is missing, truncated, edited or no safetensors file.
    """
    if not isinstance(digests, Mapping):
        raise FileFormatError(f"{folder}: 'files' in its description is {digests!r}, no list of files. Save it again.")
    files = {name: digest for name, digest in digests.items() if _belongs(name, stem)}
    if not files:
        raise FileFormatError(f"{folder}: its description names no {stem}.safetensors. Save it again.")
    tensors: dict[str, Tensor] = {}
    for name, digest in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            raise FileFormatError(
                f"{path} is missing, though the folder's description names it. Copy the folder whole."
            )
        found = _sha256(path)
        if found != digest:
            raise FileFormatError(
                f"{path} is damaged, truncated or edited: its sha256 is {found[:12]}..., "
                f"the folder's description says {str(digest)[:12]}.... Save or copy the folder again."
            )
        try:
            tensors.update(load_file(path))
        except SafetensorError as error:
            raise FileFormatError(f"{path} is no valid safetensors file: {error}.") from error
    return tensors


def write_state(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write tensors and JSON notes as one safetensors file, whole or not at all: the form of a checkpoint."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(tensors, temporary, metadata={"notes": json.dumps(notes)})
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}. Choose a folder that can be written.") from error
    finally:
        _remove(temporary)


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_state` wrote: tensors and notes.

    Raises:
        FileFormatError: if the file is truncated or no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {})["notes"])
            return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise FileFormatError(f"{path} is no readable checkpoint ({error}). Delete it to start again.") from error


def _set_aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _save(tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str]) -> None:
    try:
        save_file(_plain(tensors), path, metadata=metadata)
    except SafetensorError as error:  # so it reports a full disk or a missing folder
        raise OSError(str(error)) from error


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and each with memory of its own (tied weights in a state dict share theirs)."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        plain[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return plain


def _belongs(file: str, stem: str) -> bool:
    return file == f"{stem}.safetensors" or (file.startswith(f"{stem}-") and file.endswith(".safetensors"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
