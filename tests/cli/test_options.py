from __future__ import annotations

from dataclasses import fields

from holdfast.cli.idle import _OF_IMPORTANCE, _OF_MECHANISM
from holdfast.cli.options import GROUPS, RunOptions, explained, option_names
from holdfast.lab import RunConfig
from holdfast.lab.generation import GenerationConfig


def test_every_setting_is_an_option_once():
    settings = [name for names in GROUPS.values() for name in names]
    elsewhere = ["stream", "method", "seed"]
    records = {entry.name for record in (RunConfig, GenerationConfig) for entry in fields(record)}
    assert sorted([*settings, *elsewhere]) == sorted(records)


def test_every_setting_is_explained():
    told = explained(RunConfig)
    assert set(told) == {entry.name for entry in fields(RunConfig)}
    assert told["lr"] == "learning rate"
    assert told["importance_examples"] == "on so many of them; left out: all"
    assert told["seed"].endswith("sampled labels")  # the second line of two


def test_every_setting_of_generation_is_explained():
    told = explained(GenerationConfig)
    assert set(told) == {entry.name for entry in fields(GenerationConfig)}
    assert told["penalty"] == "weight of the gradient penalty"


def test_what_has_no_effect_elsewhere_is_a_setting():
    assert {*_OF_IMPORTANCE, *_OF_MECHANISM} == {
        name for title in ("mechanism", "importance", "comparison", "replay") for name in GROUPS[title]
    }


def test_names_as_they_are_typed():
    names = option_names(RunOptions)
    assert {"--method", "--data-dir", "--batch-size", "--quiet"} <= set(names)
    assert "--stream" not in names
    assert "--training" not in names
