from __future__ import annotations

import pytest
from recipes import recipe_named
from recipes.findings import RecipeFindings, as_groups, best_answer, final, percent, points
from tests.recipes.made_up import TINY, filled

from holdfast.lab.tables import Estimate

RECIPE = recipe_named("strength", TINY)


def findings(**changes: object) -> RecipeFindings:
    return RecipeFindings(
        RECIPE, filled(RECIPE, lambda config: 0.9 if config.method == "ewc-fisher" else 0.8), {}, **changes
    )


def test_an_answer_holds_the_runs_of_its_line():
    answer = findings().answer("EWC Fisher, strength 100")
    assert answer.complete
    assert answer.config is not None
    assert answer.config.strength == 100.0
    assert answer.by_seed(final) == {0: 0.95, 1: 0.95}  # two tasks: one kept at 0.9, one just learned
    assert answer.of(final).text(scale=100) == "95.0 ± 0.0"
    assert answer.verdict is None


def test_answers_are_compared_seed_by_seed():
    it = findings()
    difference = it.paired(it.answer("EWC Fisher, strength 100"), it.answer("WVA signal, strength 500"))
    assert difference.mean == pytest.approx(0.05)
    assert difference.half_width == pytest.approx(0)


def test_the_best_is_best_on_validation_data_and_never_one_that_diverged():
    found = filled(RECIPE, lambda config: -1.0 if config.strength == 100.0 else (config.strength or 0) / 1e6)
    it = RecipeFindings(RECIPE, found, {})
    top = best_answer(it.labelled("EWC Fisher"))
    assert top.line.label == "EWC Fisher, strength 3e+03" or top.line.label == "EWC Fisher, strength 3000"
    assert it.answer("EWC Fisher, strength 100").num_diverged == 2


def test_what_is_not_done_is_not_complete():
    whole = findings()
    assert whole.complete
    some = dict(list(whole.found.items())[:-1])
    assert not RecipeFindings(RECIPE, some, {}).complete
    assert RecipeFindings(RECIPE, {}, {}).outcomes == []


def test_answers_become_groups_with_labels_and_shades_of_their_own():
    groups = as_groups(findings().answers).drop_duplicates("configuration")
    assert list(groups["configuration"]) == [line.label for line in RECIPE.lines]
    fisher = groups[groups["method"] == "ewc-fisher"]
    assert list(fisher["variant"]) == list(range(6))
    assert set(fisher["num_variants"]) == {6}


def test_figures_as_people_read_them():
    assert points(Estimate(0.012, 0.004)) == "+1.20 ± 0.40"
    assert points(Estimate(-0.012)) == "-1.20"
    assert percent(Estimate(0.8768, 0.01)) == "87.7 ± 1.0"
