"""Notices weights that move though no attached optimizer takes a step, and so are not held.

A training that moves them by other means than `step()` (SAM by hand, an optimizer that was never attached, one that
updates within the backward pass) runs backward passes all the same. A few entries of three parameters are noted in the
first backward pass after a held step, and compared before the next step, when the keeper is asked for a report, retains
or saves, and after every twelve backward passes without a step.

Not minded are weights that a user changes between a step and the next backward pass (`load_state_dict`, an exponential
average for evaluation, clipping), perturbations that are taken back before the step (noise, binary weights,
adversaries), and a common factor (weight decay by hand). Tables whose rows a forward pass scales to a bounded norm are
not watched: it does so before it uses a row, so that one that is held answers as before. After some steps in which all
was well nothing more is compared until the next task.

An optimizer around the one that is held may change the weights after each of its steps (WSAM), and another may train
what is held besides. So where there is such a one, and of held weights that no attached optimizer trains, those that
are elsewhere before a step than the last one left them, several times in a row, are reported too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from holdfast.tensors import some_entries

_PARAMETERS = 3
_STEPS = 16
"""Steps that are watched after an optimizer was attached or a task retained."""

_PASSES = 12
"""Backward passes without a step between comparisons: a multiple of the passes of most perturbations."""

_IN_A_ROW = 3
"""Steps in a row after which weights have changed, before it is reported."""


_borrowers: list[object] = []
"""Who has borrowed weights now. Not of one thread: backward passes on a device run in another."""


@contextmanager
def unwatched() -> Iterator[None]:
    """Weights are lent: what happens to them until they are given back, at the end of the block, is not looked at."""
    borrower = object()
    _borrowers.append(borrower)
    try:
        yield
    finally:
        _borrowers.remove(borrower)


def moved_by_steps_alone(parameters: Iterable[nn.Parameter], model: nn.Module) -> list[nn.Parameter]:
    """Those that no forward pass changes, as it does the rows of an `nn.Embedding(max_norm=...)` that it looks up."""
    bounded = {id(module.weight) for module in model.modules() if getattr(module, "max_norm", None) is not None}
    return [parameter for parameter in parameters if id(parameter) not in bounded]


class UnheldDetector:
    """Compares some parameters of the attached optimizers, to find those that move without being held.

    Args:
        found: called once, when weights have moved without a step.
        found_around: called once, when an optimizer around an attached one has changed them after its steps.
    """

    def __init__(self, found: Callable[[], None], found_around: Callable[[], None]) -> None:
        self._found, self._found_around = found, found_around
        self._parameters: list[nn.Parameter] = []
        self._around: list[nn.Parameter] = []
        self._handles: list[Any] = []
        self.stop()

    def add(self, parameters: Sequence[nn.Parameter], *, around: bool = False) -> None:
        """Watch these too, from the next `start` on; `around`: another optimizer takes the steps that are held."""
        added = _spread(parameters)
        self._parameters += added
        if around:
            self._around += added

    def start(self, *, others: Sequence[nn.Parameter] = ()) -> None:
        """Watch from now on, for some steps; `others`: are held, and trained by no attached optimizer."""
        self.stop()
        self._steps_left = _STEPS
        self._others = _spread(others)
        self._note_left()
        for parameter in [p for p in self._parameters if p.requires_grad]:
            # a hook of the parameter itself would leave an empty table of hooks on it
            node = get_gradient_edge(parameter).node
            self._handles.append(node.register_hook(lambda *_, p=parameter: self._after_backward(p)))
            self._nodes.append(node)  # which the parameter does not keep

    def remove(self) -> None:
        """Leave the parameters as they were, and forget them."""
        self.stop()
        self._parameters.clear()
        self._around.clear()

    def before_step(self) -> None:
        """An attached optimizer begins a step."""
        self.compare()
        self._look_around()
        self._in_step = True

    @property
    def is_on(self) -> bool:
        """Whether steps are watched."""
        return bool(self._handles)

    def without_gradients(self, resting: Sequence[nn.Parameter]) -> None:
        """These have no gradient in this step, and so should not move."""
        self._unmoved = {p: some_entries(p) for p in resting[:_PARAMETERS]}

    def after_step(self) -> None:
        """The step is over."""
        self._in_step = False
        self._noted.clear()
        self._before.clear()
        unmoved, self._unmoved = self._unmoved, {}
        if any(p.grad is None and not _same(before, some_entries(p)) for p, before in unmoved.items()):
            self.stop()
            self._found()
        if self._handles:
            self._steps_left -= 1
            if self._steps_left <= 0:
                self.stop()
            self._note_left()

    def compare(self) -> None:
        """Report weights that have moved since the first backward pass after the last step."""
        if not self._in_step and any(self._has_moved(p, some_entries(p)) for p in self._noted):
            self.stop()
            self._found()

    def _after_backward(self, parameter: nn.Parameter) -> None:
        if self._in_step or _borrowers:
            return
        if parameter not in self._noted:
            self._noted[parameter] = _Noted(some_entries(parameter))
        noted = self._noted[parameter]
        noted.passes += 1
        if noted.passes % _PASSES == 0 and not self._before:
            self._before = {p: some_entries(p) for p in self._noted}
        elif noted.passes % _PASSES == 1 and self._before:
            before, self._before = self._before, {}
            if self._are_on_their_way(before):
                self.compare()

    def _are_on_their_way(self, before: Mapping[nn.Parameter, Tensor]) -> bool:
        """Whether the parameters went on from one backward pass to the next, and not to another place around."""
        now = {p: some_entries(p) for p in before}
        return _distance(before, now) < 0.5 * _distance({p: self._left[p] for p in before}, now)

    def _has_moved(self, parameter: nn.Parameter, now: Tensor) -> bool:
        """Whether a parameter is neither where the first backward pass found it nor where the last step left it."""
        first = self._noted[parameter].first
        return not (_same(first, now) or _same(self._left[parameter], now) or _is_scaled(first, now))

    def _look_around(self) -> None:
        for parameters, found in ((self._around, self._found_around), (self._others, self._found)):
            if any(self._moves_each_time(p) for p in parameters if p in self._left):
                self.stop()
                found()

    def _moves_each_time(self, parameter: nn.Parameter) -> bool:
        left, now = self._left[parameter], some_entries(parameter)
        stays = _same(left, now) or _is_scaled(left, now)
        self._in_a_row[parameter] = 0 if stays else self._in_a_row[parameter] + 1
        return self._in_a_row[parameter] > _IN_A_ROW  # the first may be a user's, before training

    def _note_left(self) -> None:
        """Note where the last step, or the user who starts, left the parameters."""
        if self._steps_left > 0:
            self._left = {p: some_entries(p) for p in (*self._parameters, *self._others)}

    def stop(self) -> None:
        """Watch no more, until the next `start`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes: list[Any] = []
        self._others: list[nn.Parameter] = []
        self._noted: dict[nn.Parameter, _Noted] = {}
        self._left: dict[nn.Parameter, Tensor] = {}
        self._before: dict[nn.Parameter, Tensor] = {}
        self._unmoved: dict[nn.Parameter, Tensor] = {}
        self._in_a_row: Counter[nn.Parameter] = Counter()
        self._in_step = False
        self._steps_left = 0


@dataclass
class _Noted:
    """Of a parameter, since the last step.

    Attributes:
        first: its entries in the first backward pass.
        passes: backward passes so far.
    """

    first: Tensor
    passes: int = 0


def _spread(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    count = min(_PARAMETERS, len(parameters))
    return [parameters[i * (len(parameters) - 1) // max(count - 1, 1)] for i in range(count)]


def _same(before: Tensor, now: Tensor) -> bool:
    """Whether nothing moved beyond the rounding of a perturbation taken back; a weight that is NaN stays one."""
    if before.device != now.device or before.dtype != now.dtype or before.shape != now.shape:  # which is no training
        return True
    return torch.equal(before, now) or torch.allclose(before, now, rtol=1e-6, atol=1e-7, equal_nan=True)


def _is_scaled(before: Tensor, now: Tensor) -> bool:
    """Whether weights were made smaller by a common factor, as weight decay does."""
    if before.numel() < 2:
        return False
    start, end = before.float(), now.float()
    size = float(start.dot(start))
    factor = float(start.dot(end)) / size if size > 0 else 0.0
    tolerance = 4 * torch.finfo(now.dtype).eps
    return 0.5 < factor < 1 and torch.allclose(start * factor, end, rtol=tolerance, atol=1e-7)


def _distance(start: Mapping[nn.Parameter, Tensor], end: Mapping[nn.Parameter, Tensor]) -> float:
    pairs = [(start[p].float(), end[p].float()) for p in end if start[p].shape == end[p].shape]
    return sum(float((b - a).square().sum()) for a, b in pairs) ** 0.5
