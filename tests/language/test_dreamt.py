"""A causal model's own texts, in a part to measure on and a part to see a rise on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.language import tiny

from holdfast.errors import OptionError
from holdfast.language.calibration import calibrate
from holdfast.language.dreamt import dreamt
from holdfast.language.measuring import measure_importance
from holdfast.language.models import load_model


def test_the_parts_are_all_dreams_and_share_none(tmp_path: Path):
    model = load_model(str(tiny.causal(tmp_path / "causal")))
    found = dreamt(model, 40, length=64, seed=3)
    texts = [text.tolist() for batch in found.dreams.batches for text in batch["input_ids"]]
    assert {len(text) for text in texts} == {32}  # the model has no more positions
    assert [list(example.tokens[0]) for example in found.measured] == texts[:32]
    watched = [text.tolist() for probe in found.probes.batches for text in probe.batch["input_ids"]]
    assert watched == texts[32:]
    assert found.probes.rise(model.module) == pytest.approx(0, abs=1e-4)
    again = dreamt(model, 40, length=64, seed=3)
    assert again.measured == found.measured


def test_lessons_learn_from_one_part_and_are_seen_on_the_other(tmp_path: Path):
    model = load_model(str(tiny.causal(tmp_path / "causal")))
    found = dreamt(model, 40, length=16, seed=0)
    importance, _ = measure_importance(model, lambda: iter(found.measured), kind="kfac")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    factor = calibrate(model, importance, found.measured, budget=1e-3, steps=20, lr=5e-3, probes=found.probes)
    assert 0 < factor.measured < 1.5e-3
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    with pytest.raises(OptionError, match="calibration: 15 examples of the old skill; expected at least 16"):
        calibrate(model, importance, found.measured[:15], probes=found.probes)


def test_what_cannot_dream_is_refused(tmp_path: Path):
    with pytest.raises(OptionError, match="--self is for a causal language model.*was made for similarity. Give DATA"):
        dreamt(load_model(str(tiny.encoder(tmp_path / "encoder"))), 40, length=16, seed=0)
    with pytest.raises(OptionError, match="--self is 31; expected a whole number from 32"):
        dreamt(load_model(str(tiny.causal(tmp_path / "causal"))), 31, length=16, seed=0)
