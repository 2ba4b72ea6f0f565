from __future__ import annotations

from dataclasses import replace

import pytest
from recipes import FULL, recipe_named
from recipes.cost import remaining_cost, work
from tests.recipes.made_up import filled, outcome

from holdfast.lab import configure


def test_work_grows_with_epochs_tasks_and_past_data():
    one = configure("permuted-mnist", "none")
    assert work(replace(one, epochs=8)) == 2 * work(one)
    assert work(replace(one, num_tasks=5)) == work(one) / 2
    assert work(configure("permuted-mnist", "joint")) == 5.5 * work(one)
    assert work(configure("split-mnist", "dgr")) > 4 * work(configure("split-mnist", "none"))


def test_nothing_done_is_told_from_stored_figures():
    told = remaining_cost([recipe_named("strength", FULL)], {})
    assert (told.done, told.to_do, told.more, told.timed) == (0, 57, 0, 0)
    assert told.text(2).startswith("0 runs done, 57 to do: about ")
    assert told.text(2).endswith("in 2 processes, from stored figures")


def test_timed_runs_tell_the_time_of_those_to_do():
    recipe = recipe_named("strength", FULL)
    found = filled(recipe)
    first, *rest = recipe.wanted(found)
    told = remaining_cost([recipe], {first: outcome(first)})  # three seconds each, as made up
    assert told.seconds == pytest.approx(3.0 * len(rest))
    assert told.text() == "1 runs done, 56 to do: about 3 minutes, from 1 timed runs"


def test_what_follows_a_choice_is_counted_at_most():
    told = remaining_cost([recipe_named("which-fisher", FULL)], {})
    assert (told.to_do, told.more) == (5 * 3 + 5, 5 * 5)
    assert "and up to 25 more when strengths are chosen" in told.text()


def test_shared_runs_count_once():
    together = [recipe_named("strength", FULL), recipe_named("attenuation", FULL)]
    assert remaining_cost(together, {}).to_do == 57 + 72 - 15


def test_measurements_count_as_runs():
    recipe = recipe_named("pruning", FULL)
    assert remaining_cost([recipe], {}).to_do == 3
    assert remaining_cost([recipe], {}, {"pruning": [0, 1]}).text() == (
        "2 runs done, 1 to do: about 25 seconds, from stored figures"
    )
    assert remaining_cost([recipe], {}, {"pruning": [0, 1, 2]}).seconds == 0


def test_everything_done_costs_nothing():
    recipe = recipe_named("strength", FULL)
    assert remaining_cost([recipe], filled(recipe)).text() == "57 runs done, 0 to do"
