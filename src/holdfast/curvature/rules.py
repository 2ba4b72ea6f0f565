"""The rules by which a new task's importance joins that of the earlier ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from holdfast.errors import OptionError


@dataclass(frozen=True)
class Decayed:
    """Accumulation rule of online EWC: what is held fades by `gamma` (0..1) at every new task."""

    gamma: float

    def __post_init__(self) -> None:
        if not (isinstance(self.gamma, int | float) and 0 <= self.gamma <= 1):
            raise OptionError(f"Decayed: gamma is {self.gamma!r}; expected a number from 0 (forget) to 1 (sum).")


Accumulate = Literal["sum", "mean", "max", "per_task"] | Decayed
Weighting = Literal["task", "examples"]


def joined(held: Tensor, new: Tensor, rule: Accumulate, *, num_tasks: int) -> Tensor:
    """The importance after one more task than `num_tasks`.

    Raises:
        OptionError: an unknown rule.
    """
    match rule:
        case "sum" | "per_task":
            return held + new
        case "mean":
            return (new + num_tasks * held) / (num_tasks + 1)
        case "max":
            return torch.maximum(held, new)
        case Decayed(gamma):
            return gamma * held + new
        case _:
            raise _unknown(rule, "retain")


def check_rule(rule: Accumulate, *, where: str = "retain") -> None:
    """Raise `OptionError` unless it is a rule."""
    if not isinstance(rule, Decayed) and rule not in ("sum", "mean", "max", "per_task"):
        raise _unknown(rule, where)


def _unknown(rule: object, where: str) -> OptionError:
    return OptionError(f'{where}: accumulate is {rule!r}; expected "sum", "mean", "max", "per_task" or Decayed(gamma).')


def shares_of(rule: Accumulate, *, num_tasks: int) -> tuple[float, float]:
    """By how much the held and the new are multiplied before they are added.

    Raises:
        OptionError: a rule that does more than add.
    """
    match rule:
        case "sum" | "per_task":
            return 1.0, 1.0
        case "mean":
            return num_tasks / (num_tasks + 1), 1 / (num_tasks + 1)
        case Decayed(gamma):
            return gamma, 1.0
        case _:
            raise OptionError(
                f'retain: accumulate is {rule!r}, a rule that Kronecker factors do not have; expected "sum", "mean", '
                '"per_task" or Decayed(gamma). Choose one of these, or retain importance.to_diagonal().'
            )
