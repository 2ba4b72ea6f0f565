"""What an accuracy matrix says, and how sure a mean over seeds is.

`matrix[t][j]` is the accuracy, a fraction, on task j after task t was learned: T x T, tasks counted from 0. With one
task there is nothing to forget and nothing to transfer, and those metrics are 0.

scipy is asked for only where there are several seeds: importing its statistics takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from holdfast.errors import EmptyDataError, OptionError
from holdfast.lab.packages import check_installed

Matrix = Sequence[Sequence[float]]


def average_accuracy(matrix: Matrix) -> list[float]:
    """Entry t: the mean accuracy after task t on the tasks so far, mean over j <= t of a_tj.

    Raises:
        OptionError: the matrix is not square.
    """
    return [float(row[: t + 1].mean()) for t, row in enumerate(_square(matrix))]


def forgetting(matrix: Matrix) -> float:
    """How much was lost of the best that was reached: the mean of `forgetting_by_task`.

    Negative where later tasks helped. Source: Chaudhry et al. 2018, arXiv 1801.10112.

    Raises:
        OptionError: the matrix is not square.
    """
    return _mean(forgetting_by_task(matrix))


def forgetting_by_task(matrix: Matrix) -> list[float]:
    """Entry j < T - 1: max over l from j to T - 2 of a_lj, less a_(T-1)j, the accuracy at the end.

    Departs from the source of `forgetting` in that l begins at j: what was right by luck before task j was not learned.

    Raises:
        OptionError: the matrix is not square.
    """
    a = _square(matrix)
    return [float(a[j:-1, j].max() - a[-1, j]) for j in range(len(a) - 1)]


def backward_transfer(matrix: Matrix) -> float:
    """What later tasks did to earlier ones: mean over j < T - 1 of a_(T-1)j - a_jj. Negative where they harmed.

    Source: Lopez-Paz & Ranzato 2017, arXiv 1706.08840.

    Raises:
        OptionError: the matrix is not square.
    """
    a = _square(matrix)
    return _mean([a[-1, j] - a[j, j] for j in range(len(a) - 1)])


def forward_transfer(matrix: Matrix, baseline: Sequence[float]) -> float:
    """What earlier tasks did for later ones: mean over j >= 1 of a_(j-1)j - baseline_j.

    Args:
        matrix: the accuracies.
        baseline: [T], the accuracy on each task of the untrained model.

    Source: Lopez-Paz & Ranzato 2017, arXiv 1706.08840.

    Raises:
        OptionError: the matrix is not square, or the baseline is not of its length.
    """
    a = _square(matrix)
    if len(baseline) != len(a):
        raise OptionError(
            f"forward_transfer: found a baseline of {len(baseline)} tasks, expected {len(a)}, one a task."
        )
    return _mean([a[j - 1, j] - baseline[j] for j in range(1, len(a))])


def learning_accuracy(matrix: Matrix) -> float:
    """How well each task was learned when it came: the mean of a_jj. Source: Riemer et al. 2019, arXiv 1810.11910.

    Raises:
        OptionError: the matrix is not square.
    """
    return float(np.diagonal(_square(matrix)).mean())


def forgetting_ratio(accuracies: Sequence[float], *, joint: Sequence[float], chance: Sequence[float]) -> float:
    """How far a method is behind joint training: 0 as good, -1 no better than chance.

        mean over tasks of (A - A_chance) / (A_joint - A_chance) - 1

    Args:
        accuracies: on each task after the last, [T].
        joint: of a network trained on the data of all tasks at once, likewise.
        chance: of an untrained one, or of a stratified guess.

    Raises:
        OptionError: the lengths differ, or joint training is no better than chance.

    Source: Serra et al. 2018, arXiv 1801.01423, equation 6.
    """
    a, best, worst = (np.asarray(values, dtype=np.float64) for values in (accuracies, joint, chance))
    if not a.shape == best.shape == worst.shape or a.ndim != 1 or not len(a):
        raise OptionError(
            f"forgetting_ratio: found {a.shape}, {best.shape}, {worst.shape} accuracies; expected as many, one a task."
        )
    if (best <= worst).any():
        raise OptionError("forgetting_ratio: joint training is no better than chance on a task. Train it for longer.")
    return float(((a - worst) / (best - worst) - 1).mean())


def confidence_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half width of the interval mean +- t * s / sqrt(n), Student's t with n - 1 degrees of freedom.

    Args:
        values: one a seed, taken as independent and normal.
        level: the share of such intervals that hold the true mean, above 0 and below 1.

    Returns:
        The mean, and the half width, infinite for one value, which tells nothing of the spread.

    Raises:
        EmptyDataError: there are no values.
        OptionError: the level is out of its range, or scipy is not installed, which more than one value needs.
    """
    if len(values) == 0:
        raise EmptyDataError("confidence_interval: found no values, expected at least one.")
    if not 0 < level < 1:
        raise OptionError(f"confidence_interval: level={level}, expected a share above 0 and below 1, such as 0.95.")
    sample = np.asarray(values, dtype=np.float64)
    n = len(sample)
    if n == 1:
        return float(sample[0]), math.inf
    check_scipy()
    from scipy import stats

    t = float(stats.t.isf((1 - level) / 2, n - 1))
    return float(sample.mean()), t * float(sample.std(ddof=1)) / math.sqrt(n)


def check_scipy() -> None:
    """Make sure that means over seeds can have intervals and tests, before time is spent on the runs.

    Raises:
        OptionError: scipy is not installed.
    """
    check_installed("scipy", what="intervals and tests over seeds are computed", extra="plots")


def _square(matrix: Matrix) -> np.ndarray:
    lengths = [len(row) for row in matrix]
    if not lengths or any(length != len(lengths) for length in lengths):
        raise OptionError(f"accuracy matrix: found rows of lengths {lengths}, expected T rows of T accuracies, T >= 1.")
    return np.asarray(matrix, dtype=np.float64)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
