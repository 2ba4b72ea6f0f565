"""Anchors on disk: found, compared, read in slices, and missed when they are gone."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from holdfast.errors import FileFormatError, ParameterMismatchError
from holdfast.memory.reference import (
    CheckpointFile,
    anchors_on_disk,
    checkpoint_files,
    references_from,
    references_to_json,
)
from holdfast.memory.stored import pieces, read

CPU = torch.device("cpu")


def weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"layer.weight": (7, 50), "layer.bias": (7,), "head.weight": (3, 7)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def saved(path: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    save_file(tensors or weights(), path, metadata={"format": "pt"})
    return path


def on_disk(path: Path, tensors: dict[str, Tensor] | None = None, **names: list[str]):
    tensors = tensors or weights()
    aliases = {name: [name, *names.get(name.replace(".", "_"), [])] for name in tensors}
    return anchors_on_disk(path, tensors, names=aliases, where="EWC.retain")


def value_of(anchor, dtype: torch.dtype = torch.float32) -> Tensor:
    return read(anchor, dtype=dtype, device=CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_slices_are_the_tensor(dtype, tmp_path):
    anchors = on_disk(saved(tmp_path / "model.safetensors", weights(dtype)), weights(dtype))
    for name, weight in weights(dtype).items():
        anchor = anchors[name]
        assert anchor.nbytes == 0
        assert anchor.shape == weight.shape
        assert torch.equal(value_of(anchor, dtype), weight)
        parts = [value_of(piece, torch.float32) for piece in pieces(anchor, 16)]
        assert all(len(part) == 16 for part in parts[:-1])
        assert torch.equal(torch.cat(parts), weight.flatten().float())


def test_a_model_in_half_precision_of_a_checkpoint_in_full(tmp_path):
    anchors = on_disk(saved(tmp_path / "model.safetensors"), weights(torch.bfloat16))
    assert torch.equal(value_of(anchors["layer.weight"], torch.bfloat16), weights(torch.bfloat16)["layer.weight"])


@pytest.mark.parametrize("way", ["file", "folder", "index", "folder with index"])
def test_where_a_checkpoint_can_be(way, tmp_path):
    tensors = weights()
    if "index" in way:
        shards = {"one.safetensors": ["layer.weight"], "two.safetensors": ["layer.bias", "head.weight"]}
        for file, names in shards.items():
            saved(tmp_path / file, {name: tensors[name] for name in names})
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        path = index if way == "index" else tmp_path
    else:
        file = saved(tmp_path / "model.safetensors")
        path = file if way == "file" else tmp_path
    anchors = on_disk(path)
    assert all(torch.equal(value_of(anchors[name]), value) for name, value in tensors.items())


@pytest.mark.parametrize(
    "there",
    [
        lambda name: f"bert.{name}",  # a whole model's, and ours is its base
        lambda name: f"a.b.{name}",
        lambda name: name,
    ],
)
def test_a_prefix_more(there, tmp_path):
    path = saved(tmp_path / "model.safetensors", {there(name): value for name, value in weights().items()})
    anchors = on_disk(path)
    assert all(torch.equal(value_of(anchors[name]), value) for name, value in weights().items())


def test_a_prefix_less(tmp_path):
    path = saved(tmp_path / "model.safetensors")
    anchors = on_disk(path, {f"encoder.{name}": value for name, value in weights().items()})
    assert all(torch.equal(value_of(anchors[f"encoder.{name}"]), value) for name, value in weights().items())


def test_tied_weights_stand_under_either_name(tmp_path):
    tensors = weights()
    tensors["table.weight"] = tensors.pop("head.weight")
    path = saved(tmp_path / "model.safetensors", tensors)
    anchors = on_disk(path, head_weight=["table.weight"])
    assert torch.equal(value_of(anchors["head.weight"]), weights()["head.weight"])


def test_all_weights_that_are_others_are_listed(tmp_path):
    tensors = weights()
    del tensors["layer.bias"]
    tensors["layer.weight"][0, :3] += 1
    tensors["head.weight"] = tensors["head.weight"].T.contiguous()
    tensors["head.other"] = torch.ones(2, dtype=torch.int8)
    path = saved(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ParameterMismatchError) as error:
        on_disk(path)
    assert str(error.value) == (
        f"EWC.retain: {path} does not hold today's weights: 'layer.weight' differs in 3 of 350 entries; 'layer.bias' "
        "is not in it; 'head.weight' is (7, 3) there, (3, 7) in the model. Save them with safetensors, and name that "
        "file: keeper.anchors = PATH; or keep the anchors in memory: keeper.anchors = None."
    )


def test_integers_are_no_anchors(tmp_path):
    path = saved(tmp_path / "model.safetensors", {"w": torch.ones(2, dtype=torch.int8)})
    with pytest.raises(ParameterMismatchError, match="'w' is not in it"):
        on_disk(path, {"w": torch.ones(2)})


def test_no_checkpoint_or_two(tmp_path):
    with pytest.raises(FileFormatError, match=r"cannot be read: No such file or directory\. Name a safetensors file"):
        checkpoint_files(tmp_path / "gone.safetensors")
    with pytest.raises(FileFormatError, match=r"expected one safetensors checkpoint, found none\. Name the file"):
        checkpoint_files(tmp_path)
    saved(tmp_path / "a.safetensors")
    saved(tmp_path / "b.safetensors")
    with pytest.raises(FileFormatError, match=r"found a\.safetensors, b\.safetensors"):
        checkpoint_files(tmp_path)
    assert len(checkpoint_files(tmp_path / "a.safetensors")) == 1


@pytest.mark.parametrize("content", ['{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{}"])
def test_a_damaged_index(content, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(FileFormatError, match="'weight_map' is missing or damaged"):
        checkpoint_files(index)


@pytest.mark.parametrize("keep", [0, 4, 9, 100, -1])
def test_a_truncated_file(keep, tmp_path):
    path = saved(tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        FileFormatError, match=rf"^{re.escape(str(path))} is (no valid safetensors file|truncated: it has)"
    ):
        CheckpointFile(path)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"[1]", "'list' object has no attribute"),
        (b'{"w": 3}', "'w' is 3, expected an object"),
        (b'{"w": {"dtype": "F32"}}', "'w': it lacks shape, data_offsets"),
        (b'{"w": {"dtype": ["F32"], "shape": [], "data_offsets": [0, 4]}}', "dtype is .'F32'., expected a text"),
        (b'{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "shape.0. is -1, expected a whole number"),
        (
            b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
            r"data_offsets are .0, 4., expected 8 bytes",
        ),
        (b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}', r"data_offsets are .4., expected 4 bytes"),
        (b"{nonsense", "Expecting property name"),
        (b'{"w": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "recursion"),
    ],
)
def test_no_header_of_safetensors(header, told, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FileFormatError, match=f"is no valid safetensors file: .*{told}"):
        CheckpointFile(path)


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path):
    path = saved(tmp_path / "model.safetensors")
    anchor = on_disk(path)["layer.bias"]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileFormatError, match="is no regular file .* Name a safetensors file"):
        CheckpointFile(path)
    with pytest.raises(FileFormatError, match="cannot be read: no regular file. The anchors are in it; put it back"):
        value_of(anchor)


def test_a_file_that_changes_while_it_is_in_use(tmp_path):
    path = saved(tmp_path / "model.safetensors")
    anchor = on_disk(path)["layer.bias"]
    content = path.read_bytes()
    changed = rf"^{re.escape(str(path))} has changed since the task was retained"
    path.write_bytes(content[:-40])
    with pytest.raises(FileFormatError, match=changed):
        value_of(anchor)
    path.unlink()
    with pytest.raises(FileFormatError, match=r"cannot be read: No such file.*put it back"):
        value_of(anchor)
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))
    with pytest.raises(FileFormatError, match=changed):
        value_of(anchor)
    with pytest.raises(FileFormatError, match=changed):
        references_to_json({"b": anchor})


def test_to_json_and_back(tmp_path):
    path = saved(tmp_path / "model.safetensors")
    content = json.loads(json.dumps(references_to_json(on_disk(path))))
    again = references_from(content, None, where="here")
    assert all(torch.equal(value_of(again[name]), value) for name, value in weights().items())
    assert references_from(None, None, where="here") == {}
    (tmp_path / "elsewhere").mkdir()
    path.rename(tmp_path / "elsewhere" / path.name)
    with pytest.raises(FileFormatError, match="cannot be read"):
        references_from(content, None, where="here")
    moved = references_from(content, tmp_path / "elsewhere", where="here")
    assert torch.equal(value_of(moved["layer.bias"]), weights()["layer.bias"])
    saved(path, {name: value + 1 for name, value in weights().items()})
    with pytest.raises(
        FileFormatError, match=r"here: the anchors are in .*, and that is not the file it was.*anchors=PATH"
    ):
        references_from(content, path, where="here")


@pytest.mark.parametrize("damage", [[], {"files": {}}, {"files": {}, "tensors": {"w": ["x", "w"]}}, {"files": 3}])
def test_a_damaged_description(damage):
    with pytest.raises(FileFormatError, match=r"^here: 'references' is damaged .* Save the keeper again\."):
        references_from(damage, None, where="here")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("bounds", [(0, 0), (0, 3), (2, 5), (5, 6)], ids=str)
def test_a_part_along_an_axis_is_that_part_of_the_tensor(axis, bounds, tmp_path):
    whole = torch.arange(6.0 * 6 * 7).reshape(6, 6, 7)
    (file,) = checkpoint_files(saved(tmp_path / "model.safetensors", {"w": whole}))
    found = file.reference("w")
    assert found is not None
    cuts = [slice(*bounds) if each == axis else slice(0, length) for each, length in enumerate(whole.shape)]
    part = found.part(cuts)
    assert part.nbytes == 0
    assert torch.equal(value_of(part), whole[tuple(cuts)])
    assert torch.equal(value_of(part, torch.bfloat16), whole[tuple(cuts)].bfloat16())
    pieces_of = [value_of(piece) for piece in pieces(part, 16)]
    again = [value_of(each) for piece in pieces(part, 32) for each in pieces(piece, 16)]
    for found in (pieces_of, again):
        assert torch.equal(torch.cat([torch.empty(0), *found]), whole[tuple(cuts)].flatten())
