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
    assert description(tmp_path / "x") == {"format_version": 3, "kind": "mas"}


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


@pytest.mark.parametrize("version", [1, 2])
def test_means_over_examples_are_refused_with_the_remedy(tmp_path, version):
    save(tmp_path / "x")
    config = tmp_path / "x" / "importance_config.json"
    tensors = tmp_path / "x" / "importance.safetensors"
    files.write_json(config, {"format_version": version, "kind": "mas", "files": digests(tensors)})
    if version == 1:  # whose description was the marker
        (tmp_path / "x" / "holdfast.json").unlink()
    else:
        files.write_json(tmp_path / "x" / "holdfast.json", {"format_version": 2, "files": digests(config, tensors)})
    told = rf"importance_config.json: format_version is {version}: it is of means over examples, .* Measure again"
    with pytest.raises(FileFormatError, match=told) as error:
        description(tmp_path / "x")
    assert "\n" not in str(error.value)
    save(tmp_path / "x")  # what it says to do
    assert description(tmp_path / "x")["kind"] == "mas"


def digests(*paths):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_text_comes_back(tmp_path):
    fill(tmp_path / "x", "é")
    assert files.read_folder(tmp_path / "x", lambda saved: saved.text("text")) == "é"
    (tmp_path / "x" / "text").write_text("e")
    with pytest.raises(FileFormatError, match="text is damaged, truncated or edited"):
        files.read_folder(tmp_path / "x", lambda saved: saved.text("text"))
