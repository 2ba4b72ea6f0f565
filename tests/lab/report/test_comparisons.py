from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.made_up import result

from holdfast.lab.groups import group_results
from holdfast.lab.report.comparisons import comparisons, holm


def compared(*differences: float) -> dict:
    runs = [result(seed=seed, kept=0.5 + difference) for seed, difference in enumerate(differences)]
    runs += [result("none", seed=seed, kept=0.5) for seed in range(len(differences))]
    (row,) = comparisons(group_results(runs)).to_dict("records")
    return row


def test_differences_are_taken_seed_by_seed():
    # final accuracy: (2 kept + 1) / 3; seed 3 of the one and seed 4 of the other stand alone
    ours = [result(seed=seed, kept=kept) for seed, kept in ((0, 0.9), (1, 0.7), (2, 0.8), (3, 0.1))]
    theirs = [result("none", seed=seed, kept=kept) for seed, kept in ((0, 0.6), (1, 0.1), (2, 0.35), (4, 1.0))]
    (found,) = comparisons(group_results([*theirs, *ours])).to_dict("records")
    assert (found["first"], found["second"], found["seeds"]) == ("EWC Fisher", "plain", 3)
    assert found["difference"] == pytest.approx(0.3)
    assert found["half_width"] == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-5)
    t = 0.3 * math.sqrt(3) / 0.1
    assert found["p"] == found["p_corrected"] == pytest.approx(1 - t / math.sqrt(t**2 + 2))  # two degrees of freedom


def test_one_seed_in_common_says_nothing():
    runs = [result(seed=0), result(seed=1), result("none", seed=1), result("none", seed=2)]
    found = comparisons(group_results(runs))
    assert len(found) == 0
    assert "p_corrected" in found


def test_p_of_differences_that_are_all_the_same():
    assert compared(0.0, 0.0)["p"] == 1.0
    assert compared(0.1, 0.1, 0.1)["p"] == pytest.approx(0.0, abs=1e-9)
    assert compared(0.1, 0.1)["half_width"] == pytest.approx(0.0)


def test_p_of_no_difference_on_average():
    assert compared(-0.1, 0.1)["p"] == pytest.approx(1.0)


def test_holm_by_hand():
    # sorted: .01 x 4, .02 x 3, .03 x 2, .04 x 1, never below what came before
    assert holm(pd.Series([0.04, 0.01, 0.03, 0.02])).to_dict() == pytest.approx({0: 0.06, 1: 0.04, 2: 0.06, 3: 0.06})
    assert holm(pd.Series([0.5, 0.6])).to_list() == [1.0, 1.0]
    assert holm(pd.Series([])).empty


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_lies_between_no_correction_and_bonferronis(p: list[float]):
    corrected = holm(pd.Series(p, dtype=float)).sort_index().to_list()
    assert all(own <= found <= min(1.0, len(p) * own) or found == max(corrected) for own, found in zip(p, corrected))
    assert all(own <= found <= 1.0 for own, found in zip(p, corrected))
    assert all(corrected[i] <= corrected[j] for i in range(len(p)) for j in range(len(p)) if p[i] < p[j])
