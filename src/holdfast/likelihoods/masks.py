"""Which output columns take part in the loss and in the prediction of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from holdfast.errors import UnknownNameError

Scenario = Literal["task", "domain", "class"]
"""What is to be told at test time: the class, the task being known ("task"); the class, the same classes
standing in every task ("domain"); the class among those of all tasks ("class"). van de Ven & Tolias,
arXiv 1904.07734."""

Mask = Literal["task", "seen", "all"]
"""The output columns that take part: those of the task at hand, of the tasks so far, or all."""


def active_classes(mask: Mask, task_classes: Sequence[Sequence[int]], t: int) -> tuple[int, ...] | None:
    """The output columns that take part at task `t` under a mask.

    Args:
        mask: "task": the classes of task t (one head a task); "seen": those of tasks 0..t; "all": no mask.
        task_classes: the classes of every task.
        t: the number of the task, from 0.

    Returns:
        Column numbers: in the task's own order for "task", ascending for "seen"; None for "all".

    Raises:
        UnknownNameError: the mask is none of these.
    """
    if mask == "task":
        return tuple(task_classes[t])
    if mask == "seen":
        return tuple(sorted({column for classes in task_classes[: t + 1] for column in classes}))
    if mask == "all":
        return None
    raise UnknownNameError("mask", mask, get_args(Mask))


def predict(logits: Tensor, classes: Sequence[int] | None) -> Tensor:
    """The most probable class among `classes`, in the numbering of the full output.

    Args:
        logits: [..., C].
        classes: the columns that take part; None for all.

    Returns:
        int64 of shape [...].
    """
    if classes is None:
        return logits.argmax(dim=-1)
    columns = torch.tensor(classes, device=logits.device)
    return columns[logits[..., columns].argmax(dim=-1)]
