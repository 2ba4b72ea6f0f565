"""Forward passes of estimators that cover nothing: whether each example has the rows in a batch that it has alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from holdfast.moments.calls import Call
from holdfast.moments.company import Company
from holdfast.moments.coupling import check_independent, coupled, floats_in
from holdfast.moments.gradients import tolerance
from holdfast.moments.intercept import Key
from holdfast.moments.layout import Layout, equal_but_for_rounding
from holdfast.moments.study import TOGETHER_BYTES, Study, few_examples, room_for, study
from holdfast.moments.watching import Choices, Watching
from holdfast.tensors import unwrap

T = TypeVar("T")

_TRIALS = 8
"""Batches whose first examples are studied because the batch has something that an earlier one had not."""


class Places:
    """What is known of the places of the examples in a model.

    Args:
        model: in evaluation mode.
        any_order: whether the rows of the examples may be anywhere, as long as there are as many.
        where: the estimator, for the message of the check that the model does not mix its examples, which the first
            study makes on the way; None where that was checked before.
    """

    def __init__(self, model: nn.Module, *, any_order: bool = False, where: str | None = None) -> None:
        self._model, self._trials, self._any_order, self._where = model, _TRIALS, any_order, where
        self._layouts: dict[Key, Layout | None] = {}
        self._choices: set[Choices] = set()
        self._company = Company(model)
        self._hidden = self._studied = self._met = False
        self._bytes_per_example = 0

    def room(self, chunk_bytes: int = TOGETHER_BYTES) -> int:
        """How many examples like those studied go together well; 0 where nothing is known."""
        return room_for(self._bytes_per_example, chunk_bytes)

    def run(self, call: Call, forward: Callable[[Watching], T]) -> tuple[T, bool]:
        """A forward pass, and whether all its layers had the rows of each example alone, and where shapes say.

        Numbers that the data told Python, such as the longest length, may be those of a batch before, and the lengths
        of the examples others: it is not known then. Yes and no are taken for what they were, but between layers.

        Args:
            call: a batch.
            forward: runs the model on it, and calls `Watching.meet` at every layer; again after a study.

        Raises:
            CoupledExamplesError, RandomOutputsError: the outputs for an example depend on the others, or on chance.

        Cost: a study of a few examples for the first batches that have something new.
        """
        company = self._company
        if company.any(not self._studied and call.size > 1):
            self._study(call)
        elif not self._met and self._where is not None and company.is_alone:
            check_independent(self._model, call, where=self._where)
        self._met = True
        while True:
            hidden = self._hidden or call.has_numbers
            watching = Watching({}, self._layouts, self._choices, call.size, hidden=hidden)
            with company.following(watching, tracks=False), watching:
                found = forward(watching)
            apart = watching.stretched or (watching.late and not self._any_order)
            unknown = watching.missing or (watching.moved and not watching.by_rows)
            if not company.any(call.size > 1 and apart and bool(unknown)) or not self._trials:
                return found, not company.any(call.size > 1 and apart)
            self._trials -= 1
            self._study(call)

    def _study(self, call: Call) -> None:
        company = self._company
        few, rtol = few_examples(call, company), tolerance(self._model, company)
        where = None if self._studied else self._where
        self._studied = True
        try:
            seen = study(self._model, few, tracked={}, rtol=rtol, company=company)
        except ValueError:  # what batch norm says to one example alone
            if where is not None:
                check_independent(self._model, call, where=where)
            raise
        coupled_here = where is not None and not (seen.independent and self._repeats(few, seen, rtol))
        company.rest()
        if where is not None and company.any(coupled_here):
            if not company.is_alone:
                raise coupled(self._model, where=where)
            check_independent(self._model, call, where=where)
        self._layouts |= seen.layouts
        if seen.alike:
            self._choices |= seen.choices
        self._hidden = self._hidden or seen.hidden
        self._bytes_per_example = max(self._bytes_per_example, seen.bytes_per_example)

    def _repeats(self, few: Call, seen: Study, rtol: float) -> bool:
        """Whether a second run gives the same outputs: of one example, where that shows all of them."""
        one = floats_in(few.examples(0, 1)(unwrap(self._model)))
        pairs = [(a[:1], b) for a, b in zip(seen.outputs, one) if a.ndim]
        if len(pairs) < len(seen.outputs) or any(a.shape != b.shape for a, b in pairs):
            pairs = list(zip(seen.outputs, floats_in(few(unwrap(self._model)))))
        return all(equal_but_for_rounding(a, b, rtol) for a, b in pairs)
