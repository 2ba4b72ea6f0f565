"""Tensors on disk: safetensors files, whole or in shards, and checkpoints of tensors with notes. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as deserialized
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialized
from torch import Tensor

from holdfast.errors import FileFormatError, OutputError
from holdfast.files.plain import opened, replacing, write_json

_TRIES = 10
"""A file that is replaced while it is read is read so often before that is an error."""

SHARD_BYTES = 5 * 10**9


class Awaited(Protocol):
    """A tensor that is made when it is taken, such as one that several processes have parts of."""

    shape: torch.Size
    dtype: torch.dtype
    is_taken: bool

    def take(self) -> Tensor:
        """The tensor; asked for once, when it is written."""
        ...


_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""In the order in which safetensors has them in a file, those of eight bytes first."""


def take_the_rest(parts: Iterable[Mapping[str, Tensor | Awaited]], *, limit: int = SHARD_BYTES) -> None:
    """Take what was not written, in the order of writing: other processes wait for what all of them make together.

    Args:
        parts: in their order, what `write_tensors` was given, or would have been.
        limit: as it was given.
    """
    for tensors in parts:
        for name in (name for file in _in_files(tensors, limit) for name in _sorted(file)):
            tensor = tensors[name]
            if not (isinstance(tensor, Tensor) or tensor.is_taken):
                tensor.take()


def _in_files(tensors: Mapping[str, Tensor | Awaited], limit: int) -> list[dict[str, Tensor | Awaited]]:
    shards: list[dict[str, Tensor | Awaited]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + _num_bytes(tensor) > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += _num_bytes(tensor)
    return shards


def _num_bytes(tensor: Tensor | Awaited) -> int:
    return tensor.shape.numel() * tensor.dtype.itemsize


def _sorted(tensors: Mapping[str, Tensor | Awaited]) -> list[str]:
    order = list(_DTYPES)
    return sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))


def write_tensors(
    folder: Path, stem: str, tensors: Mapping[str, Tensor | Awaited], *, limit: int = SHARD_BYTES
) -> None:
    """Write tensors as `stem.safetensors`, or as numbered shards of at most `limit` bytes with an index.

    What is `Awaited` is taken when its turn comes, and let go before the next.
    """
    shards = _in_files(tensors, limit)
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    else:
        names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(map(_num_bytes, tensors.values()))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / f"{stem}.safetensors.index.json", index)
    for file, shard in zip(names, shards, strict=True):
        ready = {name: tensor for name, tensor in shard.items() if isinstance(tensor, Tensor)}
        if len(ready) == len(shard):
            _save(ready, folder / file, metadata={"format": "pt"})
        else:
            _save_in_turn(shard, folder / file, metadata={"format": "pt"})


def _save_in_turn(tensors: Mapping[str, Tensor | Awaited], path: Path, *, metadata: dict[str, str]) -> None:
    """Write the file that `_save` writes, with one tensor in memory at a time."""
    names, header, end = _sorted(tensors), {"__metadata__": dict(metadata)}, 0
    for name in names:
        tensor, start = tensors[name], end
        end += _num_bytes(tensor)
        described = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        header[name] = described
    told = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    told += b" " * (-len(told) % 8)
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        for name in names:
            tensor = tensors[name]
            taken = tensor if isinstance(tensor, Tensor) else tensor.take()
            entries = taken.detach().to("cpu").contiguous()
            if entries.numel():
                file.write(entries.view(-1).view(torch.uint8).numpy().data)


def read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of one safetensors file whose sha256 is known.

    Raises:
        FileFormatError: it is missing, truncated, edited, no safetensors file, or replaced while it was read.
    """
    with _steady(path) as file:
        found = sha256_of(file)
        if found != digest:
            raise FileFormatError(damaged(path, found, digest))
        try:
            return load_file(path)
        except SafetensorError as error:
            raise FileFormatError(f"{path} is no valid safetensors file: {error}.") from error
        except (OSError, RuntimeError) as error:  # RuntimeError: so torch says that it cannot open a file
            told = " ".join(str(error).split())
            raise FileFormatError(f"{path} cannot be read: {told}.") from error


class _ReplacedError(FileFormatError):
    """A file is no longer the one that was opened."""


@contextmanager
def _steady(path: Path) -> Iterator[BufferedReader]:
    """An open file that others read by its name within the block.

    Raises:
        FileFormatError: as `opened`, or another save came within the block.
    """
    with opened(path) as file:
        try:
            yield file
        except Exception as error:
            _check_same(file, path, error)
            raise
        _check_same(file, path, None)


def _check_same(file: BufferedReader, path: Path, error: Exception | None) -> None:
    with suppress(OSError):
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return
    raise _ReplacedError(f"{path} was replaced while it was read. Read it again.") from error


def damaged(path: Path, found: str, expected: str) -> str:
    """The text of an error: a file's sha256 is another than its folder's manifest says."""
    return (
        f"{path} is damaged, truncated or edited: its sha256 is {found[:12]}..., the folder's manifest says "
        f"{expected[:12]}.... Save or copy the folder again."
    )


def sha256_of(file: BufferedReader) -> str:
    """The sha256 of an open file, in hexadecimal digits."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def write_state(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write tensors and JSON notes as one safetensors file with a digest, whole or not at all: a checkpoint.

    Raises:
        OutputError: if the file cannot be written.
    """
    plain, told = _plain(tensors), json.dumps(notes)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}. Choose a folder that can be written.") from error
    with replacing(path) as temporary:
        _save(plain, temporary, metadata={"notes": told, "sha256": _digest(plain, told)})


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_state` wrote: tensors and notes.

    Raises:
        FileFormatError: if the file is truncated, edited or no checkpoint.
    """
    for left in reversed(range(_TRIES)):
        try:
            return _read_state(path)
        except _ReplacedError:
            if left == 0:
                raise
    raise AssertionError("the last try returns or raises")


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with _steady(path):
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                told, digest = metadata["notes"], metadata["sha256"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if _digest(tensors, told) != digest:
                raise ValueError("its digest is another: damaged or edited")
        notes = json.loads(told)
        if not isinstance(notes, dict):
            raise ValueError(f"its notes are a JSON {type(notes).__name__}")
    except _ReplacedError:
        raise
    except KeyError as error:
        raise FileFormatError(f"{path} is no readable checkpoint (no {error}). Delete it to start again.") from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # RecursionError too
        raise FileFormatError(f"{path} is no readable checkpoint ({error}). Delete it to start again.") from error
    return tensors, notes


def to_bytes(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> bytes:
    """The content of the file that `write_state` writes."""
    plain, told = _plain(tensors), json.dumps(notes)
    return serialized(plain, metadata={"notes": told, "sha256": _digest(plain, told)})


def from_bytes(content: object, *, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `to_bytes` was given.

    Raises:
        FileFormatError: it is something else, or damaged.
    """
    try:
        if not isinstance(content, bytes):
            raise ValueError(f"found {type(content).__name__}, expected bytes")
        tensors = deserialized(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        if _digest(tensors, metadata["notes"]) != metadata["sha256"]:
            raise ValueError("its digest is another: damaged or edited")
        in_order = {name: tensors[name] for name in sorted(tensors)}  # the same in all processes that read it
        return in_order, json.loads(metadata["notes"])
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise FileFormatError(
            f"{where}: this is no state that was saved ({error}). Take an older checkpoint."
        ) from error


def _digest(tensors: Mapping[str, Tensor], notes: str) -> str:
    """The sha256 of notes and of each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(notes.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _save(tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str]) -> None:
    """Write a safetensors file with the mode that files of this user have; safetensors itself makes it private."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(_plain(tensors), path, metadata=metadata)
    except SafetensorError as error:  # so it reports a full disk or a missing folder
        raise OSError(str(error)) from error
    path.chmod(mode)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and each with memory of its own (tied weights in a state dict share theirs)."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        plain[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return plain
