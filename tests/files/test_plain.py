from __future__ import annotations

import os
import subprocess

import pytest

from holdfast import files
from holdfast.errors import FileFormatError, OutputError


def test_json_comes_back_and_errors_are_told(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": "é", "b": [1.5, None]})
    assert files.read_json(path) == {"a": "é", "b": [1.5, None]}
    path.write_text('{"a": ')
    with pytest.raises(FileFormatError, match=r"x.json is no valid JSON \(.*\): truncated or edited. Save it again"):
        files.read_json(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(FileFormatError, match="is no valid JSON"):
        files.read_json(path)
    path.write_text("[1]")
    with pytest.raises(FileFormatError, match="holds a JSON list; expected an object"):
        files.read_json(path)
    with pytest.raises(FileFormatError, match="y.json cannot be read: No such file"):
        files.read_json(tmp_path / "y.json")


def test_json_that_python_cannot_take_in_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(FileFormatError, match="is JSON nested too deeply: edited. Save it again"):
        files.read_json(path)
    path.write_text('{"a": ' + "9" * 10_000 + "}")
    with pytest.raises(FileFormatError, match="is no valid JSON"):
        files.read_json(path)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder", "/dev/zero"):
        with pytest.raises(FileFormatError, match=r"is no regular file \(a folder, a pipe or a device\)"):
            files.read_json(type(tmp_path)(path))
    with pytest.raises(FileFormatError, match="cannot be read"):
        files.read_json(tmp_path / "a\0b")


def test_text_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write .*folder: .* Choose a place that can be written"):
        files.write_text(tmp_path / "folder", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\uDC00": 1}', "surrogates not allowed"),
        (b'{"a": ' + b"1" * 41 + b"}", "a number of 41 digits"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a number of 5000 digits"),
    ],
)
def test_json_whose_values_could_not_be_shown_is_refused(tmp_path, content, told):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=f"x.json is no valid JSON .*{told}"):
        files.read_json(tmp_path / "x.json")


def test_characters_in_two_halves_are_whole(tmp_path):
    (tmp_path / "x.json").write_bytes(b'{"a": "\\ud83d\\ude00"}')
    assert files.read_json(tmp_path / "x.json") == {"a": "\U0001f600"}


def test_what_killed_processes_left_of_a_file_is_swept_when_it_is_written_again(tmp_path):
    """Not what a living process writes, nor what is new, of another file, or a user's."""
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    path = tmp_path / "x[1].json"
    stale = tmp_path / f".holdfast-{path.name}.{dead.pid}.new"
    others = [
        tmp_path / f".holdfast-{path.name}.{os.getppid()}.new",
        tmp_path / f".holdfast-y.json.{dead.pid}.new",
        tmp_path / f".holdfast-{path.name}.mine.new",
    ]
    for each in (stale, *others):
        each.write_text("half")
    files.write_json(path, {})
    assert stale.exists()
    for each in (stale, *others):
        os.utime(each, (0, 0))
    files.write_json(path, {})
    assert not stale.exists()
    assert all(each.exists() for each in others)
