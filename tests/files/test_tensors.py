from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from safetensors.torch import save_file
from tests.files.folders import fill
from torch import nn

from holdfast import files
from holdfast.errors import FileFormatError, OutputError
from holdfast.files import tensors as module

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(2.0)}


def save(path, tensors=TENSORS, **options):
    with files.new_folder(path) as folder:
        files.write_tensors(folder, "importance", tensors, **options)


def read(path, stem="importance"):
    return files.read_folder(path, lambda saved: saved.tensors(stem))


def assert_same(found):
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_tensors_come_back(tmp_path):
    save(tmp_path / "x")
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"importance.safetensors", "holdfast.json"}
    assert_same(read(tmp_path / "x"))


def test_a_small_limit_gives_shards_with_an_index(tmp_path):
    save(tmp_path / "x", limit=24)
    names = [f"importance-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = json.loads((tmp_path / "x" / "importance.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 34},
        "weight_map": {"a": names[0], "b": names[1], "c": names[1]},
    }
    assert_same(read(tmp_path / "x"))
    save(tmp_path / "x")
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"importance.safetensors", "holdfast.json"}


TAKEN: list[str] = []


class Waiting:
    """A tensor that is made when it is taken."""

    def __init__(self, name, tensor):
        self.shape, self.dtype, self.is_taken = tensor.shape, tensor.dtype, False
        self._name, self._tensor = name, tensor

    def take(self):
        assert not self.is_taken
        self.is_taken = True
        TAKEN.append(self._name)
        return self._tensor


@pytest.mark.parametrize("limit", [10**9, 30], ids=["one file", "shards"])
def test_what_is_taken_in_turn_makes_the_same_files(limit, tmp_path):
    dtypes = (torch.uint8, torch.int16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)
    tensors = {f"{name} \u00e9 {dtype}": torch.arange(5).to(dtype) for dtype in dtypes for name in "ba"}
    tensors["none"], tensors["one"] = torch.zeros(0, 3), torch.tensor(2.0)
    waiting = {name: Waiting(name, value) if name > "b" else value for name, value in tensors.items()}
    TAKEN.clear()
    save(tmp_path / "ready", tensors, limit=limit)
    save(tmp_path / "in turn", waiting, limit=limit)
    assert set(TAKEN) == {name for name in tensors if name > "b"}
    for file in (tmp_path / "ready").glob("importance*"):
        assert (tmp_path / "in turn" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "in turn" / file.name).stat().st_mode == file.stat().st_mode


def test_the_rest_is_taken_in_the_order_of_writing(tmp_path):
    tensors = {name: Waiting(name, value) for name, value in TENSORS.items()}
    TAKEN.clear()
    save(tmp_path / "written", tensors)
    in_order = list(TAKEN)
    fresh = {name: Waiting(name, value) for name, value in TENSORS.items()}
    fresh[in_order[0]].take()  # where writing failed after the first
    TAKEN.clear()
    files.take_the_rest([fresh, TENSORS])
    assert TAKEN == in_order[1:]


def test_a_missing_shard_is_named(tmp_path):
    save(tmp_path / "x", limit=24)
    (tmp_path / "x" / "importance-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        FileFormatError, match=r"importance-00002-of-00002.safetensors is missing.* Copy the folder whole"
    ):
        read(tmp_path / "x")


def test_views_and_tied_tensors_are_saved_whole(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    tied = {"a": whole, "b": whole, "t": whole.T, "wide": torch.ones(1).expand(4), "first": whole[0]}
    save(tmp_path / "x", tied)
    found = read(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in tied.items())


def test_no_tensors_at_all_come_back_as_none(tmp_path):
    save(tmp_path / "x", {})
    assert read(tmp_path / "x") == {}
    with pytest.raises(FileFormatError, match="no anchors.safetensors is listed for it. Save it again"):
        read(tmp_path / "x", "anchors")


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_truncated_or_edited_tensors_are_refused(tmp_path, damage):
    save(tmp_path / "x")
    path = tmp_path / "x" / "importance.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileFormatError, match=r"importance.safetensors is damaged, truncated or edited: its sha256 is"):
        read(tmp_path / "x")


def test_what_is_no_safetensors_file_is_refused_though_its_digest_fits(tmp_path):
    fill(tmp_path / "x", "nonsense", names=("importance.safetensors",))
    with pytest.raises(FileFormatError, match="is no valid safetensors file"):
        read(tmp_path / "x")


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    save(tmp_path / "x")
    whole, left = module.load_file, [True]

    def load_file(path):
        if left.pop() if left else False:
            save(tmp_path / "x", {"a": torch.zeros(1)})
        return whole(path)

    monkeypatch.setattr(module, "load_file", load_file)
    assert read(tmp_path / "x") == {"a": torch.zeros(1)}


def test_files_have_the_mode_of_their_user(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "x")
        files.write_state(tmp_path / "y" / "state.safetensors", TENSORS, {})
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*") if p.is_file()}
    assert modes == {0o640}


# --- checkpoints


def test_a_checkpoint_comes_back(tmp_path):
    layer = nn.Linear(2, 2)
    path = tmp_path / "checkpoint" / "state.safetensors"
    kinds = {"none": torch.empty(0, 3), "flags": torch.tensor([True, False]), "number": torch.tensor(7)}
    files.write_state(path, {"tied": layer.weight, "again": layer.weight, **kinds}, {"step": 3, "loss": 0.1})
    tensors, notes = files.read_state(path)
    assert torch.equal(tensors["tied"], layer.weight)
    assert torch.equal(tensors["again"], layer.weight)
    assert all(torch.equal(tensors[name], kind) for name, kind in kinds.items())
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
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(FileFormatError, match=r"is no readable checkpoint \(.* is no regular file"):
            files.read_state(tmp_path / name)


def test_an_edited_checkpoint_is_an_error(tmp_path):
    path = tmp_path / "state.safetensors"
    files.write_state(path, {"a": torch.ones(4)}, {"step": 3})
    content = path.read_bytes()
    for was, now in ((torch.ones(1), -torch.ones(1)), (b'\\"step\\": 3', b'\\"step\\": 4')):
        was, now = (x if isinstance(x, bytes) else x.numpy().tobytes() for x in (was, now))
        assert was in content
        path.write_bytes(content.replace(was, now))
        with pytest.raises(FileFormatError, match=r"\(its digest is another: damaged or edited\). Delete it"):
            files.read_state(path)
    save_file({"a": torch.ones(1)}, path, metadata={"notes": "{}"})
    with pytest.raises(FileFormatError, match=r"is no readable checkpoint \(no 'sha256'\)"):
        files.read_state(path)


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
        raise module.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OutputError, match="cannot write .*state.safetensors: I/O error: No space left on device"):
        files.write_state(path, {"a": torch.zeros(1)}, {"step": 2})
    with pytest.raises(OutputError, match="cannot write .*skills: I/O error: No space left on device"):
        save(tmp_path / "skills")
    assert files.read_state(path)[1] == {"step": 1}
    assert (tmp_path / "skills" / "text").read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"state.safetensors", "skills"}
