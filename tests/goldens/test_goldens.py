"""Today's steps to the bit. A golden changes only in a commit that does nothing else (`tests.goldens.make`)."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tests.goldens import sharded, stored
from tests.goldens.cases import (
    LORA,
    Case,
    cases,
    every_case,
    one_of_each,
    run,
    run_interrupted,
    run_lora,
    saved_folder,
    table,
)
from tests.goldens.stored import check_report, check_saved, check_weights
from torch import distributed

pytestmark = pytest.mark.filterwarnings('ignore:WVA. on="gradients" is cancelled:UserWarning')

WAYS = ("state", "load", "restore")


@pytest.mark.parametrize("case", cases(), ids=str)
def test_training_ends_at_the_stored_weights(case: Case):
    ended = run(case)
    assert ended.weights().isfinite().all()
    check_weights(str(case), ended.weights())
    check_report(str(case), str(ended.keeper.report()))


@pytest.mark.parametrize(
    ("case", "way"), [(case, WAYS[n % 3]) for n, case in enumerate(one_of_each())], ids=lambda value: str(value)
)
def test_an_interrupted_training_goes_on_to_the_same_bits(case: Case, way: str, tmp_path):
    ended, on = run(case), run_interrupted(case, way, tmp_path)
    assert torch.equal(on.weights(), ended.weights())
    assert str(on.keeper.report()) == str(ended.keeper.report())


@pytest.mark.parametrize("case", one_of_each(), ids=str)
def test_a_saved_folder_is_laid_out_as_stored(case: Case, tmp_path):
    run(case).keeper.save(tmp_path / "saved")
    check_saved(str(case), saved_folder(tmp_path / "saved"))


@pytest.mark.parametrize(("optimizer", "strength"), LORA)
def test_adapters_end_at_the_stored_weights(optimizer: str, strength: float):
    pytest.importorskip("peft")
    weights, report = run_lora(optimizer, strength)
    check_weights(f"lora {optimizer} {strength}", weights)
    check_report(f"lora {optimizer} {strength}", report)


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_end_at_the_stored_weights(tmp_path):
    found = sharded.run(tmp_path)
    assert set(found) == {str(case) for case in sharded.CASES}
    for case, weights in found.items():
        check_weights(f"sharded {case}", weights)


def test_every_two_values_that_go_together_occur():
    def pairs(found):
        return {pair for case in found for pair in case.pairs()}

    assert pairs(table()) == pairs(every_case())
    assert len(set(cases())) == len({str(case) for case in cases()}) == len(cases())
    assert {(case.form, WAYS[n % 3]) for n, case in enumerate(one_of_each())} >= {
        (form, way) for form in ("float32", "half") for way in WAYS
    }


@pytest.mark.parametrize(
    ("arithmetic", "moved", "expected"),
    [
        ("same", 0.0, None),
        ("same", 1e-6, "1 of 69 weights differ, by .* to the bit, as the fingerprint is that of the goldens"),
        ("another", 1e-6, None),
        ("another", 1e-4, "differ by up to .*; compared within rtol 1e-05, atol 1e-06"),
    ],
)
def test_how_weights_are_compared(arithmetic, moved, expected, monkeypatch):
    written = stored.notes()["fingerprint"]
    here = written if arithmetic == "same" else {**written, "arithmetic": arithmetic}
    monkeypatch.setattr(stored, "fingerprint", lambda: here)
    name = str(cases()[0])
    weights = stored.tensors()[name].clone()
    weights[weights.abs().argmax()] += moved
    with nullcontext() if expected is None else pytest.raises(AssertionError, match=expected):
        check_weights(name, weights)


@pytest.mark.parametrize(
    ("line", "accepted"),
    [
        ("strength 1, pull / task step 0.305, predicted rise 1.01e-05 nats", True),
        ("strength 1, pull / task step 0.344, predicted rise 1e-05 nats", False),
        ("budget 1, pull / task step 0.304, predicted rise 1e-05 nats", False),
    ],
)
def test_how_reports_are_compared(line, accepted, monkeypatch):
    reports = {"it": "strength 1, pull / task step 0.304, predicted rise 1e-05 nats"}
    monkeypatch.setattr(stored, "notes", lambda: {"fingerprint": {"arithmetic": "another"}, "reports": reports})
    with nullcontext() if accepted else pytest.raises(AssertionError, match="figures compared within 2 %"):
        check_report("it", line)
