"""README's lines as a recipe: run end to end, and told by its figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from recipes import FULL
from recipes.carry_out import answer, measure_recipe
from recipes.promise import worst
from recipes.untuned import untuned
from tests.recipes.made_up import TINY

SMALL = replace(TINY, settings={"num_tasks": 2, "epochs": 2, "hidden": (24,)}, seeds=(0,))


def test_it_is_run_and_told_end_to_end(tmp_path: Path):
    recipe = untuned(SMALL)
    measured = measure_recipe(recipe, results=tmp_path)
    assert list(recipe.parts) == ["digits, sgd", "digits, adam"]
    assert all(rise < 1.5 * 0.02 for part in recipe.parts for rise in worst(measured[0][part]))
    answered = answer(recipe, {}, measured, results=tmp_path, command="it")
    told = answered.page.read_text()
    assert "| 2 of digits | SGD |" in told
    assert "not reached" in told
    assert "In 2 of 2 lessons (100%)" in told
    assert [picture.name for picture in answered.pictures] == ["tasks.png"]


def test_in_full_it_is_protocol_a_too():
    assert list(untuned(FULL).parts)[2:] == ["MNIST, sgd", "MNIST, adam"]
