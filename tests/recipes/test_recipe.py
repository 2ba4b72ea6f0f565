from __future__ import annotations

from dataclasses import replace

import pytest
from recipes import FULL, QUICK, RECIPES, recipe_named
from recipes.lines import RecipeLine, around
from recipes.outcome import Outcome
from tests.recipes.made_up import filled, outcome

from holdfast.errors import UnknownNameError
from holdfast.lab import configure

BASE = configure("permuted-digits", "ewc-fisher", strength=10.0)


def line(**changes: object) -> RecipeLine:
    settings = {
        "label": "it",
        "candidates": around(BASE, (0.1, 1, 10)),
        "seeds": (0, 1),
        "trial_settings": {"num_tasks": 2},
    }
    return RecipeLine(**{**settings, **changes})


def test_a_strength_is_varied_by_factors_and_rounded_to_three_digits():
    assert [config.strength for config in around(BASE, (0.1, 1 / 3, 1))] == [1.0, 3.33, 10.0]


def test_candidates_are_tried_before_the_chosen_one_is_reported():
    asked = line()
    assert [(c.strength, c.seed, c.num_tasks) for c in asked.trials()] == [(1, 9, 2), (10, 9, 2), (100, 9, 2)]
    assert asked.chosen({}) is None
    assert asked.reported({}) == []
    found = {config: outcome(config, kept) for config, kept in zip(asked.trials(), (0.5, 0.6, 0.7))}
    assert asked.chosen(found) == BASE.changed(strength=100.0)
    assert asked.at_edge(found)
    assert [(c.strength, c.seed, c.num_tasks) for c in asked.reported(found)] == [(100, 0, None), (100, 1, None)]


def test_what_diverged_is_not_chosen_and_equals_keep_their_order():
    asked = line()
    weak, middle, strong = asked.trials()
    found = {weak: outcome(weak, 0.5), middle: outcome(middle, 0.5), strong: Outcome(strong, None, "nan")}
    chosen = asked.chosen(found)
    assert chosen is not None
    assert chosen.strength == 1.0


def test_the_choice_is_by_validation_data_alone():
    asked = line(candidates=around(BASE, (1, 10)))
    weak, strong = asked.trials()
    good_on_test, good_on_validation = outcome(weak, 0.9).result, outcome(strong, 0.1).result
    assert good_on_test is not None
    assert good_on_validation is not None
    found = {
        weak: Outcome(weak, replace(good_on_test, validation_accuracy=[0.4, 0.4])),
        strong: Outcome(strong, replace(good_on_validation, validation_accuracy=[0.5, 0.5])),
    }
    assert asked.chosen(found) == BASE.changed(strength=100.0)


def test_one_candidate_needs_no_trial():
    asked = line(candidates=(BASE,))
    assert asked.trials() == []
    assert asked.reported({}) == [replace(BASE, seed=0), replace(BASE, seed=1)]
    assert not asked.at_edge({})


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_frozen_configuration_that_comes_to_an_end(name: str):
    recipe = recipe_named(name)
    assert recipe.name == name
    assert recipe == recipe_named(name) or recipe.measure or recipe.parts  # partial functions have no equality
    assert "arXiv" in recipe.source
    found = filled(recipe)
    assert recipe.to_do(found) == []
    assert not recipe.undecided(found)
    labels = [line.label for line in recipe.lines]
    assert len(labels) == len(set(labels))
    mnist = {config.stream for config in found}
    assert mnist <= {"permuted-mnist", "split-mnist"}


@pytest.mark.parametrize("name", RECIPES)
def test_the_quick_version_needs_no_download(name: str):
    recipe = recipe_named(name, QUICK)
    assert all(config.stream.endswith("-digits") for config in filled(recipe))


def test_five_seeds_for_the_main_curve_and_three_for_the_rest_of_part_a():
    curve = recipe_named("curve", FULL)
    assert {line.label: len(line.seeds) for line in curve.lines}["EWC Fisher"] == 5
    for name in ("increments", "attenuation", "strength", "importances", "nets"):
        assert {len(line.seeds) for line in recipe_named(name).lines} == {3}


def test_trials_never_use_a_reported_seed_unless_the_runs_are_shared():
    for name in RECIPES:
        for asked in recipe_named(name).lines:
            shared = set(asked.trial_seeds) & set(asked.seeds)
            assert not shared or set(asked.trial_seeds) == set(asked.seeds)


def test_experiments_share_their_runs():
    strength, attenuation = (filled(recipe_named(name)) for name in ("strength", "attenuation"))
    assert len(set(strength) & set(attenuation)) == 15


def test_an_unknown_experiment_is_named_with_its_nearest():
    with pytest.raises(UnknownNameError, match="unknown experiment 'curv'. Did you mean 'curve'"):
        recipe_named("curv")
