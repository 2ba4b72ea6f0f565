"""Whether the forecast held, in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.language.kept import SkillChange, forecast_verdict, to_dict
from holdfast.language.skills import MeasuredSkill


def skill(*losses: float) -> MeasuredSkill:
    values = torch.tensor(losses, dtype=torch.float64)
    return MeasuredSkill("accuracy", 0.5, float(values.mean()), len(values), len(values), values)


def kept(after: MeasuredSkill | None, predicted: float | None = 0.1, **options: Any) -> SkillChange:
    old = {} if after is None else {"before": skill(1.0, 2.0, 3.0), "held": after}
    new = {"before": skill(1.0), "held": skill(1.0)}
    return SkillChange(old, new, predicted, "EWC: 1 task held", Path("out"), **options)


def test_the_noise_is_that_of_the_examples_own_rises():
    found = kept(skill(1.1, 2.2, 3.6))
    assert found.measured_rise == pytest.approx(0.3)
    assert found.rise_error == pytest.approx(math.sqrt(((0.2**2) + (0.1**2) + (0.3**2)) / 2 / 3))
    assert kept(None).rise_error is None


def test_a_rise_near_the_forecast_is_told_and_a_fall_is_a_fall():
    told = forecast_verdict(kept(skill(1.2, 2.2, 3.1)))
    assert told == ("the old loss rose by 0.1667 nats a target (standard error 0.033); a rise of 0.1 nats was foreseen")
    assert forecast_verdict(kept(skill(0.9, 1.8, 2.9))).startswith(
        "the old loss fell by 0.1333 nats a target (standard"
    )


def test_a_rise_far_above_the_forecast_is_shouted_with_the_remedy():
    found = kept(skill(2.0, 3.1, 4.0), strength=10.0)
    assert found.is_far_above
    assert forecast_verdict(found) == (
        "THE FORECAST DID NOT HOLD, 10 times as much: the old loss rose by 1.033 nats a target (standard error "
        "0.033); a rise of 0.1 nats was foreseen. Fine-tune again with a larger --strength (now 10), or hold whole "
        "layers (holdfast importance --kind kfac), or give a --budget over an importance that was "
        "calibrated on old data (holdfast importance --calibrate)."
    )
    assert "with a smaller --budget, with an importance that was calibrated" in forecast_verdict(
        kept(skill(2.0, 3.1, 4.0), budget=0.1)
    )
    assert not kept(skill(2.0, 3.1, 4.0), budget=0.5).is_far_above  # the user has allowed it
    assert kept(skill(2.0, 3.1, 4.0), budget=0.05).is_far_above
    assert "a rise of 0.1 nats was foreseen, and one of 0.5 allowed" in forecast_verdict(
        kept(skill(2.0, 3.1, 4.0), budget=0.5)
    )
    assert not kept(skill(-8.0, 2.2, 13.0)).is_far_above  # noise
    assert not kept(skill(1.2, 2.3, 3.2)).is_far_above
    assert kept(skill(2.0, 3.1, 4.0), predicted=0.0).is_far_above
    assert "HOLD: the old loss rose" in forecast_verdict(kept(skill(2.0, 3.1, 4.0), predicted=0.0))


def test_what_was_not_measured_or_foreseen_is_said():
    assert forecast_verdict(kept(None)) == (
        "The old skill was not measured; a rise of 0.1 nats was foreseen. Give --old-data to see what was kept."
    )
    found = kept(skill(2.0, 3.0, 4.1), predicted=None, method="wva")
    assert not found.is_far_above
    assert forecast_verdict(found).endswith("; wva foresees nothing")
    found = kept(skill(2.0, 3.0, 4.1), rise_unit="output^2")
    assert not found.is_far_above
    assert (
        "0.1 output^2 was foreseen, which cannot be compared with nats (measure the importance with --calibrate"
        in forecast_verdict(found)
    )


def test_the_figures_are_json():
    found = to_dict(kept(skill(1.1, 2.2, 3.6)))
    assert json.loads(json.dumps(found))["old"]["held"] == {
        "measure": "accuracy",
        "value": 0.5,
        "loss": pytest.approx(2.3),
        "num_examples": 3,
        "num_targets": 3,
    }
