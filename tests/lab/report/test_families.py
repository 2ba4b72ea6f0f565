from __future__ import annotations

from dataclasses import replace

from tests.lab.made_up import result

from holdfast.lab.groups import group_results
from holdfast.lab.plots import stroke
from holdfast.lab.report.families import families, strength_of


def validated(value: float, **settings):
    """A run of that final validation accuracy, whatever it does on test data."""
    made = result(**settings)
    return replace(made, validation_accuracy=[*made.validation_accuracy[:-1], value])


def test_validation_data_chooses_whatever_test_data_say():
    runs = [validated(0.9, strength=1.0, kept=0.2), validated(0.8, strength=10.0, kept=1.0)]
    (family,) = families(group_results(runs))
    assert strength_of(family.best) == 1.0
    assert family.label == "EWC Fisher"
    assert family.best.label == "EWC Fisher, strength 1"


def test_a_lucky_seed_of_a_search_cut_short_does_not_win():
    runs = [validated(0.8, strength=1.0, seed=seed) for seed in (0, 1)] + [validated(0.99, strength=5.0)]
    (family,) = families(group_results(runs))
    assert strength_of(family.best) == 1.0
    assert len(family.members) == 2


def test_strengths_ascend_and_a_budget_competes_without_one():
    runs = [
        *(validated(0.5, strength=strength, budget=None) for strength in (100.0, 2.0, float("inf"), 0.0)),
        validated(0.9, strength=None, budget=0.05),
    ]
    (family,) = families(group_results(runs))
    assert [strength_of(group) for group in family.by_strength] == [0.0, 2.0, 100.0, float("inf")]
    assert family.best.settings["budget"] == 0.05


def test_other_settings_make_other_families_in_other_shades():
    runs = [
        validated(0.5 + 0.01 * strength, strength=strength, optimizer=optimizer)
        for strength in (1.0, 2.0)
        for optimizer in ("sgd", "adam")
    ]
    found = families(group_results(runs))
    assert [family.label for family in found] == ["EWC Fisher, optimizer adam", "EWC Fisher, optimizer sgd"]
    assert [strength_of(family.best) for family in found] == [2.0, 2.0]
    assert len({stroke(family.best)["color"] for family in found}) == 2


def test_the_best_of_many_strengths_looks_as_its_method_does():
    many = families(group_results([validated(0.1 * k, strength=float(k)) for k in range(1, 6)]))
    one = families(group_results([validated(0.5, strength=1.0)]))
    assert stroke(many[0].best) == stroke(one[0].best)
