from __future__ import annotations

from dataclasses import fields

import pytest

from holdfast.cli.options import RunOptions, option_names
from holdfast.cli.settings import explained, run_record
from holdfast.lab.config import RunSettings
from holdfast.lab.generation.config import GenerationSettings
from holdfast.lab.kinds import REGISTRIES
from holdfast.lab.options import NoOptions

RECORDS = list(dict.fromkeys(e.options for r in REGISTRIES for e in r.values() if e.options is not NoOptions))


@pytest.mark.parametrize("record", [RunSettings, GenerationSettings, *RECORDS], ids=lambda record: record.__name__)
def test_every_setting_is_explained(record: type):
    told = explained(record)
    assert set(told) == {own.name for own in fields(record)}
    assert all(told.values())


def test_what_is_said_of_settings():
    told = explained(RunSettings)
    assert told["lr"] == "learning rate"
    assert told["importance_examples"] == "on so many of them; left out: all"
    assert told["seed"].endswith("sampled labels")  # the second line of two
    assert explained(GenerationSettings)["penalty"] == "weight of the gradient penalty"


def test_no_setting_is_an_option_of_the_command_too():
    """Such as --output, which a run has whatever its method."""
    own = {field.name for field in fields(RunOptions)} - {"stream", "method", "seed"}
    assert not own & {field.name for record in (RunSettings, GenerationSettings, *RECORDS) for field in fields(record)}


def test_names_as_they_are_typed():
    names = option_names(run_record(RunOptions, ["permuted-digits", "--method", "ewc-fisher"]))
    assert {"--method", "--data-dir", "--batch-size", "--quiet", "--strength", "--hidden"} <= set(names)
    assert len(names) == len(set(names))
    assert "--stream" not in names
    assert "--training" not in names
