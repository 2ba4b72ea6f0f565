"""Watching a forward pass for functions after which the examples may be elsewhere than before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from holdfast.moments.arrangement import CHOICES, SELECTIONS, Along, worked_along
from holdfast.moments.intercept import Interception, Key, Tracked
from holdfast.moments.layout import UNBATCHED, Layout
from holdfast.moments.transforms import transformed

Choices = tuple[str, ...]
"""The numbers of the data that Python was told in a forward pass, in order."""


class Watching(Interception):
    """Notes what may move the examples of a batch, or change the lengths of what comes out.

    Args:
        parameters: those that are tracked.
        layouts: what is known, also of the operands of functions that work along axes.
        choices: numbers of the data that Python was told in a forward pass for which the layouts held, and every
            beginning of these.
        size: examples in the batch.
        hidden: whether something that cannot be seen may move them.

    Attributes:
        layouts, size: as given.
        missing: what was met that is not among the layouts, or does not fit its own.
        moved: whether a function was met after which the examples may be anywhere.
        by_rows: whether it was one that arranges rows, rather than a number that Python was told.
        resized: whether the data may have decided on the length of a tensor.
        selects: whether they did: rows were selected by their values.
        chosen: the numbers that Python was told.
        late: whether a layer was met after such a function.
        stretched: whether a layer was met that may have more or fewer rows than for the examples alone.
    """

    def __init__(
        self,
        parameters: Mapping[int, Tracked],
        layouts: Mapping[Key, Layout | None],
        choices: Set[Choices],
        size: int,
        *,
        hidden: bool = False,
    ) -> None:
        super().__init__(parameters)
        self.layouts, self._choices, self.size = layouts, choices, size
        self.missing: set[Key] = set()
        self.moved = self.by_rows = self.resized = hidden
        self.late = self.stretched = self._met = False
        self.selects = False
        self.chosen: Choices = ()

    def meet(self) -> None:
        """A layer is met."""
        self._met = True
        self.late = self.late or self.moved
        self.stretched = self.stretched or self.resized or (self.moved and not self.by_rows)

    def other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function returns that may arrange rows as the data say; noted if it may."""
        if func in CHOICES:
            result = func(*args, **kwargs)
            self.chosen += (repr(result),)
            self.moved = self.moved or self.chosen not in self._choices
            self.resized = self.resized or self._met or not isinstance(result, bool)  # a loop that goes on for some?
            return result
        operands = worked_along(func, args, kwargs)
        self.by_rows = self.by_rows or transformed() or operands is None or self._moves(func, operands)
        self.moved = self.moved or self.by_rows
        picks = any(operand.picks for operand in operands or ())
        self.resized = self.resized or operands is None or picks
        self.selects = self.selects or picks or func in SELECTIONS
        return func(*args, **kwargs)

    def _moves(self, func: Any, operands: Sequence[Along]) -> bool:
        """Whether examples may be elsewhere afterwards: where they are along the axes that it works along."""
        for number, operand in enumerate(operands):
            key = self.along_key(func, operand, number)
            layout = self.layouts.get(key)
            if key not in self.layouts:
                self.missing.add(key)
            if layout == UNBATCHED and not operand.picks:
                continue
            if layout is None or layout == UNBATCHED or not layout.fits(operand.tensor, self.size):
                return True
            if layout.axis in operand.axes and not (layout == Layout(0) and operand.counts(self.size)):
                return True
        return False


def beginnings(choices: Choices) -> set[Choices]:
    """The choices and every beginning of them, the empty one too."""
    return {choices[:length] for length in range(len(choices) + 1)}
