"""A run's folder: its configuration, its events as they happen, its result and its checkpoint."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from holdfast.errors import FileFormatError, OutputError, RunMismatchError
from holdfast.files import check_output, parsed_json, read_bytes, read_json, write_bytes, write_json
from holdfast.version import __version__


class FolderSettings(Protocol):
    """The configuration of a run, as its folder keeps it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        ...

    def defaults(self) -> dict[str, Any]:
        """Setting -> its default."""
        ...


class RunFolder:
    """The folder `path` of one run, checked at construction where it exists; nothing is written before `open`.

    It is known as ours by the configuration in it. The run's own files are then replaced, and all others stay.

    Raises:
        OutputError: it cannot be written, or it holds something and no run; see `holdfast.files.check_output`.
        RunMismatchError: it belongs to another configuration.
        FileFormatError: its configuration is damaged.
    """

    def __init__(self, path: Path, config: FolderSettings) -> None:
        self.path = path
        self.result = path / "result.json"
        self.lock = path / ".holdfast-lock"
        self.checkpoint = path / "checkpoint" / "state.safetensors"
        self.plots = path / "plots"
        self._events = path / "metrics.jsonl"
        self._written = path / "config.json"
        self._config = config
        if not self.result.exists():  # else it is read back
            check_output(path, is_ours=lambda _: self._written.exists())
        for folder in (self.checkpoint.parent, self.plots):
            if os.path.lexists(folder) and not folder.is_dir():
                raise OutputError(f"{folder} is no folder; the run writes into one there. Move it away.")
        if self._written.exists():
            _check_same(self._written, config)

    def check_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Check that what was learned here was learned with the same data and code of others, as far as both are known.

        Raises:
            RunMismatchError: it was not.
        """
        if not self._written.exists() or not self._has_begun:
            return
        there = read_json(self._written)
        if "data" in provenance and there.get("data", provenance["data"]) != provenance["data"]:
            raise RunMismatchError(
                f"{self.path} was begun with other data: {there['data']} there, {provenance['data']} here (digits of "
                "their content). Give the same --data or --data-dir, choose another --output, or move the folder away."
            )
        plugins = provenance.get("plugins", {})
        before = there.get("plugins", plugins)
        edited = [name for name in sorted({*plugins, *before}) if plugins.get(name) != before.get(name)]
        if edited:
            raise RunMismatchError(
                f"{self.path} was begun with another version of {', '.join(edited)}. Choose another --output, or move "
                "the folder away."
            )

    @property
    def _has_begun(self) -> bool:
        """Whether something that was learned stands in it."""
        return self.checkpoint.exists() or self.result.exists()

    def open(self, provenance: Mapping[str, Any] | None = None) -> None:
        """Make the folder, or find it again and sweep out what a killed session left half written.

        Args:
            provenance: what stands beside the settings in `config.json`; see `check_provenance`.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for stale in (*self.path.glob(".holdfast-*.new"), *self.checkpoint.parent.glob(".holdfast-*.new")):
                if stale.is_file():
                    stale.unlink()
        except OSError as error:
            raise OutputError(f"cannot write the run folder {self.path}: {error}. Choose another --output.") from error
        if not self._has_begun:
            told = {"config": self._config.to_dict(), **(provenance or {}), "versions": versions()}
            write_json(self._written, told)

    def truncate(self, num_events: int) -> None:
        """Keep the first events only: those that the checkpoint knows of.

        Raises:
            FileFormatError: one of them is damaged; half a line after them is cut off.
        """
        lines = read_bytes(self._events).splitlines()[:num_events] if self._events.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                parsed_json(line, where=self._events)
            except FileFormatError as error:
                raise FileFormatError(
                    f"{self._events}, line {number} is no event: damaged or edited. Delete the file and run the same "
                    "command again: the run goes on from its checkpoint."
                ) from error
        write_bytes(self._events, b"".join(line + b"\n" for line in lines))

    def append(self, event: Mapping[str, Any]) -> None:
        """Write one event as a line, at once."""
        try:
            with self._events.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self._events}: {error}. Run the same command again to resume.") from error


TRIAL = "trial"
"""The purpose of a run of a sweep whose setting is not chosen."""


def note_purpose(folder: Path, purpose: str) -> None:
    """Note in the `config.json` of a run's folder what the run was done for, such as "quick"; empty: for itself.

    Reports leave such runs out unless they are asked for; see `holdfast.lab.results`.

    Raises:
        FileFormatError: the file is missing or damaged.
        OutputError: it cannot be written.
    """
    path = folder / "config.json"
    write_json(path, {**read_json(path), "purpose": purpose})


def purpose_of(folder: Path) -> str:
    """What the run of a folder was done for; empty: for itself, or there is no run.

    Raises:
        FileFormatError: its `config.json` is damaged.
    """
    path = folder / "config.json"
    return str(read_json(path).get("purpose", "")) if path.is_file() else ""


def versions() -> dict[str, str]:
    """What figures may depend on beside the configuration."""
    return {"holdfast": __version__, "torch": torch.__version__, "python": platform.python_version()}


def check_same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that what a folder holds was done with the settings at hand.

    Raises:
        RunMismatchError: it was not; every difference is named.
    """
    names = sorted({*there, *here})
    differing = [name for name in names if there.get(name) != here.get(name)]
    if differing:
        pairs = ", ".join(f"{name} {there.get(name)!r} there, {here.get(name)!r} here" for name in differing)
        raise RunMismatchError(
            f"{folder} belongs to another configuration: {pairs}. Choose another --output, or move the folder away."
        )


def _check_same(written: Path, config: FolderSettings) -> None:
    content = read_json(written).get("config")
    if not isinstance(content, dict):
        raise FileFormatError(f"{written} holds no configuration: damaged. Move the folder away to start again.")
    here = config.to_dict()  # earlier versions wrote settings that are not the run's, too, and knew others not yet
    there = {name: content.get(name, config.defaults().get(name)) for name in here}
    if there.get("fingerprint"):  # then it does not matter where the data stand
        there["data"] = here["data"]
    check_same(written.parent, there, here)
