"""What methods share that give each task weights of its own: they must know which task it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from holdfast.errors import OptionError
from holdfast.lab.methods.learner import Setting


def check_told(setting: Setting, *, method: str) -> None:
    """Raise `OptionError` unless the task is told at test time, and has a head."""
    if (setting.scenario, setting.mask) != ("task", "task"):
        raise OptionError(
            f"{method}: the scenario is {setting.scenario!r} and the mask {setting.mask!r}; it must know the task at "
            "test time, and have a head for each. Set scenario task, with its own mask."
        )


class OtherRows:
    """The rows of a last layer that are not of the task at hand: an optimizer's decay and momentum leave them alone.

    Args:
        head: whose parameters have a row for each output column.
        own: the columns of the task.
    """

    def __init__(self, head: nn.Module, own: Sequence[int]) -> None:
        self._own = list(own)
        self._kept = {parameter: parameter.detach().clone() for parameter in head.parameters()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for parameter, kept in self._kept.items():
            kept[self._own] = parameter[self._own]
            parameter.copy_(kept)
