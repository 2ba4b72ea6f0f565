from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from recipes import FULL, RECIPES, Recipe, recipe_named
from recipes.findings import RecipeFindings
from recipes.page import NOT_YET, SMALL_NOTE, cells, conclusion, page, table
from tests.recipes.made_up import UNTRAINED, filled

WITH_RUNS = [name for name in RECIPES if recipe_named(name, UNTRAINED).lines]


def found_of(recipe: Recipe) -> RecipeFindings:
    """Stronger is better up to a point, and the textbook pull diverges."""

    def kept(config) -> float:
        if config.pull == "gradient":
            return -1.0
        strength = config.strength or 0.0
        return 0.5 + 0.4 * min(strength, 30.0) / 30.0 - 0.01 * config.seed

    return RecipeFindings(recipe, filled(recipe, kept), {})


def text_of(findings: RecipeFindings) -> str:
    return page(findings, [Path("a.png")], command="python -m recipes it", date="2026-01-02", versions={"torch": "2.6"})


@pytest.mark.parametrize("name", WITH_RUNS)
def test_every_recipe_concludes_and_draws(name: str, tmp_path: Path):
    findings = found_of(recipe_named(name, UNTRAINED))
    assert findings.complete
    told = conclusion(findings)
    assert told.endswith(".")
    assert "nan" not in told
    assert "inf" not in told.replace("information", "")
    pictures = findings.recipe.draw(findings, tmp_path)
    assert pictures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


@pytest.mark.parametrize("name", WITH_RUNS)
def test_half_done_it_can_be_drawn_and_says_so(name: str, tmp_path: Path):
    whole = found_of(recipe_named(name, UNTRAINED))
    half = RecipeFindings(whole.recipe, dict(list(whole.found.items())[: len(whole.found) // 2]), {})
    assert conclusion(half) == NOT_YET
    assert half.recipe.draw(half, tmp_path)
    assert f"0 of {len(UNTRAINED.seeds or ())}" in table(half)


def test_a_page_holds_all_that_is_needed_to_judge_it():
    told = text_of(found_of(recipe_named("which-fisher", FULL)))
    for text in (
        "# Which Fisher: split MNIST, task-incremental, online EWC\n",
        "Does it matter how the Fisher information is computed?",
        "Source: van de Ven, ICLR blog 2025, arXiv 2502.11756. Their answer:",
        "| EWC, Fisher exact | ",
        "99.1 ± 0.2",
        "**Conclusion.** Exact reaches",
        "![Which Fisher: split MNIST, task-incremental, online EWC](a.png)",
        "*Reproduced*: the intervals meet.",
        "Chosen on validation data: the strengths of EWC, Fisher exact",
        "Made by `python -m recipes it` on 2026-01-02, with torch 2.6.",
    ):
        assert text in told


def test_rows_tell_verdict_or_divergence_and_only_settings_that_were_chosen():
    titles, *rows = cells(found_of(recipe_named("nets", UNTRAINED)))
    by_label = {row[0]: dict(zip(titles, row)) for row in rows}
    assert by_label["convolution, textbook, 100"]["verdict"] == "2 of 2 diverged"
    assert by_label["convolution, textbook, 100"]["settings"] == "strength 100, pull gradient, net convolution"
    assert by_label["convolution, plain"]["settings"] == "net convolution"


@pytest.mark.parametrize("name", WITH_RUNS)
def test_small_no_figures_of_other_data_stand_beside(name: str):
    titles, *rows = cells(found_of(recipe_named(name, UNTRAINED)))
    assert not [title for title in titles if "printed" in title or "program" in title]
    if "verdict" in titles:
        assert {row[titles.index("verdict")] for row in rows} == {"", "2 of 2 diverged"}
    assert "Verdicts compare" not in text_of(found_of(recipe_named(name, UNTRAINED)))


def test_what_no_one_has_published_is_named_so_and_gets_no_verdict():
    told = text_of(found_of(recipe_named("curve", FULL)))
    assert "| accuracy % | reference program %, 1 seed | validation % | learning % | seeds |\n" in told
    assert "Nobody has published its figures" in told
    assert "verdict |" not in told
    assert "*Reproduced*" not in told


def test_a_choice_under_the_reported_seeds_is_told():
    told = text_of(found_of(recipe_named("importances", FULL)))
    assert "Chosen under the reported seeds themselves: EWC Fisher; WVA Fisher; WVA signal." in told
    assert "the reported seeds themselves" not in text_of(found_of(recipe_named("scenarios", FULL)))


def test_in_full_there_are_verdicts_and_small_it_says_that_it_is_small():
    full = found_of(recipe_named("which-fisher", FULL))
    titles, *rows = cells(full)
    assert {row[titles.index("verdict")] for row in rows} <= {"better", "reproduced", "not reached"}
    assert SMALL_NOTE not in text_of(full)
    small = found_of(recipe_named("which-fisher", UNTRAINED))
    assert SMALL_NOTE in text_of(small)
    assert "(small, on digits)" in text_of(small)


def test_a_choice_at_the_end_of_the_grid_is_marked():
    recipe = recipe_named("which-fisher", UNTRAINED)
    told = table(RecipeFindings(recipe, filled(recipe, lambda config: min(0.9, (config.strength or 0.0) / 1e13)), {}))
    assert told.count("(end of the grid)") == 5


def test_without_a_known_claim_none_is_told():
    recipe = replace(recipe_named("which-fisher", UNTRAINED), claim="")
    assert "Their answer" not in text_of(found_of(recipe))
