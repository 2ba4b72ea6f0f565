import gzip
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import DataFileError
from holdfast.lab.streams.idx import read_idx


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.numpy().tobytes()


IMAGES = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=3), compress=st.booleans())
def test_what_was_written_is_read(tmp_path_factory, shape, compress):
    array = torch.randint(0, 256, shape, dtype=torch.uint8)
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(idx(array), mtime=0) if compress else idx(array))
    found = read_idx(path)
    assert found.dtype == torch.uint8
    assert torch.equal(found, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found no bytes, expected the magic number 000008.. of an IDX file of unsigned bytes."),
        (b"\x00\x00\x08", "found 000008, expected the magic number"),
        (
            b"\x00\x00\x0d\x01" + bytes(8),
            "found 00000d01, expected the magic number 000008.. of an IDX file of unsigned bytes.",
        ),
        (b"<html>not found</html>", "found 3c68746d, expected the magic number"),
        (idx(IMAGES)[:10], "found 10 bytes, expected a header of 16: truncated."),
        (idx(IMAGES)[:-5], "found 35 bytes, expected 40 for the shape [2, 3, 4] it states."),
        (idx(IMAGES) + b"\x00", "found 41 bytes, expected 40 for the shape [2, 3, 4] it states."),
        (gzip.compress(idx(IMAGES), mtime=0)[:-9], "damaged or truncated gzip data:"),
        (gzip.compress(idx(IMAGES), mtime=0)[:-8] + bytes(8), "damaged or truncated gzip data: CRC check failed"),
        (b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 20, "damaged or truncated gzip data:"),
    ],
)
def test_damage_is_named_with_its_file(tmp_path, content, message):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(DataFileError) as caught:
        read_idx(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert str(caught.value).endswith("Delete it and get an intact copy.")


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "images.gz"
    with pytest.raises(DataFileError) as caught:
        read_idx(path)
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory. Put an IDX file there."
    path.write_bytes(idx(IMAGES))
    assert torch.equal(read_idx(path), IMAGES)
