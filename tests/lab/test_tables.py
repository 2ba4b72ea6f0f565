from __future__ import annotations

import math

import pytest
from tests.lab.made_up import result

from holdfast.lab.tables import COLUMNS, Estimate, best_row, markdown, result_rows


def test_figures_of_one_run():
    (row,) = result_rows([result(kept=0.7)])
    assert row.label == "EWC Fisher"
    assert row.num_seeds == 1
    assert row.accuracy == Estimate(pytest.approx((0.7 + 0.7 + 1) / 3))
    assert row.validation == Estimate(pytest.approx(0.75))
    assert row.forgetting == Estimate(pytest.approx(0.3))
    assert row.backward_transfer == Estimate(pytest.approx(-0.3))
    assert row.learning_accuracy == Estimate(1.0)
    assert row.forward_transfer.mean == pytest.approx(0)
    assert (row.held_bytes, row.num_parameters) == (None, None)
    assert (row.seconds_training, row.seconds_importance) == (Estimate(2.0), Estimate(0.5))


def test_what_is_held_is_told_where_every_run_recorded_it():
    (row,) = result_rows([result(seed=seed, held_bytes=2_000_000, num_parameters=250_000) for seed in (0, 1)])
    assert row.held_bytes == Estimate(2_000_000, 0.0)
    assert COLUMNS[-1].text(row, interval=False) == "2.0"
    (row,) = result_rows([result(seed=0, held_bytes=2_000_000), result(seed=1)])
    assert row.held_bytes is None
    assert COLUMNS[-1].text(row) == "–"


def test_seeds_give_a_mean_and_half_of_the_interval():
    (row,) = result_rows([result(kept=kept, seed=seed) for seed, kept in enumerate((0.7, 0.8, 0.9))])
    # forgetting 0.3, 0.2, 0.1: deviation 0.1, Student's t of 2 degrees of freedom 4.3027
    assert row.num_seeds == 3
    assert row.forgetting.mean == pytest.approx(0.2)
    assert row.forgetting.half_width == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-5)


def test_estimates_as_text():
    assert Estimate(0.8834).text(scale=100) == "88.3"
    assert Estimate(0.8834, 0.0041).text(scale=100) == "88.3 ± 0.4"
    assert Estimate(-0.0001).text(scale=100) == "0.0"
    assert Estimate(12.346, 0.5).text(digits=2) == "12.35 ± 0.50"


def test_the_best_row_is_the_best_that_learns_task_after_task():
    found = result_rows([result("joint", kept=1.0), result("ewc-mas", kept=0.9), result("none", kept=0.2)])
    winner = best_row(found)
    assert winner is not None
    assert winner.method == "ewc-mas"
    assert best_row(result_rows([result("joint"), result("none")])) is None


def test_markdown():
    lines = markdown(result_rows([result("none", kept=0.25), result("ewc-mas", kept=0.7)])).splitlines()
    assert lines[0].split(" | ")[0] == "| method"
    assert lines[2] == "| EWC MAS | **80.0** | 75.0 | 30.0 | -30.0 | 0.0 | 100.0 | 2.0 | 0.5 | – | 1 |"
    assert lines[3] == "| plain | 50.0 | 45.0 | 75.0 | -75.0 | 0.0 | 100.0 | 2.0 | 0.5 | – | 1 |"
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 3}
