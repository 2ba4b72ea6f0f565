from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from holdfast import files
from holdfast.errors import FileFormatError, OutputError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(2.0)}


def write(folder, **options):
    folder.mkdir(exist_ok=True)
    return files.write_tensors(folder, "importance", TENSORS, **options)


def assert_same(found):
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_tensors_come_back(tmp_path):
    digests = write(tmp_path)
    assert list(digests) == ["importance.safetensors"]
    assert_same(files.read_tensors(tmp_path, "importance", digests))


def test_a_small_limit_gives_shards_with_an_index(tmp_path):
    digests = write(tmp_path, limit=24)
    names = [f"importance-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert list(digests) == names
    index = json.loads((tmp_path / "importance.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 34},
        "weight_map": {"a": names[0], "b": names[1], "c": names[1]},
    }
    assert_same(files.read_tensors(tmp_path, "importance", digests))


def test_a_missing_shard_is_named(tmp_path):
    digests = write(tmp_path, limit=24)
    (tmp_path / "importance-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        FileFormatError, match=r"importance-00002-of-00002.safetensors is missing.* Copy the folder whole"
    ):
        files.read_tensors(tmp_path, "importance", digests)


def test_views_and_tied_tensors_are_saved_whole(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    tied = {"a": whole, "b": whole, "t": whole.T, "wide": torch.ones(1).expand(4), "first": whole[0]}
    digests = files.write_tensors(tmp_path, "anchors", tied)
    found = files.read_tensors(tmp_path, "anchors", digests)
    assert all(torch.equal(found[name], tensor) for name, tensor in tied.items())


def test_no_tensors_at_all_come_back_as_none(tmp_path):
    assert files.read_tensors(tmp_path, "x", files.write_tensors(tmp_path, "x", {})) == {}


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_truncated_or_edited_tensors_are_refused(tmp_path, damage):
    digests = write(tmp_path)
    path = tmp_path / "importance.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileFormatError, match=r"importance.safetensors is damaged, truncated or edited: its sha256 is"):
        files.read_tensors(tmp_path, "importance", digests)


def test_what_is_no_safetensors_file_is_refused_though_its_digest_fits(tmp_path):
    digests = write(tmp_path)
    (tmp_path / "importance.safetensors").write_bytes(b"nonsense")
    digests = {"importance.safetensors": files._sha256(tmp_path / "importance.safetensors")}
    with pytest.raises(FileFormatError, match="is no valid safetensors file"):
        files.read_tensors(tmp_path, "importance", digests)


def test_a_description_without_files_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match="its description names no importance.safetensors. Save it again"):
        files.read_tensors(tmp_path, "importance", {"anchors.safetensors": "0"})
    with pytest.raises(FileFormatError, match=r"'files' in its description is \['a'\], no list of files"):
        files.read_tensors(tmp_path, "importance", ["a"])  # pyright: ignore


# --- folders


def fill(path, text):
    with files.new_folder(path) as folder:
        (folder / "text").write_text(text)


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path):
    target = tmp_path / "deep" / "skills"
    fill(target, "old")
    (target / "extra").write_text("x")
    fill(target, "new")
    assert [p.name for p in target.iterdir()] == ["text"]
    assert (target / "text").read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["skills"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_save_leaves_the_old_folder(tmp_path, error):
    target = tmp_path / "skills"
    fill(target, "old")

    def save():
        with files.new_folder(target) as folder:
            (folder / "text").write_text("half")
            raise error

    with pytest.raises(error):
        save()
    assert (target / "text").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["skills"]


def test_a_kill_between_the_two_renames_is_put_right_by_reading(tmp_path, monkeypatch):
    target = tmp_path / "skills"
    fill(target, "old")
    target.rename(tmp_path / ".skills.old")  # what a kill there leaves
    assert (files.existing_folder(target) / "text").read_text() == "old"
    target.rename(tmp_path / ".skills.old")
    fill(target, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["skills"]


def test_a_leftover_of_a_killed_process_does_not_block(tmp_path):
    leftover = tmp_path / f".skills.{os.getpid()}.new"
    leftover.mkdir()
    (leftover / "half").write_text("x")
    fill(tmp_path / "skills", "new")
    assert [p.name for p in (tmp_path / "skills").iterdir()] == ["text"]
    assert not leftover.exists()


def test_a_file_in_the_way_is_an_error_and_stays(tmp_path):
    (tmp_path / "skills").write_text("precious")
    with pytest.raises(OutputError, match=r"skills is a file; a folder is to be written there. Give another path"):
        fill(tmp_path / "skills", "new")
    assert (tmp_path / "skills").read_text() == "precious"


def test_an_unwritable_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write .*skills: .* Choose a folder that can be written"):
        fill(tmp_path / "file" / "skills", "new")
    fill(tmp_path / "folder" / "skills", "new")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileFormatError, match="none: no such folder; expected one that holdfast has saved"):
        files.existing_folder(tmp_path / "none")


# --- JSON and text


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


def test_text_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write .*folder: .* Choose a place that can be written"):
        files.write_text(tmp_path / "folder", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_descriptions_bear_a_version(tmp_path):
    path = tmp_path / "x_config.json"
    files.write_description(path, {"kind": "mas"})
    assert files.read_description(path) == {"format_version": 1, "kind": "mas"}
    for version in (2, None, "1"):
        files.write_json(path, {"format_version": version})
        with pytest.raises(
            FileFormatError, match=rf"format_version is {version!r}; this holdfast reads version 1. Read"
        ):
            files.read_description(path)


# --- checkpoints


def test_a_checkpoint_comes_back(tmp_path):
    layer = nn.Linear(2, 2)
    path = tmp_path / "checkpoint" / "state.safetensors"
    files.write_state(path, {"tied": layer.weight, "again": layer.weight}, {"step": 3, "loss": 0.1})
    tensors, notes = files.read_state(path)
    assert torch.equal(tensors["tied"], layer.weight)
    assert torch.equal(tensors["again"], layer.weight)
    assert notes == {"step": 3, "loss": 0.1}
    assert [p.name for p in path.parent.iterdir()] == ["state.safetensors"]


def test_a_damaged_checkpoint_is_an_error(tmp_path):
    path = tmp_path / "state.safetensors"
    files.write_state(path, {"a": torch.ones(4)}, {})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileFormatError, match=r"is no readable checkpoint \(.*\). Delete it to start again"):
        files.read_state(path)
    with pytest.raises(FileFormatError, match="is no readable checkpoint"):
        files.read_state(tmp_path / "none.safetensors")


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write .* Choose a folder that can be written"):
        files.write_state(tmp_path / "file" / "state", {}, {})


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    files.write_state(path, {"a": torch.ones(1)}, {"step": 1})
    fill(tmp_path / "skills", "old")

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise files.SafetensorError("I/O error: No space left on device")

    def save_folder():
        with files.new_folder(tmp_path / "skills") as folder:
            write(folder)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OutputError, match="cannot write .*state.safetensors: I/O error: No space left on device"):
        files.write_state(path, {"a": torch.zeros(1)}, {"step": 2})
    with pytest.raises(OutputError, match="cannot write .*skills: I/O error: No space left on device"):
        save_folder()
    assert files.read_state(path)[1] == {"step": 1}
    assert (tmp_path / "skills" / "text").read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"state.safetensors", "skills"}
