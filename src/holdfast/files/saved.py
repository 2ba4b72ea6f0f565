"""Reading a folder that holdfast saved: every file is held against its sha256 in the manifest before it counts."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from torch import Tensor

from holdfast.errors import FileFormatError, HoldfastError
from holdfast.files.checks import COMMIT
from holdfast.files.locks import undisturbed
from holdfast.files.manifest import DESCRIPTIONS, FORMAT_VERSION, MANIFEST, check_described, parsed_manifest
from holdfast.files.plain import opened, parsed_json, read_bytes, write_json
from holdfast.files.tensors import damaged, read_tensors, sha256_of

T = TypeVar("T")

_TRIES = 10
"""A folder that is replaced while it is read is read so often before that is an error."""


@dataclass(frozen=True)
class Saved:
    """One save of a folder.

    Attributes:
        path: the folder.
        files: name -> sha256.
        identity: of the file that lists them; two saves of the same content differ in it.
        is_moving: whether files of it still move to their place, or did when their writer was killed.
    """

    path: Path
    files: Mapping[str, str]
    identity: tuple[int, int]
    is_moving: bool = False

    def has(self, stem: str) -> bool:
        """Whether there are tensors of this stem: one file, or shards."""
        return any(_belongs(name, stem) for name in self.files)

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """The tensors of `stem.safetensors`, or of its shards.

        Raises:
            FileFormatError: a file is missing, truncated, edited or no safetensors file.
        """
        names = sorted(name for name in self.files if _belongs(name, stem))
        if not names:
            raise FileFormatError(f"{self.path}: no {stem}.safetensors is listed for it. Save it again.")
        tensors: dict[str, Tensor] = {}
        for name in names:
            tensors.update(self._read(name, lambda path, digest: read_tensors(path, digest)))
        return tensors

    def text(self, name: str) -> str:
        """The text in a file of the folder.

        Raises:
            FileFormatError: it is missing, damaged or edited.
        """
        return self._read(name, _checked).decode()

    def description(self, name: str) -> dict[str, Any]:
        """The JSON object in a file of the folder, its format version checked.

        Raises:
            FileFormatError: it is missing, damaged, edited, or of another format version.
        """
        if name not in self.files:
            held = ", ".join(sorted(name for name in self.files if name.endswith(".json"))) or "none"
            raise FileFormatError(
                f"{self.path / name} is not among the files that holdfast saved there; descriptions in it: {held}. "
                "Load it as what it is, or save it again."
            )
        content = parsed_json(self._read(name, _checked), where=self.path / name)
        check_described(content, where=self.path / name)
        return content

    @contextmanager
    def whole(self) -> Iterator[Path]:
        """A folder with every file of the save, each held against its digest; for libraries that read folders.

        It is the folder itself, or one of links where the files still move to their place.

        Raises:
            FileFormatError: a file is missing, damaged or edited; or another save came within the block.
        """
        found = {name: self._read(name, _verified) for name in self.files}
        if self.is_moving:
            with TemporaryDirectory() as links:
                for name, path in found.items():
                    (Path(links) / name).parent.mkdir(parents=True, exist_ok=True)
                    (Path(links) / name).symlink_to(path)
                yield Path(links)
        else:
            yield self.path
        if not self.is_current():
            raise FileFormatError(f"{self.path} was replaced while it was read. Read it again.")

    def is_current(self) -> bool:
        """Whether no other save has come since."""
        try:
            return Saved.at(self.path).identity == self.identity
        except FileFormatError:
            return False

    def _read(self, name: str, read: Callable[[Path, str], T]) -> T:
        for path in (self.path / COMMIT / name, self.path / name):
            if path.exists():
                try:
                    return read(path, self.files[name])
                except FileFormatError:
                    if path.exists():
                        raise  # else it has just moved from the first place to the second
        raise FileFormatError(
            f"{self.path / name} is missing, though the folder's manifest names it. Copy the folder whole."
        )

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Saved:
        """The save that stands in a folder now.

        Raises:
            FileFormatError: there is none, or its manifest is damaged.
        """
        folder = Path(path).absolute()
        if not folder.is_dir():
            raise FileFormatError(f"{folder}: no such folder; expected one that holdfast has saved.")
        for place in (folder / COMMIT / MANIFEST, folder / MANIFEST, folder / COMMIT / MANIFEST):
            if place.exists():
                try:
                    content, identity = _identified(place)
                except FileFormatError:
                    if place.exists():
                        raise
                    continue  # it moves from the first place to the second
                is_moving = place.parent != folder
                return cls(folder, parsed_manifest(content, where=place), identity, is_moving)
        for name in DESCRIPTIONS:
            if (folder / name).is_file():
                check_described(parsed_json(read_bytes(folder / name), where=folder / name), where=folder / name)
                raise FileFormatError(f"{folder / MANIFEST} is missing beside {name}. Copy the folder whole.")
        raise FileFormatError(f"{folder} holds no {MANIFEST}: holdfast has saved nothing there, or not all was copied.")


def read_folder(path: str | os.PathLike[str], read: Callable[[Saved], T]) -> T:
    """What `read` makes of one save of a folder; from the start again where another save came between.

    From the third time on writers are kept out meanwhile.

    Raises:
        FileFormatError: there is none, or it is damaged, truncated or edited.
        HoldfastError: what `read` raises.
    """
    for left in reversed(range(_TRIES)):
        with undisturbed(Path(path)) if left < _TRIES - 2 else nullcontext():
            saved = Saved.at(path)
            try:
                return read(saved)
            except HoldfastError:
                if left == 0 or (saved.is_current() and not saved.is_moving):
                    raise
        time.sleep(0.01)
    raise AssertionError("the last try returns or raises")


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a save, whole; one that is being written for the first time does not."""
    try:
        Saved.at(path)
    except FileFormatError:
        return False
    return True


def write_description(path: Path, content: Mapping[str, Any]) -> None:
    """Write a folder's description: `content` under the format version of this library."""
    write_json(path, {"format_version": FORMAT_VERSION, **content})


def _identified(path: Path) -> tuple[bytes, tuple[int, int]]:
    """The content of a file, and its number and time, which a rename keeps."""
    with opened(path) as file:
        told = os.fstat(file.fileno())
        return file.read(), (told.st_ino, told.st_mtime_ns)


def _checked(path: Path, digest: str) -> bytes:
    content = read_bytes(path)
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise FileFormatError(damaged(path, found, digest))
    return content


def _verified(path: Path, digest: str) -> Path:
    """The file itself, whose content is what it was."""
    with opened(path) as file:
        found = sha256_of(file)
    if found != digest:
        raise FileFormatError(damaged(path, found, digest))
    return path


def _belongs(file: str, stem: str) -> bool:
    return file == f"{stem}.safetensors" or (file.startswith(f"{stem}-") and file.endswith(".safetensors"))
