import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import EmptyDataError, OptionError
from holdfast.lab import metrics

MATRIX = [
    [0.9, 0.2, 0.1],
    [0.7, 0.8, 0.3],
    [0.4, 0.9, 1.0],
]


def test_three_by_three_by_hand():
    assert metrics.average_accuracy(MATRIX) == pytest.approx([0.9, 0.75, 2.3 / 3])
    assert metrics.forgetting_by_task(MATRIX) == pytest.approx([0.5, -0.1])
    assert metrics.forgetting(MATRIX) == pytest.approx(0.2)
    assert metrics.backward_transfer(MATRIX) == pytest.approx((-0.5 + 0.1) / 2)
    assert metrics.forward_transfer(MATRIX, [0.1, 0.1, 0.1]) == pytest.approx((0.1 + 0.2) / 2)
    assert metrics.learning_accuracy(MATRIX) == pytest.approx(0.9)


def test_forgetting_counts_from_the_best_since_the_task_was_learned():
    matrix = [[0.5, 0.9, 0.0], [0.8, 0.6, 0.0], [0.6, 0.5, 0.7]]
    assert metrics.forgetting_by_task(matrix) == pytest.approx([0.8 - 0.6, 0.6 - 0.5])


def test_one_task_forgets_and_transfers_nothing():
    assert metrics.average_accuracy([[0.8]]) == [0.8]
    assert metrics.learning_accuracy([[0.8]]) == 0.8
    assert metrics.forgetting([[0.8]]) == 0
    assert metrics.forgetting_by_task([[0.8]]) == []
    assert metrics.backward_transfer([[0.8]]) == 0
    assert metrics.forward_transfer([[0.8]], [0.1]) == 0


def test_tensors_and_arrays_are_matrices_too():
    for matrix in (torch.tensor(MATRIX, dtype=torch.float64), np.array(MATRIX)):
        assert metrics.forgetting(matrix) == metrics.forgetting(MATRIX)  # pyright: ignore[reportArgumentType]


@given(
    st.integers(2, 5).flatmap(
        lambda t: st.lists(st.lists(st.floats(0, 1), min_size=t, max_size=t), min_size=t, max_size=t)
    )
)
def test_forgetting_is_at_least_the_harm_done_backward(matrix):
    assert metrics.forgetting(matrix) >= -metrics.backward_transfer(matrix) - 1e-12
    assert -1 <= metrics.forgetting(matrix) <= 1


@pytest.mark.parametrize(
    "metric",
    [
        metrics.average_accuracy,
        metrics.forgetting,
        metrics.forgetting_by_task,
        metrics.backward_transfer,
        metrics.learning_accuracy,
        lambda matrix: metrics.forward_transfer(matrix, [0.1, 0.1]),
    ],
)
@pytest.mark.parametrize(("matrix", "lengths"), [([[0.9], [0.8, 0.7]], [1, 2]), ([], []), ([[0.9, 0.8]], [2])])
def test_a_matrix_is_square(metric, matrix, lengths):
    with pytest.raises(OptionError) as caught:
        metric(matrix)
    assert str(caught.value) == (
        f"accuracy matrix: found rows of lengths {lengths}, expected T rows of T accuracies, T >= 1."
    )


def test_a_baseline_has_an_entry_a_task():
    with pytest.raises(OptionError, match="forward_transfer: found a baseline of 2 tasks, expected 3, one a task."):
        metrics.forward_transfer(MATRIX, [0.1, 0.1])


@pytest.mark.parametrize(
    ("level", "degrees", "t"),
    [  # the usual tables
        (0.95, 1, 12.7062),
        (0.95, 2, 4.30265),
        (0.95, 3, 3.18245),
        (0.95, 4, 2.77645),
        (0.95, 9, 2.26216),
        (0.95, 29, 2.04523),
        (0.95, 30, 2.04227),
        (0.95, 100, 1.98397),
        (0.99, 5, 4.03214),
        (0.9, 8, 1.85955),
        (0.5, 1, 1.0),
    ],
)
def test_half_widths_are_those_of_the_tables(level, degrees, t):
    assert half_width(level, degrees) == pytest.approx(t, rel=3e-6)


def half_width(level: float, degrees: int) -> float:
    """Of an interval of one standard error: Student's t itself."""
    n = degrees + 1
    values = np.arange(n) / np.arange(n).std(ddof=1) * math.sqrt(n)
    return metrics.confidence_interval(list(values), level)[1]


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_student_t_in_closed_form(level):
    assert half_width(level, 1) == pytest.approx(math.tan(math.pi * level / 2), rel=1e-9)
    assert half_width(level, 2) == pytest.approx(level * math.sqrt(2 / (1 - level**2)), rel=1e-9)
    c = math.cos(math.acos(math.sqrt(1 - level**2)) / 3) / math.sqrt(1 - level**2)
    assert half_width(level, 4) == pytest.approx(2 * math.sqrt(c - 1), rel=1e-9)


def test_student_t_of_many_degrees_is_normal():
    assert half_width(0.95, 100_000) == pytest.approx(1.959964, rel=2e-5)


def test_without_scipy_a_single_seed_has_its_figures(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert metrics.confidence_interval([0.7]) == (0.7, math.inf)
    with pytest.raises(OptionError, match=r'computed with scipy, which is not .*: pip install "torch-holdfast\['):
        metrics.confidence_interval([0.7, 0.8])


def test_confidence_interval_by_hand():
    mean, half_width = metrics.confidence_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half_width == pytest.approx(4.30265 * 1.0 / math.sqrt(3), rel=1e-5)
    assert metrics.confidence_interval([0.5, 0.5]) == (0.5, 0.0)
    assert metrics.confidence_interval([0.7]) == (0.7, math.inf)


def test_confidence_intervals_hold_the_mean_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(size=(1000, 5))
    held = [abs(mean) <= half for mean, half in (metrics.confidence_interval(list(row), 0.9) for row in draws)]
    assert np.mean(held) == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 1000))


def test_an_interval_needs_a_value():
    with pytest.raises(EmptyDataError, match="confidence_interval: found no values, expected at least one."):
        metrics.confidence_interval([])


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_is_a_share(level):
    with pytest.raises(OptionError, match=f"confidence_interval: level={level}, expected a share above 0 and below 1"):
        metrics.confidence_interval([1.0, 2.0], level)


def test_the_forgetting_ratio_is_0_of_joint_training_and_minus_1_of_chance():
    joint, chance = [0.9, 0.8], [0.5, 0.2]
    assert metrics.forgetting_ratio(joint, joint=joint, chance=chance) == 0.0
    assert metrics.forgetting_ratio(chance, joint=joint, chance=chance) == -1.0
    assert metrics.forgetting_ratio([0.7, 0.8], joint=joint, chance=chance) == pytest.approx(-0.25)
    with pytest.raises(OptionError, match="expected as many, one a task"):
        metrics.forgetting_ratio([0.7], joint=joint, chance=chance)
    with pytest.raises(OptionError, match="joint training is no better than chance"):
        metrics.forgetting_ratio([0.7, 0.8], joint=chance, chance=chance)
