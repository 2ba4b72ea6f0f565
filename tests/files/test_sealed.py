from __future__ import annotations

import json

import pytest

from holdfast.errors import FileFormatError
from holdfast.files import read_sealed, write_sealed

CONTENT = {"a": [1, 2.5, None], "b": {10: "é", 9: float("inf")}}


def test_what_was_written_is_read(tmp_path):
    write_sealed(tmp_path / "x.json", CONTENT)
    assert read_sealed(tmp_path / "x.json") == {"a": [1, 2.5, None], "b": {"10": "é", "9": float("inf")}}


def test_another_layout_is_the_same_content(tmp_path):
    write_sealed(tmp_path / "x.json", CONTENT)
    content = json.loads((tmp_path / "x.json").read_text())
    (tmp_path / "x.json").write_text(json.dumps(dict(reversed(content.items()))))
    assert read_sealed(tmp_path / "x.json")["a"] == [1, 2.5, None]


def test_a_file_of_an_earlier_version_has_no_digest(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_sealed(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize("change", [{"a": [1, 2, None]}, {"c": 1}, {"sha256": "0"}, {"sha256": 1}])
def test_what_was_edited_is_refused(tmp_path, change):
    write_sealed(tmp_path / "x.json", CONTENT)
    content = json.loads((tmp_path / "x.json").read_text())
    (tmp_path / "x.json").write_text(json.dumps(content | change))
    with pytest.raises(
        FileFormatError, match=r"x.json is damaged or was edited: its content is not that of its sha256"
    ):
        read_sealed(tmp_path / "x.json")
