"""Which runs of a folder were trials of a sweep, by the `sweep-STREAM.json` that stands beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import FileFormatError
from holdfast.files import read_json
from holdfast.files.typed import listed_mistakes, typed

_CONTENT = {
    "stream": str,
    "seeds": list[int],
    "settings": dict[str, Any],
    "best": list[dict[str, Any]],
    "all": list[dict[str, Any]],
}
_TRIED = ("method", "optimizer", "lr", "strength")


@dataclass(frozen=True)
class Trials:
    """The settings that a sweep tried.

    Attributes:
        content: of its JSON file, as `holdfast.lab.sweep` writes it.
    """

    content: Mapping[str, Any]

    def rejected(self, run: Mapping[str, Any]) -> bool:
        """Whether a run, setting -> value, was tried, and its setting not chosen."""
        choice = _choice(run)
        return (
            self.about(run)
            and run["seed"] in self.content["seeds"]
            and choice in map(_choice, self.content["all"])
            and choice not in map(_choice, self.content["best"])
        )

    def about(self, run: Mapping[str, Any]) -> bool:
        """Whether a run is on the sweep's stream, under the settings that all its runs share."""
        fixed = {"stream": self.content["stream"], **self.content["settings"]}
        return all(_plain(run.get(name)) == _plain(value) for name, value in fixed.items())

    @property
    def given_up(self) -> dict[str, str]:
        """Method -> why its last setting was given up, of the methods that have no setting that went to its end."""
        tried = self.content["all"]
        done = {each.get("method") for each in tried if each.get("state") != "pruned"}
        return {str(each.get("method")): str(each.get("why")) for each in tried if each.get("method") not in done}


def trials_in(folder: Path) -> list[Trials]:
    """Those of every sweep whose findings stand in a folder.

    Raises:
        FileFormatError: a file of findings is damaged.
    """
    found = []
    for path in sorted(folder.glob("sweep-*.json")):
        content = read_json(path)
        if content.keys() >= _CONTENT.keys():  # else it is somebody else's
            values, mistakes = typed(content, _CONTENT)
            if mistakes:
                raise FileFormatError(f"{path} holds no findings of a sweep: {listed_mistakes(mistakes)}. Delete it.")
            found.append(Trials(values))
    return found


def _choice(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(_plain(run.get(name)) for name in _TRIED)


def _plain(value: Any) -> Any:
    """A setting as it can be compared, whether it comes from JSON or from a table."""
    if isinstance(value, list):
        return tuple(value)
    return None if value is None or type(value).__name__ == "NAType" or value != value else value
