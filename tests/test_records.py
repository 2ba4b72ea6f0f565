from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.files.folders import edit
from torch import nn

from holdfast import Importance, ImportanceInfo
from holdfast.errors import FileFormatError, NotFiniteError, OptionError, OutputError, ParameterMismatchError

INFO = ImportanceInfo("fisher-exact", 10, loss="categorical", unit="nats/weight^2", nats_per_unit=1.0)


def importance(info=INFO, **values):
    return Importance({name: torch.tensor(value) for name, value in values.items()}, info)


def test_it_is_a_mapping_of_float32():
    values = {"w": torch.ones(2, dtype=torch.float64, requires_grad=True), "b": torch.ones(1, dtype=torch.bfloat16)}
    found = Importance(values, INFO)
    assert list(found) == ["w", "b"]
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in found.values())
    assert repr(found) == "Importance(fisher-exact, 2 parameters, 3 weights, 10 examples)"


def test_sums_and_products_by_hand():
    a, b = importance(w=[1.0, 2.0], x=[1.0]), importance(w=[3.0, 0.0], y=[5.0])
    total = a + b
    assert {name: value.tolist() for name, value in total.items()} == {"w": [4, 2], "x": [1], "y": [5]}
    assert total.info == replace(INFO, num_examples=20, num_targets=20)
    assert total["x"].data_ptr() != a["x"].data_ptr()
    half = 0.5 * a
    assert half["w"].tolist() == [0.5, 1.0]
    assert half.info.nats_per_unit == 2.0
    assert half.info.unit == "nats/weight^2 / 0.5"
    assert (a * 1).info.unit == "nats/weight^2"
    assert (a * 0).info.nats_per_unit is None


def test_a_sum_of_different_kinds_says_so():
    other = importance(ImportanceInfo("mas", 5, unit="1/weight"), w=[1.0])
    info = (importance(w=[1.0]) + other).info
    assert (info.kind, info.unit, info.nats_per_unit, info.num_examples) == ("fisher-exact+mas", "mixed", None, 15)


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
def test_impossible_factors(factor):
    with pytest.raises(OptionError, match=f"Importance: cannot scale by {factor}; expected a finite number >= 0"):
        importance(w=[1.0]) * factor


def test_sums_of_different_shapes():
    with pytest.raises(ParameterMismatchError, match=r"Importance: cannot add different shapes: 'w' \(2,\) and \(1,\)"):
        importance(w=[1.0, 2.0]) + importance(w=[1.0])


def test_correlation_of_what_both_hold():
    a, b = importance(w=[1.0, 2.0, 3.0], x=[1.0]), importance(w=[9.0, 4.0, 1.0])
    assert a.correlation(b) == {"w": pytest.approx(-1.0)}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_entries_that_are_no_importance_are_all_named(bad):
    with pytest.raises(NotFiniteError) as caught:
        importance(a=[1.0, bad, bad], b=[1.0], c=[bad])
    assert "Importance(fisher-exact): 2 parameters with entries that are not finite numbers >= 0" in str(caught.value)
    assert f"'a' (2 of 3 entries, such as {bad}), 'c' (1 of 1 entries, such as {bad})" in str(caught.value)


def test_an_overflow_to_float32_is_an_error():
    with pytest.raises(NotFiniteError, match="such as inf"):
        Importance({"w": torch.tensor([1e300], dtype=torch.float64)}, INFO)


# --- files


def test_save_and_load(tmp_path):
    info = replace(INFO, details={"chunk": 3, "kind": "exact", "calibrated": True}, model="Net")
    saved = importance(info, w=[[1.0, 2.0]], b=[0.0])
    saved.save(tmp_path / "skills")
    assert {p.name for p in (tmp_path / "skills").iterdir()} == {
        "importance.safetensors",
        "importance_config.json",
        "README.md",
        "holdfast.json",
    }
    assert "measured with holdfast" in (tmp_path / "skills" / "README.md").read_text()
    loaded = Importance.load(tmp_path / "skills")
    assert loaded.info == info
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_views_of_one_vector_are_saved(tmp_path):
    flat = torch.arange(4.0)
    Importance({"a": flat[:2], "b": flat[2:], "c": flat}, INFO).save(tmp_path / "x")
    assert Importance.load(tmp_path / "x")["b"].tolist() == [2, 3]


def test_loading_checks_the_model(tmp_path):
    model = nn.Linear(2, 1)
    path = tmp_path / "skills"
    importance(weight=[[1.0, 2.0]], bias=[1.0]).save(path)
    Importance.load(path, model=model)
    with pytest.raises(
        ParameterMismatchError, match=r"1 shape not as in the model: 'weight' is \(1, 2\), in Linear \(2, 2\)"
    ):
        Importance.load(path, model=_square())
    model.bias.requires_grad_(False)
    with pytest.raises(ParameterMismatchError, match="1 name not among the trainable parameters of Linear: 'bias'"):
        Importance.load(path, model=model)
    model.bias.requires_grad_(True)  # the remedy: unfreeze
    Importance.load(path, model=model)


def _square():
    model = nn.Linear(2, 2)
    model.bias = nn.Parameter(torch.zeros(1))
    return model


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 7}, "format_version is 7; this holdfast reads version 3"),
        ({"kind": None}, "says not how the importance was made: kind is None, expected a text"),
        ({"format_version": 2}, "format_version is 2: it is of means over examples, .* Measure again, with hf.fisher"),
        ({"num_targets": -3}, "num_targets is -3, expected a whole number from 0 to"),
        ({"num_examples": "ten"}, "num_examples is 'ten', expected a whole number from 0 to"),
        ({"nats_per_unit": "one"}, "nats_per_unit is 'one', expected a number from 0 to"),
        ({"nats_per_unit": -1}, "nats_per_unit is -1, expected a number from 0 to"),
        ({"loss": 1, "unit": []}, "loss is 1, expected a text; unit is .., expected a text"),
        ({"details": [1]}, "details is .1., expected an object of texts, numbers, true, false or null"),
        ({"details": {"seed": [1]}}, "details is .'seed': .1.., expected an object of texts"),
    ],
)
def test_edited_descriptions_are_refused(tmp_path, changes, text):
    importance(w=[1.0]).save(tmp_path / "x")
    edit(tmp_path / "x" / "importance_config.json", **changes)
    with pytest.raises(FileFormatError, match=text):
        Importance.load(tmp_path / "x")


def test_fields_of_later_versions_are_passed_over(tmp_path):
    importance(w=[1.0]).save(tmp_path / "x")
    edit(tmp_path / "x" / "importance_config.json", revision="abc")
    assert Importance.load(tmp_path / "x").info == INFO


def test_a_folder_without_description(tmp_path):
    with pytest.raises(FileFormatError, match="no such folder"):
        Importance.load(tmp_path / "x")
    (tmp_path / "x").mkdir()
    with pytest.raises(FileFormatError, match="x holds no holdfast.json: holdfast has saved nothing there"):
        Importance.load(tmp_path / "x")


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        importance(w=[1.0]).save(tmp_path / "file" / "x")


def test_an_interrupted_save_keeps_the_old_one(tmp_path, monkeypatch):
    importance(w=[1.0]).save(tmp_path / "x")

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("holdfast.records.write_description", full)
    with pytest.raises(OutputError, match="No space left on device"):
        importance(w=[2.0]).save(tmp_path / "x")
    assert Importance.load(tmp_path / "x")["w"].tolist() == [1.0]
