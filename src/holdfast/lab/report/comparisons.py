"""Which differences between methods are more than the luck of the seeds."""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import Any

import numpy as np

from holdfast.lab.frame import DataFrame

LEVEL = 0.05
"""Differences whose corrected p-value lies below are called clear."""


def comparisons(runs: DataFrame) -> DataFrame:
    """Paired t-tests of every two configurations over the seeds that both have, where those are two or more.

    A seed decides initial weights, order of examples and permutations alike for every method, so that differences are
    taken seed by seed.

    Args:
        runs: as `holdfast.lab.groups.labelled` has them.

    Returns:
        A row for each pair, in the order of the runs: `first` and `second`, the labels; `difference`, the mean of the
        first's accuracy minus the second's, a fraction, and `half_width`, of its 95% confidence interval; `p`,
        two-sided, of no difference; `p_corrected`, after Holm's correction for all the pairs; `seeds`, how many both
        have.
    """
    import pandas as pd
    from scipy import stats

    labels = runs.drop_duplicates(["method", "variant"]).set_index(["method", "variant"])["configuration"]
    by_seed = runs.pivot(index="seed", columns=["method", "variant"], values="accuracy")
    rows = []
    for first, second in combinations(labels.index, 2):
        differences = (by_seed[first] - by_seed[second]).dropna()
        if len(differences) < 2:
            continue
        with warnings.catch_warnings():  # of differences that are all the same; p is then 0, or missing where all are 0
            warnings.simplefilter("ignore", RuntimeWarning)
            test: Any = stats.ttest_1samp(differences, 0.0)
            low, high = test.confidence_interval(0.95)
        p = 1.0 if test.pvalue != test.pvalue else float(test.pvalue)
        rows.append((labels[first], labels[second], differences.mean(), (high - low) / 2, p, len(differences)))
    table = pd.DataFrame(rows, columns=["first", "second", "difference", "half_width", "p", "seeds"])
    table.insert(5, "p_corrected", holm(table["p"]))
    return table


def holm(p: Any) -> Any:
    """Corrected p-values: the k-th smallest of m times m - k + 1, never below a smaller one's, at most 1.

    Args:
        p: a Series of them.

    Returns:
        A Series of the same index.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    ascending = p.astype(float).sort_values()
    return (ascending * np.arange(len(p), 0, -1)).cummax().clip(upper=1.0)


def p_text(p: float) -> str:
    """A p-value as people read it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
