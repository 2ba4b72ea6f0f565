"""The factor by which a budget is wrong, found on a made-up task."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tests.language import tiny

from holdfast import Importance
from holdfast.errors import OptionError
from holdfast.language.batches import Example, examples
from holdfast.language.calibration import calibrate
from holdfast.language.measuring import measure_importance
from holdfast.language.models import LanguageModel, load_model
from holdfast.language.rows import read_rows


def measured(model: LanguageModel, path: Path) -> tuple[list[Example], Importance]:
    found = list(examples(model, read_rows(str(path)), length=16, labelled=False))
    return found, measure_importance(model, lambda: iter(found))[0]


@pytest.mark.parametrize("kind", ["encoder", "classifier", "causal"])
def test_in_the_end_the_rise_is_near_the_budget(tmp_path: Path, kind: str):
    model = load_model(str(getattr(tiny, kind)(tmp_path / kind)))
    data = tiny.pairs(tmp_path / "a.csv", count=64) if kind == "encoder" else tiny.prose(tmp_path / "a.txt", lines=120)
    found, importance = measured(model, data)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    budget = 0.02 / 15 if kind == "causal" else 0.02  # an example of a causal model is 15 targets
    drawn = random.getstate(), torch.get_rng_state()
    factor = calibrate(model, importance, found, budget=budget, steps=20, lr=5e-3)
    assert random.getstate() == drawn[0]
    assert torch.equal(torch.get_rng_state(), drawn[1])
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    assert factor.nats_per_unit == factor.measured / factor.predicted
    assert 0 < factor.measured < 1.5 * budget
    first = calibrate(model, importance, found, budget=budget, steps=20, lr=5e-3, rounds=1)
    if kind != "classifier":  # whose head learns so much that the rest does not come to the budget
        assert factor.measured > budget / 1.5
        assert first.measured > 2 * factor.measured


def test_it_takes_a_few_examples(tmp_path: Path):
    model = load_model(str(tiny.encoder(tmp_path / "encoder")))
    found, importance = measured(model, tiny.pairs(tmp_path / "a.csv", count=31))
    with pytest.raises(OptionError, match="calibration: 31 examples of the old skill; expected at least 32"):
        calibrate(model, importance, found)
    found, importance = measured(model, tiny.pairs(tmp_path / "a.csv", count=32))
    told: list[tuple[str, int, int | None]] = []
    calibrate(model, importance, found, steps=3, rounds=1, on_progress=lambda *how_far: told.append(how_far))
    assert told == [("calibration, round 1 of at most 1", done, 3) for done in (1, 2, 3)]
