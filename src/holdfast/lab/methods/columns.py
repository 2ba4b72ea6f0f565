"""The rows of the last layer that belong to the output columns in a loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from holdfast.records import Importance


def of_columns(values: Mapping[str, Tensor], classes: Iterable[int] | None) -> dict[str, Tensor]:
    """Zero for the output columns that took no part: heads of other tasks, which this task must not hold.

    For what does not pass through the loss. The last layer's weight and bias have a row for each column.

    Args:
        values: name -> a value for each weight; the last two are the last layer's.
        classes: the columns that took part; None: all.
    """
    found = dict(values)
    if classes is not None:
        for name in list(found)[-2:]:
            rows = torch.zeros_like(found[name])
            rows[list(classes)] = found[name][list(classes)]
            found[name] = rows
    return found


def importance_of_columns(importance: Importance, classes: Iterable[int] | None) -> Importance:
    """An importance likewise."""
    return Importance(of_columns(importance, classes), importance.info)
