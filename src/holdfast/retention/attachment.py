"""A keeper at one optimizer: what it counts, keeps and measures there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch.optim import Optimizer

from holdfast.retention.holdings import Holdings
from holdfast.retention.mechanism import Mechanism
from holdfast.retention.meter import Figures, Meter
from holdfast.retention.options import own_weights_warning
from holdfast.retention.plan import Plan
from holdfast.retention.statistics import HeldStatistics
from holdfast.retention.step import Step
from holdfast.retention.unheld import UnheldDetector
from holdfast.steps import Copies, StepHooks, has_moved

_places = count()


class Attachment:
    """Drives a mechanism at every step of one optimizer, through the optimizer's hooks.

    Args:
        optimizer: the bare one.
        mechanism: what is done to the weights.
        holdings: what is held.
        plan: which of its weights are held.
        copies: looks for weights in the optimizer's own state.
        unheld: looks for weights that move without being held.
        statistics: holds buffers that the forward pass changes, or looks for them.
        log_every: every so many of its steps are measured; 0: none.
        stepped: called after every step that was held, with the attachment itself.
        measured: called after a measured step.

    Attributes:
        num_steps: of this optimizer, held since the last task was closed.
        made_up: how many of them there were when the mechanism last acted between two steps (`finish`).
        around: the kind of an optimizer around it, which may change the weights after its steps; None for none.
        has_own_weights: whether it is known to go on from weights of its own, of which its user was told.
        place: among the attachments of an optimizer; those of smaller ones are called first.
        figures: of the last measured step; None before the first.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        mechanism: Mechanism,
        holdings: Holdings,
        plan: Plan,
        copies: Copies,
        unheld: UnheldDetector,
        statistics: HeldStatistics,
        log_every: int,
        stepped: Callable[[Attachment], None],
        measured: Callable[[], None],
        num_steps: int = 0,
        made_up: int = 0,
        around: str | None = None,
        has_own_weights: bool = False,
    ) -> None:
        self.optimizer, self.around = optimizer, around
        self.num_steps, self.made_up = num_steps, made_up
        self.has_own_weights = has_own_weights
        self.figures: Figures | None = None
        self._mechanism, self._holdings, self._plan = mechanism, holdings, plan
        self._copies, self._unheld, self._statistics = copies, unheld, statistics
        self._log_every, self._stepped, self._measured = log_every, stepped, measured
        self._memory: dict[str, Any] = {}
        self._step: Step | None = None
        self._hooks = StepHooks(optimizer, before=self._before, gradients=self._at_gradients, after=self._after)
        self.place = next(_places)

    def place_last(self) -> None:
        """Be called after all other attachments of the optimizer."""
        self._hooks.place_last()
        self.place = next(_places)

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        self._hooks.remove()
        self._step = None

    def reset(self, num_steps: int, made_up: int = 0) -> None:
        """Count on from so many steps; nothing is measured yet."""
        self.num_steps, self.made_up, self.figures = num_steps, made_up, None

    @torch.no_grad()
    def finish(self) -> None:
        """Let the mechanism make up for the steps since it last acted, where a lesson ends."""
        if not self._since() or not self._holdings.held.num_tasks:
            return
        step = self._new_step(self.num_steps - 1, self._since(), meter=None)
        self._plan.all_parts(self.optimizer, step.held)
        self._plan.gradients = {id(p): p for p in self._plan.found if has_moved(self.optimizer, p)}
        try:
            self._mechanism.at_end(step)
        finally:
            self._plan.gradients = {}
        self.made_up = self.num_steps

    @torch.no_grad()
    def _before(self, optimizer: Optimizer) -> None:
        self._step = None  # of a step that ended in an exception
        if self._holdings.held.num_tasks == 0:
            return
        self._unheld.before_step()
        self._plan.gradients = {}
        if (key := self._copies.found()) is not None:
            self.has_own_weights = True
            text = own_weights_warning(type(optimizer).__name__, key)
            warnings.warn(f"{self._mechanism.name}: {text}", stacklevel=2)
        measured = self._is_measured()
        meter = Meter(self._holdings.sum_of) if measured else None
        step = self._step = self._new_step(self.num_steps, self._since() + 1, meter=meter)
        self._plan.all_parts(optimizer, step.held)
        if measured or self._mechanism.needs_increments:
            step.keep_weights(layers=measured)
        self._mechanism.before(step)

    def _at_gradients(self, optimizer: Optimizer) -> None:
        step = self._step
        if step is None:
            return
        self._plan.note_gradients()
        if self._unheld.is_on or not self._plan.gradients:
            self._unheld.without_gradients([p for p in self._plan.found if id(p) not in self._plan.gradients])
        with torch.no_grad():
            self._mechanism.gradients(step)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer) -> None:
        step, self._step = self._step, None
        if step is None:
            return
        if (self.num_steps + 1) % self._mechanism.period == 0:
            self._mechanism.after(step)
        self._statistics.after_step()
        self._unheld.after_step()
        self._plan.gradients = {}
        self.num_steps += 1
        self._stepped(self)
        if step.meter is not None:
            self.figures = step.meter.read()
            self._measured()

    def _new_step(self, number: int, since: int, *, meter: Meter | None) -> Step:
        holdings = self._holdings
        return Step(
            self.optimizer,
            holdings.held,
            number,
            since,
            self._memory,
            holdings.exchange,
            meter,
            holdings.pulls,
            self._plan,
        )

    def _since(self) -> int:
        """How many steps were taken since the mechanism last acted."""
        return self.num_steps - max(self.made_up, self.num_steps - self.num_steps % self._mechanism.period)

    def _is_measured(self) -> bool:
        """Whether the coming step is one of every `log_every`, among those after which the mechanism acts.

        A pull to anchors that is in the gradients is measured one step later: in a task's first step it is zero.
        """
        period, pulls_before = self._mechanism.period, self._mechanism.anchored and not self._mechanism.moves_weights
        if not self._log_every or (self.num_steps + 1) % period:
            return False
        every = max(1, self._log_every // period)
        return (self.num_steps // period - pulls_before) % every == 0
