"""The IDX format of yann.lecun.com/exdb/mnist: a magic number, big-endian sizes, then the bytes."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import DataFileError

_GZIP = b"\x1f\x8b"
_UNSIGNED_BYTES = b"\x00\x00\x08"
_REMEDY = "Delete it and get an intact copy."


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """The unsigned bytes of an IDX file, plain or gzip.

    Returns:
        uint8, in the shape that the file states.

    Raises:
        DataFileError: the file is missing, damaged, shorter or longer than it states, or not of unsigned bytes.
    """
    content = _uncompressed(path)
    if content[:3] != _UNSIGNED_BYTES or len(content) < 4:
        raise DataFileError(
            f"{path}: found {content[:4].hex() or 'no bytes'}, expected the magic number 000008.. of an IDX file "
            f"of unsigned bytes. {_REMEDY}"
        )
    rank = content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise DataFileError(f"{path}: found {len(content)} bytes, expected a header of {start}: truncated. {_REMEDY}")
    shape = struct.unpack(f">{rank}I", content[4:start])
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataFileError(
            f"{path}: found {len(content)} bytes, expected {expected} for the shape {list(shape)} it states. {_REMEDY}"
        )
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy())


def _uncompressed(path: str | os.PathLike[str]) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read: {error.strerror}. Put an IDX file there.") from error
    if content[:2] != _GZIP:
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError(f"{path}: damaged or truncated gzip data: {error}. {_REMEDY}") from error
