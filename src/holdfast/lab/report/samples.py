"""The pictures that runs themselves drew, such as grids of generated samples, made part of the page."""

from __future__ import annotations

import base64
from pathlib import Path

from holdfast.errors import FileFormatError
from holdfast.lab.escaping import one_line
from holdfast.lab.frame import DataFrame

MOST_BYTES = 512 * 1024
"""Of one section; what is beyond stays in the run folders, and is counted."""

_PNG = b"\x89PNG\r\n\x1a\n"
_OWN = {"accuracy.png", "matrix.png"}
"""What every run draws, and the report shows anyhow."""


def samples(runs: DataFrame) -> tuple[dict[str, str], int]:
    """The PNGs of `plots/` in the run folder of each configuration's first seed that has any.

    Args:
        runs: whose pictures.

    Returns:
        Caption -> picture, as a data URL, and how many there was no room for.

    Raises:
        FileFormatError: one cannot be read, or is no PNG.
    """
    found, size, left_out = {}, 0, 0
    drawn = runs.assign(pictures=[_pictures(folder) for folder in runs["folder"]])
    drawn = drawn[drawn["pictures"].map(len) > 0].drop_duplicates(["method", "variant"])
    for run in drawn.itertuples():
        for path in run.pictures:
            content = _read(path)
            if size + len(content) > MOST_BYTES:
                left_out += 1
                continue
            size += len(content)
            name = one_line(path.stem.replace("-", " ").replace("_", " "))
            source = "data:image/png;base64," + base64.b64encode(content).decode()
            found[f"{run.configuration}, seed {run.seed}: {name}"] = source
    return found, left_out


def _pictures(folder: str | None) -> list[Path]:
    if folder is None:
        return []
    return sorted(path for path in (Path(folder) / "plots").glob("*.png") if path.name not in _OWN)


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
