"""Forward passes of estimators that cover nothing: whether each example has its rows where a layout says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from holdfast.moments.calls import Call
from holdfast.moments.gradients import tolerance
from holdfast.moments.intercept import Key
from holdfast.moments.layout import Layout
from holdfast.moments.study import few_examples, study
from holdfast.moments.watching import Choices, Watching

T = TypeVar("T")

_TRIALS = 8
"""Batches whose first examples are studied because the batch has something that an earlier one had not."""


class Places:
    """What is known of the places of the examples in a model.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._trials = model, _TRIALS
        self._layouts: dict[Key, Layout | None] = {}
        self._choices: set[Choices] = set()
        self._hidden = self._studied = False

    def run(self, call: Call, forward: Callable[[Watching], T]) -> tuple[T, bool]:
        """A forward pass, and whether all its layers had the examples where shapes say.

        Args:
            call: a batch.
            forward: runs the model on it, and calls `Watching.meet` at every layer; again after a study.

        Cost: a study of a few examples for the first batches that have something new.
        """
        if not self._studied and call.size > 1:
            self._study(call)
        while True:
            watching = Watching({}, self._layouts, self._choices, call.size, hidden=self._hidden)
            with watching:
                found = forward(watching)
            unknown = watching.missing or (watching.moved and not watching.by_rows)
            if call.size == 1 or not watching.late or not unknown or not self._trials:
                return found, call.size == 1 or not watching.late
            self._trials -= 1
            self._study(call)

    def _study(self, call: Call) -> None:
        self._studied = True
        seen = study(self._model, few_examples(call), tracked={}, rtol=tolerance(self._model))
        self._layouts |= seen.layouts
        self._choices |= seen.choices
        self._hidden = self._hidden or seen.hidden
