"""New classes on the features of a ready network: what is measured, small, and what is wrong with the pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipes import cifar_ready, recipe_named
from recipes.carry_out import answer, measure_recipe
from recipes.lines import QUICK

from holdfast.errors import DataFileError


def test_it_is_measured_concluded_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cifar_ready, "RIVALS", {"plain": ("none", {"lr": (1e-3, 1e-2)})})
    monkeypatch.setattr(cifar_ready, "HEADS", {"SLDA": {"kind": "slda"}, "ridge": {"kind": "ridge", "projection": 50}})
    recipe = recipe_named("cifar-ready", QUICK)
    measured = measure_recipe(recipe, results=tmp_path)
    assert sorted(measured) == [0, 1, 2]
    for entry in measured.values():
        for own in entry["heads"].values():
            assert own["5 x 2"] == own["10 x 1"] == own["all at once"] > 0.75
            assert own["difference"] < 1e-6
        assert entry["joint"]["test"] > 0.9
        assert entry["rivals"]["plain"]["10 x 1"]["test"] < 0.3
    answered = answer(recipe, {}, measured, results=tmp_path, command="it")
    told = answered.page.read_text()
    assert "| SLDA |" in told
    assert "The best that is trained without old data ends at 5 x 2 " in told
    assert answered.pictures


def test_without_the_pictures(tmp_path: Path):
    with pytest.raises(DataFileError, match=r"cifar10: found neither train and test .* nor images.tar. Put one there"):
        cifar_ready.features(str(tmp_path))
