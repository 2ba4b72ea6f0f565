"""Forward passes of estimators that cover nothing: whether each example has the rows in a batch that it has alone."""

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
        any_order: whether the rows of the examples may be anywhere, as long as there are as many.
    """

    def __init__(self, model: nn.Module, *, any_order: bool = False) -> None:
        self._model, self._trials, self._any_order = model, _TRIALS, any_order
        self._layouts: dict[Key, Layout | None] = {}
        self._choices: set[Choices] = set()
        self._hidden = self._studied = False

    def run(self, call: Call, forward: Callable[[Watching], T]) -> tuple[T, bool]:
        """A forward pass, and whether all its layers had the rows of each example alone, and where shapes say.

        Numbers that the data told Python, such as the longest length, may be those of a batch before, and the lengths
        of the examples others: it is not known then. Yes and no are taken for what they were, but between layers.

        Args:
            call: a batch.
            forward: runs the model on it, and calls `Watching.meet` at every layer; again after a study.

        Cost: a study of a few examples for the first batches that have something new.
        """
        if not self._studied and call.size > 1:
            self._study(call)
        while True:
            hidden = self._hidden or call.has_numbers
            watching = Watching({}, self._layouts, self._choices, call.size, hidden=hidden)
            with watching:
                found = forward(watching)
            apart = watching.stretched or (watching.late and not self._any_order)
            unknown = watching.missing or (watching.moved and not watching.by_rows)
            if call.size == 1 or not apart or not unknown or not self._trials:
                return found, call.size == 1 or not apart
            self._trials -= 1
            self._study(call)

    def _study(self, call: Call) -> None:
        self._studied = True
        seen = study(self._model, few_examples(call), tracked={}, rtol=tolerance(self._model))
        self._layouts |= seen.layouts
        if seen.alike:
            self._choices |= seen.choices
        self._hidden = self._hidden or seen.hidden
