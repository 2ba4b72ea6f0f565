from __future__ import annotations

import math

import pytest
from tests.lab.made_up import result

from holdfast.lab.tables import COLUMNS, Estimate, best_label, markdown, result_rows


def rows(*runs) -> list[dict]:
    return result_rows(runs).to_dict("records")


def test_figures_of_one_run():
    (row,) = rows(result(kept=0.7))
    assert (row["configuration"], row["seeds"], row["chosen"]) == ("EWC Fisher", 1, True)
    assert row["accuracy"] == pytest.approx((0.7 + 0.7 + 1) / 3)
    assert row["validation"] == pytest.approx(0.75)
    assert row["forgetting"] == pytest.approx(0.3)
    assert row["backward_transfer"] == pytest.approx(-0.3)
    assert row["learning_accuracy"] == 1.0
    assert row["forward_transfer"] == pytest.approx(0)
    assert (row["seconds_training"], row["seconds_importance"]) == (2.0, 0.5)
    assert math.isnan(row["accuracy_half_width"])
    assert math.isnan(row["held_bytes"])
    assert math.isnan(row["num_parameters"])


def test_what_is_held_is_told_where_every_run_recorded_it():
    (row,) = rows(*(result(seed=seed, held_bytes=2_000_000, num_parameters=250_000) for seed in (0, 1)))
    assert (row["held_bytes"], row["held_bytes_half_width"], row["num_parameters"]) == (2_000_000, 0.0, 250_000)
    assert COLUMNS[-2].text(row) == "2.0"
    assert COLUMNS[-1].text(row) == "2.0"  # copies of a million bytes
    (row,) = rows(result(seed=0, held_bytes=2_000_000), result(seed=1))
    assert math.isnan(row["held_bytes"])
    assert COLUMNS[-2].text(row) == COLUMNS[-1].text(row) == "–"


def test_seeds_give_a_mean_and_half_of_the_interval():
    (row,) = rows(*(result(kept=kept, seed=seed) for seed, kept in enumerate((0.7, 0.8, 0.9))))
    # forgetting 0.3, 0.2, 0.1: deviation 0.1, Student's t of 2 degrees of freedom 4.3027
    assert row["seeds"] == 3
    assert row["forgetting"] == pytest.approx(0.2)
    assert row["forgetting_half_width"] == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-5)
    assert COLUMNS[2].text(row) == "20.0 ± 24.8"


def test_estimates_as_text():
    assert Estimate(0.8834).text(scale=100) == "88.3"
    assert Estimate(0.8834, 0.0041).text(scale=100) == "88.3 ± 0.4"
    assert Estimate(-0.0001).text(scale=100) == "0.0"
    assert Estimate(12.346, 0.5).text(digits=2) == "12.35 ± 0.50"


def test_the_best_row_is_the_best_that_learns_task_after_task():
    found = result_rows([result("joint", kept=1.0), result("ewc-mas", kept=0.9), result("none", kept=0.2)])
    assert best_label(found) == "EWC MAS"
    assert best_label(result_rows([result("joint"), result("none")])) is None


def test_markdown():
    lines = markdown(result_rows([result("none", kept=0.25), result("ewc-mas", kept=0.7)])).splitlines()
    assert lines[0].split(" | ")[0] == "| method"
    assert lines[2] == "| EWC MAS | **80.0** | 75.0 | 30.0 | -30.0 | 0.0 | 100.0 | 2.0 | 0.5 | – | – | 1 |"
    assert lines[3] == "| plain | 50.0 | 45.0 | 75.0 | -75.0 | 0.0 | 100.0 | 2.0 | 0.5 | – | – | 1 |"
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 3}
