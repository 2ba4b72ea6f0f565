from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from recipes import FULL, recipe_named
from recipes.backward import ALONE, AVERAGING, INFORMED, largest
from recipes.carry_out import answer, measure_recipe
from recipes.findings import RecipeFindings
from recipes.page import conclusion
from recipes.rewind import (
    BUDGETS,
    ENCODER,
    HELD,
    MLPS,
    OF_ENCODER,
    gain,
    kept_of,
    rewind,
    rewind_encoder,
)
from tests.recipes.made_up import TINY

SMALL = replace(TINY, settings={"epochs": 8, "hidden": (32,)}, seeds=(0,))


def run(*, more: float, budgets: tuple[float, ...] = BUDGETS) -> dict:
    """Averaging learns sqrt(rise) / 2 of the new task, the way along both curvatures so much more."""

    def figures(rise: float, above: float = 0.0) -> dict:
        return {"rise": rise, "old": 1 - rise / 10, "new": rise**0.5 / 2 + above}

    points = [{"way": AVERAGING, "share": share, **figures(share**2)} for share in (0.05, 0.1, 0.3, 0.5)]
    for budget in budgets:
        for way, above in ((AVERAGING, 0.0), (ALONE, 0.0), (INFORMED, more)):
            points.append({"way": way, "budget": budget, **figures(budget, above)})
    return {"ready": figures(0.0), "trained": figures(1.0), "points": points}


def entry(more: float) -> dict:
    held = {"ready": {"rise": 0.0, "old": 1.0, "new": 0.0}, "closed": {"rise": 0.02, "old": 0.99, "new": 0.45}}
    return {"seed": 0, ENCODER: run(more=more, budgets=OF_ENCODER[0]), HELD: held}


def test_it_is_run_and_told_end_to_end(tmp_path: Path):
    recipe = rewind(SMALL)
    measured = measure_recipe(recipe, results=tmp_path)
    for name in MLPS:
        found = measured[0][name]
        assert found["trained"]["rise"] > 0.03
        assert found["ready"]["rise"] == 0
        of_share = {point["share"]: point for point in found["points"] if "share" in point}
        assert of_share[0.1]["rise"] < of_share[0.5]["rise"] < of_share[0.9]["rise"] < found["trained"]["rise"]
        for point in found["points"]:
            if "budget" in point:
                assert point["rise"] < 3 * point["budget"]
    answered = answer(recipe, {}, measured, results=tmp_path, command="it")
    text = answered.page.read_text()
    assert "| permuted digits | rewind, importance | 0.05 | " in text
    assert "**Conclusion.** Permuted digits: rewind gains" in text
    assert [picture.name for picture in answered.pictures] == ["permuted-digits.png", "split-digits.png"]
    assert json.loads(json.dumps(measured[0])) == measured[0]


@pytest.mark.parametrize(
    ("more", "told"), [(0.1, "never worse than averaging by more than the noise"), (-0.2, "worse at 0.02, 0.1")]
)
def test_the_conclusion_is_arithmetic(more: float, told: str):
    recipe = rewind_encoder(replace(FULL, seeds=(0,)))
    said = conclusion(RecipeFindings(recipe, {}, {0: entry(more)}))
    assert said.count("never worse") == (2 if more > 0 else 1)
    assert told in said
    assert f"rewind, importance gains from {100 * more:+.2f} points" in said
    assert "keeps 90.0% of the correlation" in said
    assert "asked for: 80%, it does" in said


def test_a_gain_is_over_averaging_at_the_same_rise():
    found = run(more=0.1)
    (point,) = [p for p in found["points"] if p["way"] == INFORMED and p["budget"] == 0.1]
    assert gain(found, point) == pytest.approx(0.1)
    assert gain(found, {**point, "rise": 1e-6}) is None


def test_what_is_kept_of_what_plain_training_loses():
    figures = {"ready": {"old": 0.8}, "trained": {"old": 0.6}}
    assert kept_of({"ready": {"old": 0.8}, "closed": {"old": 0.75}}, figures) == pytest.approx(0.75)


@pytest.mark.parametrize("share", [0.0004, 0.3, 0.99])
def test_the_largest_share_that_is_kept(share: float):
    found = largest(lambda asked: asked <= share)
    assert found <= share < found + 1e-3


def test_half_done_it_is_drawn(tmp_path: Path):
    recipe = recipe_named("rewind-encoder")
    half = RecipeFindings(recipe, {}, {0: {"seed": 0, ENCODER: run(more=0.1, budgets=OF_ENCODER[0])}})
    assert recipe.table is not None
    assert recipe.table(half).count("\n") == 9
    assert len(recipe.draw(half, tmp_path)) == 1
