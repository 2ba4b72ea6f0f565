"""Notices weights that move though no attached optimizer takes a step, and so are not held.

A training that moves them by other means than `step()` (SAM by hand, an optimizer that was never attached, one that
updates within the backward pass) runs backward passes all the same. A few entries of three parameters are noted in the
first backward pass after a held step, and compared before the next step, when the keeper is asked for a report, retains
or saves, and in every twelfth backward pass without a step. Weights that a user changes between a step and the next
backward pass (`load_state_dict`, an exponential average for evaluation, clipping) are not minded, nor are perturbations
that are taken back before the step. After some steps in which all was well nothing more is compared until the next
task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Watch:
    """Watches some parameters of the attached optimizers.

    Args:
        found: called once, when weights have moved without a step.
    """

    def __init__(self, found: Callable[[], None]) -> None:
        self._found = found
        self._parameters: list[nn.Parameter] = []
        self._handles: list[Any] = []
        self._nodes: list[Any] = []
        self._noted: dict[nn.Parameter, tuple[int, Tensor]] = {}
        self._unmoved: dict[nn.Parameter, Tensor] = {}
        self._steps_left = 0
        self._in_step = False

    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Watch these too, from the next `start` on."""
        count = min(_PARAMETERS, len(parameters))
        self._parameters += [parameters[i * (len(parameters) - 1) // max(count - 1, 1)] for i in range(count)]

    def start(self) -> None:
        """Watch from now on, for some steps."""
        self.stop()
        self._steps_left = _STEPS
        for parameter in [p for p in self._parameters if p.requires_grad]:
            # a hook of the parameter itself would leave an empty table of hooks on it
            node = get_gradient_edge(parameter).node
            self._handles.append(node.register_hook(lambda *_, p=parameter: self._after_backward(p)))
            self._nodes.append(node)  # which the parameter does not keep

    def remove(self) -> None:
        """Leave the parameters as they were, and forget them."""
        self.stop()
        self._parameters.clear()

    def before_step(self) -> None:
        """An attached optimizer begins a step."""
        self.compare()
        self._in_step = True

    def without_gradients(self, held: Sequence[nn.Parameter]) -> None:
        """None of the weights that are held has a gradient in this step, and so none should move."""
        self._unmoved = {p: some_entries(p) for p in held[:_PARAMETERS]}

    def after_step(self, *, held: bool) -> None:
        """The step is over; `held`: some weights had a gradient and were held."""
        self._in_step = False
        self._noted.clear()
        unmoved, self._unmoved = self._unmoved, {}
        if not held and any(not _same(before, some_entries(p)) for p, before in unmoved.items()):
            self.stop()
            self._found()
        if self._handles:
            self._steps_left -= 1
            if self._steps_left <= 0:
                self.stop()

    def compare(self) -> None:
        """Report weights that have moved since the first backward pass after the last step."""
        if not self._in_step and any(not _same(before, some_entries(p)) for p, (_, before) in self._noted.items()):
            self.stop()
            self._found()

    def _after_backward(self, parameter: nn.Parameter) -> None:
        if self._in_step:
            return
        passes, before = self._noted.get(parameter) or (0, some_entries(parameter))
        self._noted[parameter] = passes + 1, before
        if passes and passes % _PASSES == 0:
            self.compare()

    def stop(self) -> None:
        """Watch no more, until the next `start`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes.clear()
        self._noted.clear()
        self._unmoved.clear()
        self._in_step = False


def _same(before: Tensor, now: Tensor) -> bool:
    """Whether nothing moved beyond the rounding of a perturbation taken back; a weight that is NaN stays one."""
    if before.device != now.device or before.dtype != now.dtype:  # which is no training
        return True
    return torch.allclose(before, now, rtol=1e-6, atol=1e-7, equal_nan=True)
