"""Today's steps to the bit. A golden changes only in a commit that does nothing else (`tests.goldens.make`)."""

from __future__ import annotations

import pytest
import torch
from tests.goldens import sharded
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
