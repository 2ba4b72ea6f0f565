"""Anchors by reference: tensors of a safetensors checkpoint that stay on disk and are read slice by slice.

A ready model's checkpoint is on disk already, and it is what the model is to be held to. The slices are read and not
mapped into memory: a file that was cut short is then an error and not the end of the process, and pages that were read
do not count as this process' memory. What the file was when it was opened is compared at every read, since whoever
trains may well save to the same name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import FileFormatError, ParameterMismatchError
from holdfast.files import opened, read_json
from holdfast.files.typed import Count, listed_mistakes, typed
from holdfast.memory.stored import PIECE, read
from holdfast.tensors import TensorMap, bounds_of, local

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_ENTRY = {"dtype": str, "shape": list[Count], "data_offsets": list[Count]}
_LARGEST_HEADER = 10**8  # bytes; safetensors' own bound


class CheckpointFile:
    """A safetensors file, as it was when this was made.

    Raises:
        FileFormatError: it is missing, truncated or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with opened(path) as file:
                self._stamp = _stamp(file.fileno())
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(_LARGEST_HEADER, self.num_bytes - 8):
                    raise ValueError(f"a header of {length} bytes in a file of {self.num_bytes}")
                header: dict[str, Any] = json.loads(file.read(length))
                self._start = 8 + length
                self.tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
                _check_entries(self.tensors)
                end = max((entry["data_offsets"][1] for entry in self.tensors.values()), default=0)
        except FileFormatError as error:
            raise FileFormatError(f"{error} Name a safetensors file.") from error
        except OSError as error:
            raise FileFormatError(f"{path} cannot be read: {error.strerror}. Name a safetensors file.") from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise FileFormatError(f"{path} is no valid safetensors file: {error}.") from error
        if self._start + end > self.num_bytes:
            raise FileFormatError(
                f"{path} is truncated: it has {self.num_bytes} bytes, and its tensors end at {self._start + end}. "
                "Copy it again."
            )

    @property
    def num_bytes(self) -> int:
        """Of the whole file."""
        return self._stamp[0]

    @cached_property
    def sha256(self) -> str:
        """Of the whole file; read once."""
        with self._opened() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def reference(self, name: str) -> Reference | None:
        """To a tensor in it; None for one that does not hold floating numbers."""
        entry = self.tensors[name]
        if entry["dtype"] not in _DTYPES:
            return None
        start = self._start + entry["data_offsets"][0]
        return Reference(self, name, torch.Size(entry["shape"]), _DTYPES[entry["dtype"]], start)

    def read_into(self, out: Tensor, *, start: int) -> None:
        """Fill a contiguous tensor on the CPU with the bytes from `start` on."""
        with self._opened() as file:
            file.seek(start)
            wanted = out.view(torch.uint8).numpy().data
            while wanted:
                count = file.readinto(wanted)
                if not count:
                    raise self._changed()
                wanted = wanted[count:]

    def _opened(self):
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise OSError(errno.EINVAL, "no regular file")
            file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise FileFormatError(
                f"{self.path} cannot be read: {error.strerror}. The anchors are in it; put it back."
            ) from error
        if _stamp(file.fileno()) != self._stamp:
            file.close()
            raise self._changed()
        return file

    def _changed(self) -> FileFormatError:
        return FileFormatError(
            f"{self.path} has changed since the task was retained, and the anchors are read from it. Put the old file "
            "back; let the training save to another name, or keep the anchors in memory."
        )


@dataclass(frozen=True, eq=False)
class Reference:
    """A tensor of a checkpoint on disk, or of it one process's shard, or a flat piece of either.

    Attributes:
        file: the file that it is in.
        name: there.
        shape: of the entries.
        dtype: that they are stored in.
        start: the byte of the file at which they begin.
        runs: of a shard that is not in one stretch of the file how many entries are, and how many there are from the
            beginning of one stretch to that of the next; None for one stretch.
        skipped: entries of the shard before these.
    """

    file: CheckpointFile
    name: str
    shape: torch.Size
    dtype: torch.dtype
    start: int
    runs: tuple[int, int] | None = None
    skipped: int = 0

    @property
    def device(self) -> torch.device:
        """Where it is read to."""
        return torch.device("cpu")

    @property
    def nbytes(self) -> int:
        """Of memory: none."""
        return 0

    def pieces(self, size: int) -> Iterator[Reference]:
        """Successive pieces of so many entries."""
        total, width = self.shape.numel(), self.dtype.itemsize
        for first in range(0, total, size):
            shape = torch.Size([min(size, total - first)])
            if self.runs is None:
                yield replace(self, shape=shape, start=self.start + first * width)
            else:
                yield replace(self, shape=shape, skipped=self.skipped + first)

    def part(self, bounds: Sequence[slice]) -> Reference:
        """The entries of a whole tensor within these bounds along each axis, of which one alone is cut.

        Cost: of reading it, one look at the file where the first axis is cut, else one for each entry along the axes
        before.
        """
        lengths = [bound.stop - bound.start for bound in bounds]
        cut = next((axis for axis, length in enumerate(self.shape) if lengths[axis] != length), None)
        if cut is None:
            return self
        assert lengths[cut + 1 :] == list(self.shape[cut + 1 :])
        inner = math.prod(self.shape[cut + 1 :])
        start = self.start + bounds[cut].start * inner * self.dtype.itemsize
        runs = None if math.prod(self.shape[:cut]) == 1 else (lengths[cut] * inner, self.shape[cut] * inner)
        return replace(self, shape=torch.Size(lengths), start=start, runs=runs)

    def read(self, out: Tensor) -> Tensor:
        """The entries into `out`."""
        if out.is_cpu and out.dtype == self.dtype:
            self._read_into(out.view(-1))
            return out
        raw = torch.empty(self.shape, dtype=self.dtype)
        self._read_into(raw.view(-1))
        return out.copy_(raw.view(out.shape))

    def _read_into(self, out: Tensor) -> None:
        if self.runs is None:
            self.file.read_into(out, start=self.start)
            return
        (length, period), done = self.runs, 0
        while done < len(out):
            run, before = divmod(self.skipped + done, length)
            count = min(length - before, len(out) - done)
            start = self.start + (run * period + before) * self.dtype.itemsize
            self.file.read_into(out[done : done + count], start=start)
            done += count

    def to(self, device: torch.device) -> Reference:
        """Itself: there is nothing to move."""
        return self


def checkpoint_files(path: str | os.PathLike[str]) -> list[CheckpointFile]:
    """The files of a checkpoint.

    Args:
        path: a .safetensors file; an index of shards (.safetensors.index.json); or a folder with one of them.

    Raises:
        FileFormatError: there is no such file, or one of them is truncated or no safetensors file.
    """
    target = Path(path).absolute()
    if target.is_dir():
        found = sorted(target.glob("*.safetensors.index.json")) or sorted(target.glob("*.safetensors"))
        if len(found) != 1:
            listed = ", ".join(file.name for file in found) or "none"
            raise FileFormatError(f"{target}: expected one safetensors checkpoint, found {listed}. Name the file.")
        target = found[0]
    if target.suffix != ".json":
        return [CheckpointFile(target)]
    shards = read_json(target).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise FileFormatError(f"{target}: 'weight_map' is missing or damaged. Copy the checkpoint again.")
    return [CheckpointFile(target.parent / name) for name in sorted(set(shards.values()))]


def anchors_on_disk(
    path: str | os.PathLike[str], weights: TensorMap, *, names: Mapping[str, Iterable[str]], where: str
) -> dict[str, Reference]:
    """Anchors in a checkpoint that holds today's weights.

    A parameter's tensor is the one of its name, else the one whose name is the longest end of it ("layer.weight" for
    "encoder.layer.weight"), else the one whose name it is the end of: a checkpoint of the whole model, or of the part
    that it is built on.

    Args:
        path: as for `checkpoint_files`.
        weights: name -> the weight today; of a sharded model the DTensor, of which each process compares its own part.
        names: name -> all names that it goes by, more than one where weights are tied.
        where: for messages.

    Returns:
        Of each the anchor that this process needs.

    Raises:
        FileFormatError: as `checkpoint_files`.
        ParameterMismatchError: weights that are missing there, or of another shape or value; every one is listed.

    Cost: one reading of these weights, or of this process's part of them.
    """
    tensors: dict[str, Reference] = {}
    for file in checkpoint_files(path):
        found = {name: file.reference(name) for name in file.tensors}
        tensors |= {name: reference for name, reference in found.items() if reference is not None}
    by_end = {end: name for name in sorted(tensors, key=len, reverse=True) for end in _ends(name)}
    anchors: dict[str, Reference] = {}
    wrong = []
    for name, weight in weights.items():
        ends = sorted((end for each in names[name] for end in _ends(each)), key=len, reverse=True)
        ends += [by_end[each] for each in names[name] if each in by_end]
        reference = next((tensors[end] for end in ends if end in tensors), None)
        if reference is None:
            wrong.append(f"{name!r} is not in it")
        elif reference.shape != weight.shape:
            wrong.append(f"{name!r} is {tuple(reference.shape)} there, {tuple(weight.shape)} in the model")
        elif num_other := _num_other(part := reference.part(bounds_of(weight)), local(weight.detach())):
            wrong.append(f"{name!r} differs in {num_other} of {part.shape.numel()} entries")
        else:
            anchors[name] = part
    if wrong:
        raise ParameterMismatchError(
            f"{where}: {Path(path)} does not hold today's weights: {'; '.join(wrong)}. Save them with safetensors, and "
            "name that file: keeper.anchors = PATH; or keep the anchors in memory: keeper.anchors = None."
        )
    return anchors


def references_to_json(anchors: Mapping[str, Reference]) -> dict[str, Any]:
    """Where they are, for `references_from`."""
    files = {str(anchor.file.path): anchor.file.sha256 for anchor in anchors.values()}
    return {"files": files, "tensors": {name: [str(a.file.path), a.name] for name, a in anchors.items()}}


def references_from(content: Any, path: str | os.PathLike[str] | None, *, where: str) -> dict[str, Reference]:
    """The anchors that `references_to_json` described, none for None.

    Args:
        content: as JSON has it.
        path: the checkpoint where it is now, as for `checkpoint_files`; None for where it was.
        where: for messages.

    Raises:
        FileFormatError: a damaged description, or a file that is missing or another than it was.
    """
    if content is None:
        return {}
    try:
        digests, tensors = dict(content["files"]), dict(content["tensors"])
        here = [] if path is None else checkpoint_files(path)
        files = {old: _file_of(Path(old), digest, here) for old, digest in digests.items()}
        for old, file in files.items():
            if file.sha256 != digests[old]:
                raise FileFormatError(
                    f"{where}: the anchors are in {file.path}, and that is not the file it was: its sha256 is "
                    f"{file.sha256[:12]}..., expected {str(digests[old])[:12]}.... Put the old one back, or say where "
                    "it is with anchors=PATH."
                )
        found = {name: files[file].reference(tensor) for name, (file, tensor) in tensors.items()}
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{where}: 'references' is damaged ({error!r}). Save the keeper again.") from error
    return {name: reference for name, reference in found.items() if reference is not None}


def _file_of(old: Path, digest: Any, here: list[CheckpointFile]) -> CheckpointFile:
    """The file with this sha256: one of those that are here, whatever its name, else the one where it was."""
    named = [file for file in here if file.path.name == old.name]
    found = next((file for file in (*named, *here) if file.sha256 == digest), None)
    if found is None and (old.exists() or not here):
        return CheckpointFile(old)
    return found or (*named, *here)[0]


def _check_entries(tensors: Mapping[str, Any]) -> None:
    """Raise `ValueError` where what a header says of its tensors cannot be."""
    mistakes = []
    for name, entry in tensors.items():
        if not isinstance(entry, dict):
            mistakes.append(f"{name!r:.40} is {entry!r:.40}, expected an object")
            continue
        found, wrong = typed(entry, _ENTRY)
        mistakes += [f"{name!r:.40}: {mistake}" for mistake in wrong]
        if wrong or found["dtype"] not in _DTYPES:
            continue
        num_bytes = math.prod(found["shape"]) * _DTYPES[found["dtype"]].itemsize
        if len(found["data_offsets"]) != 2 or found["data_offsets"][1] - found["data_offsets"][0] != num_bytes:
            mistakes.append(f"{name!r:.40}: data_offsets are {found['data_offsets']!r:.40}, expected {num_bytes} bytes")
    if mistakes:
        raise ValueError(listed_mistakes(mistakes))


def _num_other(reference: Reference, weight: Tensor) -> int:
    """In how many entries a weight differs from what the checkpoint makes of it."""
    columns = weight.detach().reshape(-1).split(PIECE), reference.pieces(PIECE)
    return sum(int((part != read(piece, dtype=part.dtype, device=part.device)).sum()) for part, piece in zip(*columns))


def _ends(name: str) -> list[str]:
    pieces = name.split(".")
    return [".".join(pieces[start:]) for start in range(len(pieces))]


def _stamp(file: int) -> tuple[int, int, int]:
    facts = os.fstat(file)
    return facts.st_size, facts.st_mtime_ns, facts.st_ino
