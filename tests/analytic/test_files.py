from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import holdfast as hf
from holdfast.errors import FileFormatError, HoldfastError, OutputError
from holdfast.files import new_folder, write_description, write_tensors
from holdfast.files.manifest import write_manifest

FORMS = [
    {"kind": "means"},
    {"kind": "slda", "shrinkage": 0.25},
    {"kind": "slda", "keep_class_sums": True},
    {"projection": 12, "seed": 5},
    {"projection": 12, "keep_class_sums": True, "ridge": 2.0},
]


def head(**options) -> hf.AnalyticHead:
    torch.manual_seed(0)
    return hf.AnalyticHead(**options).fit(torch.randn(30, 4), torch.arange(30) % 3 * 7)


def change(folder: Path, **entries) -> None:
    """Edit the description and sign it."""
    path = folder / "head_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    write_manifest(folder)


@pytest.mark.parametrize("options", FORMS)
def test_saved_and_loaded_it_is_the_same_to_the_bit_and_learns_on(tmp_path, options):
    one = head(**options)
    one.save(tmp_path / "head")
    other = hf.AnalyticHead.load(tmp_path / "head")
    features, labels = torch.randn(20, 4), torch.arange(20) % 4
    assert torch.equal(one(features), other(features))
    assert (other.options, other.classes, other.counts, other.width) == (one.options, one.classes, one.counts, 4)
    assert torch.equal(one.fit(features, labels)(features), other.fit(features, labels)(features))
    assert {path.name for path in (tmp_path / "head").iterdir()} == {
        "head.safetensors",
        "head_config.json",
        "README.md",
        "holdfast.json",
    }


@pytest.mark.parametrize("options", FORMS)
def test_an_empty_head_is_saved_too(tmp_path, options):
    hf.AnalyticHead(**options).save(tmp_path / "head")
    loaded = hf.AnalyticHead.load(tmp_path / "head")
    assert (loaded.classes, loaded.width) == ((), None)
    features, labels = torch.randn(20, 4), torch.arange(20) % 4
    fresh = hf.AnalyticHead(**options).fit(features, labels)
    assert torch.equal(loaded.fit(features, labels)(features), fresh(features))


def test_the_projection_is_a_seed_in_the_file_and_no_matrix(tmp_path):
    head(projection=12, seed=5).save(tmp_path / "head")
    config = json.loads((tmp_path / "head" / "head_config.json").read_text())
    assert (config["seed"], config["projection"], len(config["projection_sha256"])) == (5, 12, 64)
    assert (tmp_path / "head" / "head.safetensors").stat().st_size < 8 * (12 * 12 + 3 * 12 + 3) + 400


def test_what_others_put_into_the_folder_stays_and_a_folder_of_others_is_refused(tmp_path):
    folder = tmp_path / "head"
    head().save(folder)
    (folder / "notes.txt").write_text("mine")
    head(kind="means").save(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert hf.AnalyticHead.load(folder).options.kind == "means"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "head.safetensors").write_text("theirs")
    with pytest.raises(OutputError):
        head().save(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "head.safetensors").read_text() == "theirs"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"seed": 6}, "seed 6 gives the projection .*, and the sums are of .*. The description was edited"),
        ({"projection_sha256": None}, "the sums are of None. The description was edited"),
        ({"projection": 11}, r"s is float64 \[3, 12\], expected float64 \[3, 11\]; G is float64 \[12, 12\], expected"),
        ({"width": 5}, "seed 5 gives the projection"),
        ({"width": None}, "the classes are not in order, each once, with a width"),
        ({"width": -1}, "width is -1, expected a whole number from 1"),
        ({"classes": [0, 7]}, r"n is int64 \[3\], expected int64 \[2\]"),
        ({"classes": [0, 7, 7]}, "the classes are not in order, each once"),
        ({"classes": [7, 0, 14]}, "the classes are not in order"),
        ({"classes": ["a", 7, 14]}, r"classes\[0\] is 'a', expected a whole number"),
        ({"classes": []}, "n is not among the sums of such a head"),
        ({"kind": "means"}, "G is not among the sums of such a head"),
        ({"kind": "rigde"}, "unknown kind 'rigde'. Did you mean 'ridge'"),
        ({"kind": None}, "kind is None, expected a text"),
        ({"ridge": -1}, "ridge=-1, expected a number above 0"),
        ({"ridge": [1]}, r"ridge=\[1\], expected a number above 0"),
        ({"shrinkage": 7}, "shrinkage=7.0, expected a number from 0 to 1"),
        ({"keep_class_sums": True}, r"G_c is missing, expected float64 \[3, 12, 12\]; G is not among"),
        ({"format_version": 99}, "format_version is 99; this holdfast reads version"),
    ],
)
def test_an_edited_description_is_refused_in_a_line(tmp_path, entries, message):
    head(projection=12, seed=5).save(tmp_path / "head")
    change(tmp_path / "head", **entries)
    with pytest.raises(FileFormatError, match=message) as caught:
        hf.AnalyticHead.load(tmp_path / "head")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "head") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("G", torch.full((4, 4), torch.nan, dtype=torch.float64), "the sums hold a number that is not finite"),
        ("n", torch.tensor([10, 0, 10]), "or a class of no examples. Fit anew."),
        ("s", torch.ones(3, 4), r"s is float32 \[3, 4\], expected float64 \[3, 4\]"),
        ("more", torch.ones(3), "more is not among the sums of such a head"),
    ],
)
def test_other_sums_are_refused_in_a_line(tmp_path, name, value, message):
    tensors, notes = head().state()
    with new_folder(tmp_path / "head") as folder:
        write_tensors(folder, "head", {**tensors, name: value})
        write_description(folder / "head_config.json", notes)
    with pytest.raises(FileFormatError, match=message):
        hf.AnalyticHead.load(tmp_path / "head")


def test_another_thing_is_no_head(tmp_path):
    hf.uniform(torch.nn.Linear(2, 2)).save(tmp_path / "importance")
    with pytest.raises(HoldfastError, match="head_config.json is not among the files that holdfast saved there"):
        hf.AnalyticHead.load(tmp_path / "importance")
    with pytest.raises(FileFormatError, match="no such folder"):
        hf.AnalyticHead.load(tmp_path / "nothing")
