"""Files that are kept once they were made: downloaded and checked, put in place whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.request import urlopen

from tqdm import tqdm

from holdfast.errors import DataFileError, OutputError

_SECONDS = 30.0
_CHUNK = 1 << 16


def cache_folder() -> Path:
    """Where what can be made anew is kept: `$XDG_CACHE_HOME/holdfast`, default `~/.cache/holdfast`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast"


def download(path: Path, *, mirrors: Sequence[str], sha256: Collection[str]) -> None:
    """Fetch `path.name` from the first mirror that has it intact, and put it at `path`.

    Whatever interrupts it, `path` is whole or absent, and nothing else is left behind. A terminal shows the progress.

    Args:
        path: where the file goes; missing folders are made.
        mirrors: addresses of folders, ending in a slash, tried in order.
        sha256: the digests of which the file must have one, in lower-case hexadecimal.

    Raises:
        DataFileError: no mirror could be reached, or none has an intact file; names each and why.
        OutputError: the file cannot be written.
    """
    failures = []
    with placed(path) as file:
        for mirror in mirrors:
            url = mirror + path.name
            try:
                found = _copy(url, file, title=path.name)
            except (OSError, HTTPException) as error:
                failures.append(f"{url}: {error}")
                continue
            if found in sha256:
                return
            failures.append(f"{url}: sha256 {found} of {file.tell()} bytes, expected {' or '.join(sha256)}")
        raise DataFileError(
            f"cannot download {path.name}: {'; '.join(failures)}. "
            f"Connect to the network, or put the file at {path} by hand."
        )


@contextmanager
def placed(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, renamed to it when the block ends without an exception.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = path.with_name(f".holdfast-{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except DataFileError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}. Free the place, or name another folder.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _copy(url: str, file: BinaryIO, *, title: str) -> str:
    """Replace what `file` holds by what is at the address; returns its sha256."""
    file.seek(0)
    file.truncate()
    digest = hashlib.sha256()
    with urlopen(url, timeout=_SECONDS) as response:
        size = response.headers.get("Content-Length")
        total = int(size) if size else None
        # disable=None: shown on a terminal only
        with tqdm(desc=title, total=total, unit="B", unit_scale=True, disable=None, leave=False) as progress:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                progress.update(len(chunk))
    return digest.hexdigest()
