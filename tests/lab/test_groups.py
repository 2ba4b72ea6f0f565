from __future__ import annotations

import math
from dataclasses import replace

from tests.lab.made_up import result

from holdfast.lab.frame import runs_table
from holdfast.lab.groups import comparable, differing, group_results, method_label, method_order, setting_text
from holdfast.lab.methods import METHODS


def groups(*runs) -> dict[str, list[int]]:
    """Label -> seeds."""
    return {label: list(own["seed"]) for label, own in group_results(runs).groupby("configuration", sort=False)}


def titles(*runs) -> list[str]:
    return [title for title, _ in comparable(runs_table(runs))]


def chosen(*runs) -> list[str]:
    table = group_results(runs)
    return list(dict.fromkeys(table.loc[table["chosen"], "configuration"]))


def validated(value: float, **settings):
    """A run of that final validation accuracy, whatever it does on test data."""
    made = result(**settings)
    return replace(made, validation_accuracy=[*made.validation_accuracy[:-1], value])


def test_seeds_of_one_configuration_are_one_group():
    assert groups(result(seed=2), result(seed=0), result(seed=1)) == {"EWC Fisher": [0, 1, 2]}


def test_other_settings_are_other_groups_and_say_so():
    runs = [result(strength=100.0), result(strength=2.0), result(strength=2.0, seed=1), result("none")]
    assert groups(*runs) == {"EWC Fisher, strength 2": [0, 1], "EWC Fisher, strength 100": [0], "plain": [0]}
    table = group_results(runs)
    assert list(zip(table["variant"], table["num_variants"])) == [(0, 2), (0, 2), (1, 2), (0, 1)]


def test_a_budget_is_said_in_the_place_of_a_strength():
    """Not beside a strength that is unset, nor the other way round; where both are unset, of another kind, both are."""
    runs = [result(strength=15.0, budget=None), result(strength=None, budget=0.05), result(strength=3.0, budget=None)]
    assert set(groups(*runs)) == {"EWC Fisher, strength 15", "EWC Fisher, strength 3", "EWC Fisher, budget 0.05"}
    budgets = [result(strength=None, budget=budget, optimizer="adam") for budget in (0.01, 0.05)]
    assert list(groups(*budgets)) == ["EWC Fisher, budget 0.01", "EWC Fisher, budget 0.05"]


def test_a_stream_left_to_its_defaults_is_the_same_as_one_told_them():
    assert groups(result(seed=0), result(seed=1, scenario="domain", num_tasks=3)) == {"EWC Fisher": [0, 1]}
    assert groups(result(seed=0, strength=15), result(seed=1, strength=15.0)) == {"EWC Fisher": [0, 1]}


def test_a_run_found_twice_counts_once():
    assert groups(result(), result(), result(seed=1)) == {"EWC Fisher": [0, 1]}


def test_order_is_from_the_ceiling_to_the_floor():
    table = group_results([result(name) for name in METHODS] + [result("of-another-version")])
    assert list(table["method"]) == [*METHODS, "of-another-version"]
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
    assert list(table["configuration"])[-1] == "of-another-version"
    assert method_order("joint") < method_order("none")


def test_only_runs_of_one_stream_and_scenario_can_be_compared():
    assert titles(result(), result(stream="permuted-mnist"), result(scenario="class")) == [
        "permuted-digits, class-incremental",
        "permuted-digits, domain-incremental",
        "permuted-mnist, domain-incremental",
    ]


def test_only_runs_of_one_problem_can_be_compared():
    start = "permuted-digits, domain-incremental"
    assert titles(result(num_tasks=3), result(num_tasks=5)) == [f"{start}, num tasks 3", f"{start}, num tasks 5"]
    nets = titles(result(hidden=[8, 8]), result("none", hidden=[300, 150]), result("none", hidden=[8, 8]))
    assert nets == [f"{start}, hidden 300-150", f"{start}, hidden 8-8"]
    given = [
        result(data=f"{where}/mine.npz", fingerprint=mark * 9) for where, mark in (("a", "0"), ("b", "0"), ("a", "1"))
    ]
    assert titles(*given) == [f"{start}, data mine ({mark * 6})" for mark in ("0", "1")]
    assert len(titles(result(fingerprint="abc"), result("none", fingerprint="def"))) == 2
    both = titles(result(epochs=4, net="mlp"), result(epochs=1, net="attention"))
    assert both == [f"{start}, epochs 1, net attention", f"{start}, epochs 4, net mlp"]


def test_how_a_method_learns_keeps_it_comparable():
    """Its own options, its optimizer, and options that no other method has, as those of a plug-in."""
    runs = [
        result(strength=1.0, fisher="exact"),
        result("ewc-kfac", strength=2.0, optimizer="adam", lr=0.2, schedule="cosine"),
        *(result("slow", gamma=gamma) for gamma in (0.5, 0.9)),
    ]
    assert titles(*runs) == ["permuted-digits, domain-incremental"]
    assert list(groups(*runs[2:])) == ["slow, gamma 0.5", "slow, gamma 0.9"]
    shared = [result("none", difficulty=1), result("slow", difficulty=2)]  # of a stream of somebody else's
    assert len(titles(*shared)) == 2


def test_differing_settings():
    assert differing([{"lr": 0.1, "epochs": 4, "mask": None}, {"lr": 0.2, "epochs": 4}]) == ["lr"]
    assert differing([{"lr": 0.1}]) == []
    assert differing([]) == []


def test_settings_as_people_read_them():
    assert setting_text("strength", 15.0) == "strength 15"
    assert setting_text("hidden", [300, 150]) == "hidden 300-150"
    assert setting_text("mas_batched", True) == "mas batched yes"
    assert setting_text("iterations", None) == setting_text("iterations", math.nan) == "iterations unset"
    assert setting_text("optimizer", "sgd") == "optimizer sgd"
    assert setting_text("epochs", 4) == "epochs 4"


def test_validation_data_choose_whatever_test_data_say():
    runs = [validated(0.9, strength=1.0, kept=0.2), validated(0.8, strength=10.0, kept=1.0)]
    assert chosen(*runs) == ["EWC Fisher, strength 1"]
    assert set(group_results(runs)["family"]) == {"EWC Fisher"}


def test_a_lucky_seed_of_a_search_cut_short_does_not_win():
    runs = [validated(0.8, strength=1.0, seed=seed) for seed in (0, 1)] + [validated(0.99, strength=5.0)]
    assert chosen(*runs) == ["EWC Fisher, strength 1"]


def test_a_budget_competes_with_strengths():
    runs = [
        *(validated(0.5, strength=strength, budget=None) for strength in (100.0, 2.0, float("inf"), 0.0)),
        validated(0.9, strength=None, budget=0.05),
    ]
    assert chosen(*runs) == ["EWC Fisher, budget 0.05"]


def test_other_settings_make_other_families_in_other_shades():
    runs = [
        validated(0.5 + 0.01 * strength, strength=strength, optimizer=optimizer)
        for strength in (1.0, 2.0)
        for optimizer in ("sgd", "adam")
    ]
    assert chosen(*runs) == ["EWC Fisher, strength 2, optimizer adam", "EWC Fisher, strength 2, optimizer sgd"]
    table = group_results(runs).drop_duplicates("family")
    assert list(table["family"]) == ["EWC Fisher, optimizer adam", "EWC Fisher, optimizer sgd"]
    assert list(zip(table["shade"], table["num_shades"])) == [(0, 2), (1, 2)]
