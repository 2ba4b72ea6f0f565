"""Files as MNIST has them, of few images."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.lab.streams.mnist import FILES

NAMES = list(FILES)


def idx(array: Any) -> bytes:
    """An array of bytes in the IDX format."""
    array = np.asarray(array, dtype=np.uint8)
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def fake_files(train: int = 24, test: int = 10, *, side: int = 28, offset: int = 0) -> dict[str, bytes]:
    """The four files: image i is of one grey, i + offset, and label i mod 10."""
    contents: list[Any] = []
    for n in (train, test):
        contents += [(np.arange(n) + offset)[:, None, None] * np.ones((n, side, side)), np.arange(n) % 10]
    return {name: idx(content) for name, content in zip(NAMES, contents, strict=True)}


def write(folder: Path, files: Mapping[str, bytes], *, compress: bool = True) -> Path:
    """The files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        target = folder / (name if compress else name.removesuffix(".gz"))
        target.write_bytes(gzip.compress(content, mtime=0) if compress else content)
    return folder
