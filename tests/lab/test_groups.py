from __future__ import annotations

from tests.lab.made_up import result

from holdfast.lab.groups import differing, group_results, method_label, method_order, sections, setting_text
from holdfast.lab.methods import METHODS


def test_seeds_of_one_configuration_are_one_group():
    (group,) = group_results([result(seed=2), result(seed=0), result(seed=1)])
    assert group.seeds == [0, 1, 2]
    assert group.label == "EWC Fisher"
    assert group.num_tasks == 3
    assert group.settings == {"num_tasks": 3, "lr": 0.1}


def test_other_settings_are_other_groups_and_say_so():
    groups = group_results([result(strength=100.0), result(strength=2.0), result(strength=2.0, seed=1), result("none")])
    assert [group.label for group in groups] == ["EWC Fisher, strength 2", "EWC Fisher, strength 100", "plain"]
    assert [group.seeds for group in groups] == [[0, 1], [0], [0]]
    assert [(group.variant, group.num_variants) for group in groups] == [(0, 2), (1, 2), (0, 1)]


def test_a_budget_is_said_in_the_place_of_a_strength():
    """Not beside a strength that is unset, nor the other way round; where both are unset, of another kind, both are."""
    runs = [result(strength=15.0, budget=None), result(strength=None, budget=0.05), result(strength=3.0, budget=None)]
    labels = {group.label for group in group_results(runs)}
    assert labels == {"EWC Fisher, strength 15", "EWC Fisher, strength 3", "EWC Fisher, budget 0.05"}
    budgets = [result(strength=None, budget=budget, optimizer="adam") for budget in (0.01, 0.05)]
    assert [group.label for group in group_results(budgets)] == ["EWC Fisher, budget 0.01", "EWC Fisher, budget 0.05"]


def test_a_stream_left_to_its_defaults_is_the_same_as_one_told_them():
    (group,) = group_results([result(seed=0), result(seed=1, scenario="domain", num_tasks=3)])
    assert group.seeds == [0, 1]
    (group,) = group_results([result(seed=0, strength=15), result(seed=1, strength=15.0)])
    assert group.seeds == [0, 1]


def test_a_run_found_twice_counts_once():
    (group,) = group_results([result(), result(), result(seed=1)])
    assert group.seeds == [0, 1]


def test_order_is_from_the_ceiling_to_the_floor():
    groups = group_results([result(name) for name in METHODS] + [result("of-another-version")])
    assert [group.method for group in groups] == [*METHODS, "of-another-version"]
    order = [
        "joint",
        "mergan-jtr-ra",
        "mergan-ra",
        "dgr",
        "ewc-fisher",
        "ewc-kfac",
        "wva-fisher",
        "wva-taylor",
        "l2",
        "none",
    ]
    assert sorted(order, key=method_order) == order
    assert method_label("mergan-ra") == "MeRGAN RA"
    assert groups[-1].label == "of-another-version"
    assert method_order("joint") < method_order("none")


def test_only_runs_of_one_stream_and_scenario_share_a_section():
    found = sections(group_results([result(), result(stream="permuted-mnist"), result(scenario="class")]))
    assert list(found) == [
        ("permuted-digits", "class"),
        ("permuted-digits", "domain"),
        ("permuted-mnist", "domain"),
    ]


def test_differing_settings():
    assert differing([{"lr": 0.1, "epochs": 4, "mask": None}, {"lr": 0.2, "epochs": 4}]) == ["lr"]
    assert differing([{"lr": 0.1}]) == []


def test_settings_as_people_read_them():
    assert setting_text("strength", 15.0) == "strength 15"
    assert setting_text("hidden", [300, 150]) == "hidden 300-150"
    assert setting_text("mas_batched", True) == "mas batched yes"
    assert setting_text("iterations", None) == "iterations unset"
    assert setting_text("optimizer", "sgd") == "optimizer sgd"
    assert setting_text("epochs", 4) == "epochs 4"
