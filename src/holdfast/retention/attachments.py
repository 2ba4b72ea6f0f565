"""A keeper at all of its optimizers: what they have counted, and who looks for weights that move without them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

from torch import nn
from torch.optim import Optimizer

from holdfast.errors import ParameterMismatchError, StateError
from holdfast.replicas import rest
from holdfast.retention.attachment import Attachment
from holdfast.retention.holdings import Holdings
from holdfast.retention.mechanism import Mechanism
from holdfast.retention.options import moved_around_warning, own_weights_warning, unheld_warning
from holdfast.retention.plan import Plan
from holdfast.retention.statistics import HeldStatistics
from holdfast.retention.unheld import UnheldDetector, moved_by_steps_alone
from holdfast.steps import Copies, bare_optimizer, optimizer_around, weights_of_wrapper
from holdfast.tensors import check_real, trainable_parameters, unwrap

Ratios = tuple[float | None, float | None]
"""Pinned share and pull ratio; None where nothing was measured."""


class Attachments:
    """The optimizers that a keeper is attached to, in the order of attaching.

    Args:
        model: that they train.
        mechanism: what is done to its weights at their steps.
        holdings: what is held of it.
        statistics: holds its buffers, or looks for those that move.
        stepped: called after every held step of the first optimizer.
        measured: called after a measured step.
    """

    def __init__(
        self,
        model: nn.Module,
        mechanism: Mechanism,
        holdings: Holdings,
        statistics: HeldStatistics,
        *,
        stepped: Callable[[], None],
        measured: Callable[[], None],
    ) -> None:
        self._model, self._mechanism, self._holdings, self._statistics = model, mechanism, holdings, statistics
        self._lesson_stepped, self._measured = stepped, measured
        self._all: list[Attachment] = []
        self._resumed: list[tuple[int, int]] = []  # steps of the optimizers to come, and those made up for
        self._ratios: Ratios = None, None  # of the steps before the last `count_from`
        self._unheld = UnheldDetector(self._warn_unheld, self._warn_moved_around)

    def __iter__(self) -> Iterator[Attachment]:
        return iter(self._all)

    @property
    def optimizers(self) -> list[Optimizer]:
        """Without what wraps them."""
        return [attachment.optimizer for attachment in self._all]

    @property
    def steps(self) -> list[int]:
        """Held steps of each, and of those that are to be attached."""
        return [num_steps for num_steps, _ in self._counts]

    @property
    def made_up(self) -> list[int]:
        """How many of each there were when the mechanism last acted between two of them."""
        return [made_up for _, made_up in self._counts]

    @property
    def _counts(self) -> list[tuple[int, int]]:
        return [*((attachment.num_steps, attachment.made_up) for attachment in self._all), *self._resumed]

    @property
    def ratios(self) -> Ratios:
        """Of the last measured step of every optimizer together."""
        found = [attachment.figures for attachment in self._all if attachment.figures is not None]
        if not found:
            return self._ratios
        total = reduce(add, found)
        return total.pinned_share, total.pull_ratio

    def add(self, optimizer: Any, *, new_parameters: str, log_every: int) -> None:
        """Attach one more; `Keeper.attach` says what it raises."""
        name, bare = self._mechanism.name, bare_optimizer(optimizer)
        if any(attached is bare for attached in self.optimizers):
            raise StateError(f"{name}: already attached to this {type(bare).__name__}. Call detach() first.")
        parameters = trainable_parameters(self._model)
        check_real(parameters, where=f"{name}.attach")
        if not self._trained_by(bare):
            raise ParameterMismatchError(
                f"{name}: this {type(bare).__name__} trains none of the {len(parameters)} trainable parameters of "
                f"{type(unwrap(self._model)).__name__}. Build the optimizer from the same model's parameters()."
            )
        messages = list(self._mechanism.check(bare))
        if (kind := weights_of_wrapper(optimizer, bare)) is not None:
            messages.append(own_weights_warning(kind))
        for message in messages:
            warnings.warn(f"{name}: {message}", stacklevel=3)
        self._add(
            bare,
            new_parameters=new_parameters,
            log_every=log_every,
            around=optimizer_around(optimizer, bare),
            has_own_weights=kind is not None,
        )

    def add_copies(
        self, originals: Iterable[Attachment], memo: dict[Any, Any], *, new_parameters: str, log_every: int
    ) -> None:
        """Attach the deep copies of optimizers, as the originals are attached to these; no warning is repeated.

        Args:
            originals: attachments of the keeper that is copied.
            memo: of `copy.deepcopy`. Copies of several keepers at one optimizer act in the order of their originals.
            new_parameters: see `Keeper`.
            log_every: likewise.
        """
        for original in originals:
            bare = copy.deepcopy(original.optimizer, memo)
            own, around = original.has_own_weights, original.around
            twin = self._add(
                bare, new_parameters=new_parameters, log_every=log_every, around=around, has_own_weights=own
            )
            twins = memo.setdefault("holdfast attachments", {}).setdefault(id(bare), {})
            twins[original.place] = twin
            for place in sorted(place for place in twins if place > original.place):
                twins[place].place_last()

    def _trained_by(self, optimizer: Optimizer) -> list[nn.Parameter]:
        own = {id(parameter) for parameter in trainable_parameters(self._model).values()}
        return [p for group in optimizer.param_groups for p in group["params"] if id(p) in own]

    def _add(
        self, optimizer: Optimizer, *, new_parameters: str, log_every: int, around: str | None, has_own_weights: bool
    ) -> Attachment:
        holdings, trained = self._holdings, self._trained_by(optimizer)
        holdings.follow_shards()
        num_steps, made_up = self._resumed.pop(0) if self._resumed else (0, 0)
        attachment = Attachment(
            optimizer,
            mechanism=self._mechanism,
            holdings=holdings,
            plan=Plan(
                self._model,
                new_parameters=new_parameters,
                forms=holdings.forms,
                where=self._mechanism.name,
                residuals=holdings.residuals if self._mechanism.moves_weights else None,
            ),
            copies=Copies(optimizer, [] if has_own_weights else trained),
            unheld=self._unheld,
            statistics=self._statistics,
            log_every=log_every,
            stepped=self._stepped,
            measured=self._measured,
            num_steps=num_steps,
            made_up=made_up,
            around=around,
            has_own_weights=has_own_weights,
        )
        self._all.append(attachment)
        self._unheld.add(moved_by_steps_alone(trained, self._model), around=around is not None)
        if holdings.held.num_tasks:
            self.watch()
        return attachment

    def remove(self) -> None:
        """Take every hook off again, of the model too."""
        self._resumed, self._ratios = self._counts, self.ratios
        for attachment in self._all:
            attachment.remove()
        self._all.clear()
        self._unheld.remove()
        self._statistics.release()

    def finish(self) -> None:
        """Let the mechanism make up for the steps since it last acted, where a lesson ends."""
        for attachment in self._all:
            attachment.finish()

    def count_from(
        self, steps: Sequence[int], ratios: Ratios = (None, None), *, made_up: Sequence[int] | None = None
    ) -> None:
        """Count on from these steps of the attached optimizers in turn, and of those to come; 0 where there is none."""
        counts = list(zip(steps, [0] * len(steps) if made_up is None else made_up, strict=True))
        attached = len(self._all)
        for attachment, (num_steps, already) in zip(self._all, [*counts, *[(0, 0)] * attached]):
            attachment.reset(num_steps, already)
        self._resumed, self._ratios = counts[attached:], ratios

    def watch(self) -> None:
        """Look from now on for held weights that move without being held, where a task is retained."""
        if not self._holdings.held.num_tasks:
            self._unheld.stop()
            return
        trained = {id(p) for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]}
        held, parameters = self._holdings.held.covered, trainable_parameters(self._model)
        others = [p for name, p in parameters.items() if name in held and id(p) not in trained] if trained else []
        self._unheld.start(others=moved_by_steps_alone(others, self._model))
        if self._all:
            self._statistics.begin()

    def compare(self) -> None:
        """Report weights that have moved since the last held step, and not by one; of a sharded model in its shards."""
        rest(self._model)
        self._unheld.compare()

    def _stepped(self, attachment: Attachment) -> None:
        if attachment is self._all[0]:  # of several that train one model together each takes a step
            self._lesson_stepped()

    def _warn_unheld(self) -> None:
        kinds = ", ".join(type(optimizer).__name__ for optimizer in self.optimizers)
        warnings.warn(unheld_warning(self._mechanism.name, kinds), stacklevel=2)

    def _warn_moved_around(self) -> None:
        for attachment in self._all:
            if attachment.around is not None:
                inner = type(attachment.optimizer).__name__
                warnings.warn(moved_around_warning(self._mechanism.name, attachment.around, inner), stacklevel=2)
