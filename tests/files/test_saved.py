from __future__ import annotations

import hashlib

import pytest
import torch
from tests.files.folders import fill

from holdfast import files
from holdfast.errors import FileFormatError


def save(path, **content):
    with files.new_folder(path) as folder:
        files.write_tensors(folder, "importance", {"a": torch.ones(2)})
        files.write_description(folder / "importance_config.json", {"kind": "mas", **content})


def description(path):
    return files.read_folder(path, lambda saved: saved.description("importance_config.json"))


def test_a_description_bears_a_version_and_comes_back(tmp_path):
    save(tmp_path / "x")
    assert description(tmp_path / "x") == {"format_version": 2, "kind": "mas"}


def test_an_edited_description_is_refused(tmp_path):
    save(tmp_path / "x")
    path = tmp_path / "x" / "importance_config.json"
    path.write_text(path.read_text().replace("mas", "sam"))
    with pytest.raises(FileFormatError, match=r"importance_config.json is damaged, truncated or edited: its sha256"):
        description(tmp_path / "x")


def test_a_description_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with files.new_folder(tmp_path / "x") as folder:
        files.write_description(folder / "keeper_config.json", {})
    with pytest.raises(FileFormatError, match=r"importance_config.json is not among .*in it: keeper_config.json. Load"):
        description(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"format_version": 3, "files": {}}, r"format_version is 3; this holdfast reads version 2\. Read it with"),
        ({"format_version": True, "files": {}}, "format_version is True"),
        ({"files": {}}, "format_version is None"),
        ({"format_version": 2}, r"'files' is None; expected names with their sha256"),
        ({"format_version": 2, "files": ["a"]}, r"'files' is \['a'\]; expected"),
        ({"format_version": 2, "files": {"a": 1}}, "'a' in 'files' is no file with its sha256"),
        ({"format_version": 2, "files": {"../a": "0" * 64}}, "'../a' in 'files' is no file with its sha256"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, content, match):
    save(tmp_path / "x")
    files.write_json(tmp_path / "x" / "holdfast.json", content)
    with pytest.raises(FileFormatError, match=match):
        description(tmp_path / "x")


def test_a_folder_that_is_not_there_or_not_ours(tmp_path):
    with pytest.raises(FileFormatError, match="none: no such folder; expected one that holdfast has saved"):
        description(tmp_path / "none")
    with pytest.raises(FileFormatError, match=r"holds no holdfast.json: holdfast has saved nothing there, or not all"):
        description(tmp_path)
    save(tmp_path / "x")
    (tmp_path / "x" / "holdfast.json").unlink()
    with pytest.raises(FileFormatError, match=r"holdfast.json is missing beside importance_config.json. Copy"):
        files.read_folder(tmp_path / "x", lambda saved: saved.description("importance_config.json"))


def test_the_first_version_is_still_read(tmp_path):
    save(tmp_path / "x")
    (tmp_path / "x" / "holdfast.json").unlink()
    digest = hashlib.sha256((tmp_path / "x" / "importance.safetensors").read_bytes()).hexdigest()
    content = {"format_version": 1, "kind": "mas", "files": {"importance.safetensors": digest}}
    files.write_json(tmp_path / "x" / "importance_config.json", content)
    assert description(tmp_path / "x") == content
    assert torch.equal(files.read_folder(tmp_path / "x", lambda saved: saved.tensors("importance"))["a"], torch.ones(2))
    (tmp_path / "x" / "importance.safetensors").write_bytes(b"x")
    with pytest.raises(FileFormatError, match="importance.safetensors is damaged"):
        files.read_folder(tmp_path / "x", lambda saved: saved.tensors("importance"))


def test_text_comes_back(tmp_path):
    fill(tmp_path / "x", "é")
    assert files.read_folder(tmp_path / "x", lambda saved: saved.text("text")) == "é"
    (tmp_path / "x" / "text").write_text("e")
    with pytest.raises(FileFormatError, match="text is damaged, truncated or edited"):
        files.read_folder(tmp_path / "x", lambda saved: saved.text("text"))
