"""The pictures that runs themselves drew, such as grids of generated samples, made part of the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import FileFormatError
from holdfast.lab.escaping import one_line
from holdfast.lab.groups import RunGroup

MOST_BYTES = 512 * 1024
"""Of one section; what is beyond stays in the run folders, and is counted."""

_PNG = b"\x89PNG\r\n\x1a\n"
_OWN = {"accuracy.png", "matrix.png"}
"""What every run draws, and the report shows anyhow."""


@dataclass(frozen=True)
class SamplePicture:
    """A picture of a run.

    Attributes:
        caption: whose it is.
        source: as a data URL.
    """

    caption: str
    source: str


def samples(groups: Sequence[RunGroup], places: Mapping[int, Path]) -> tuple[list[SamplePicture], int]:
    """The PNGs of `plots/` in the run folder of each group's first seed that has any.

    Args:
        groups: whose pictures.
        places: `id` of a result -> the file it was read from.

    Returns:
        The pictures, and how many there was no room for.

    Raises:
        FileFormatError: one cannot be read, or is no PNG.
    """
    found, size, left_out = [], 0, 0
    for group in groups:
        drawn = ((result, _pictures(places.get(id(result)))) for result in group.results)
        result, paths = next(((result, paths) for result, paths in drawn if paths), (group.results[0], []))
        for path in paths:
            content = _read(path)
            if size + len(content) > MOST_BYTES:
                left_out += 1
                continue
            size += len(content)
            name = one_line(path.stem.replace("-", " ").replace("_", " "))
            source = "data:image/png;base64," + base64.b64encode(content).decode()
            found.append(SamplePicture(f"{group.label}, seed {result.seed}: {name}", source))
    return found, left_out


def _pictures(result: Path | None) -> list[Path]:
    """Of the run folder that holds the result."""
    return [] if result is None else sorted(p for p in (result.parent / "plots").glob("*.png") if p.name not in _OWN)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileFormatError(f"{path} cannot be read: it is no file. Delete it.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}. Delete it, or make it readable.") from error
    if not content.startswith(_PNG):
        raise FileFormatError(f"{path} is no PNG; found {content[:8]!r}, expected {_PNG!r} at its start. Delete it.")
    return content
