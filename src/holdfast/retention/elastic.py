"""The elastic pull: each important weight goes back toward its anchor, by a strength or within a budget.

The share w = a/(1 + a) of the way, a = strength * Omega / M, stands in `holdfast.retention.force`, the multiplier that
keeps a budget in `holdfast.retention.budget`. `holdfast.EWC` says what the options mean.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from holdfast.curvature import Curvature, Measured
from holdfast.curvature.exchange import ByParameter
from holdfast.errors import OptionError
from holdfast.memory import Retained
from holdfast.retention import force
from holdfast.retention.budget import check_directions, multiplier_of
from holdfast.retention.mechanism import Mechanism, as_budget, as_strength, check_choices, check_option
from holdfast.retention.options import (
    check_implicit,
    in_nats,
    is_unsteady,
    laplace_warning,
    no_rate,
    unsteady_warning,
)
from holdfast.retention.parts import Block
from holdfast.retention.rhythm import rhythm
from holdfast.retention.route import Route
from holdfast.retention.step import Step
from holdfast.retention.textbook import add_to_gradients
from holdfast.steps import UserMetric, unknown_rate, update_rule

BUDGET = 0.02
"""Nats per target that a task may lose in each later lesson where nothing is said: 2% of a text's perplexity."""

Pull = Literal["implicit", "gradient", "penalty"]


@dataclass
class Elastic(Mechanism):
    """The elastic pull to the anchors; `EWC` says what the options mean.

    Attributes:
        multiplier: what stood in the strength's place in the last step, under a budget.
        steered: the strength that measured rises ask for; None where nothing is measured.
        num_penalties: how often the penalty was asked for.
        is_default: whether nobody chose the budget, which should then be measured.
    """

    name: ClassVar[str] = "EWC"
    unsaved: ClassVar[frozenset[str]] = frozenset({"metric"})

    strength: float | None = None
    budget: float | None = None
    pull: Pull = "implicit"
    every: int | Literal["auto"] | None = None
    metric: UserMetric | None = None
    multiplier: float = field(default=0.0, init=False)
    steered: float | None = field(default=None, init=False)
    num_penalties: int = field(default=0, init=False)
    is_default: bool = field(default=False, init=False)
    warned_of_unit: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.strength is not None and self.budget is not None:
            raise OptionError(
                f"EWC: strength {self.strength!r} and budget {self.budget!r} exclude each other. Give one of them."
            )
        if self.strength is None and self.budget is None:
            if self.pull == "implicit":
                self.budget, self.is_default = BUDGET, True
            else:
                self.strength = 1.0
        if self.strength is not None:
            self.strength = as_strength(self.strength, where=self.name)
        if self.budget is not None:
            self.budget = as_budget(self.budget, where=self.name)
        check_choices(self, type(self), where=self.name)
        if self.every is None:
            self.every = 1 if self.budget is None else "auto"
        counts = self.every == "auto" or (isinstance(self.every, int) and self.every >= 1)
        check_option(counts, "every", self.every, 'a whole number >= 1 or "auto"', where=self.name)
        self._rhythm = 1 if self.every == "auto" else self.every
        check_implicit(self.pull, strength=self.strength, budget=self.budget, every=self.every)
        self._route = Route()

    # --- the steps

    def gradients(self, step: Step) -> None:
        """Add the textbook's pull to the gradients, or see that the implicit one will find its layers whole."""
        if self.pull == "implicit" and self.strength != 0 and (step.number + 1) % self.period == 0:
            for _ in step.layers():  # raises before anything has moved
                pass
        if self.pull == "gradient":
            assert self.strength is not None
            # a fused optimizer under GradScaler divides by the scale itself, inside its step
            scale = getattr(step.optimizer, "grad_scale", None)
            add_to_gradients(step, self.strength * (1.0 if scale is None else float(scale)))

    def after(self, step: Step) -> None:
        """Pull every weight that the step moved toward its anchor."""
        if self.pull == "penalty":
            self._check_was_added(step)
        self.at_end(step)

    def at_end(self, step: Step) -> None:
        """The same for the steps since the last pull, with as many times the strength."""
        if self.pull != "implicit":
            return
        strength = self.strength if self.steered is None else self.steered
        if strength is None:
            assert self.budget is not None
            strength = self.multiplier = multiplier_of(
                step, self.budget, start=self.multiplier, route=self._route, metric=self.metric, where=self.name
            )
        strength *= step.since
        if strength == 0 and not step.is_measured:
            return
        for block in step.blocks(metric=True, user_metric=self.metric, increments=step.is_measured):
            self._pull(step, block, strength)
        if strength > 0:
            self._pull_layers(step, strength)

    def _pull(self, step: Step, block: Block, strength: float) -> None:
        largest = step.held.largest
        if not step.is_measured:
            self._route.pull(block, strength, largest=largest)
            return
        moved, before = block.moved(), [weight.clone() for weight in block.weights]
        self._route.pull(block, strength, largest=largest)
        shares = force.pull_shares(block.importance, strength, metric=block.metric(), largest=largest)
        step.measure(moved, torch._foreach_sub(block.weights, before), shares, block.importance)

    def _pull_layers(self, step: Step, strength: float) -> None:
        """Each layer is pulled where its curvature is, and the pull added to its parameters where these are."""
        parts = {part.name: part for part in step.layers()}

        def ask(name: str) -> Sequence[ByParameter] | None:
            metrics = parts[name].metrics(step.optimizer, self.metric, where=self.name)
            if all(not isinstance(m, Tensor) and m == math.inf for m in metrics):  # learning rates of zero
                return None
            return parts[name].values(), parts[name].anchors, metrics

        def pull(
            name: str, held: Curvature, values: list[Tensor], anchors: list[Tensor], metrics: Sequence[float | Tensor]
        ) -> list[Tensor]:
            before = step.pulls.get(name)
            if self.projects:
                metrics, before = [held.line(values, anchors, metrics)[2]] * len(metrics), None
            pulls, share, after = held.pull(values, anchors, strength, metrics=metrics, before=before)
            if after is not None:
                step.pulls[name] = after
            if share.numel():
                step.measure([], [], [share], [held.spectrum])
            return pulls

        for name, pulls in step.exchange.each({name: part.curvature for name, part in parts.items()}, ask, pull):
            if step.is_measured:
                step.measure(step.moved(parts[name]), pulls, [], [])
            parts[name].add(pulls)

    def _check_was_added(self, step: Step) -> None:
        if step.memory.get("penalties", 0) == self.num_penalties:
            warnings.warn(
                'EWC: pull="penalty", but penalty() was not called in this step: nothing holds the old tasks. '
                'Add keeper.penalty() to the loss, or use pull="implicit".',
                stacklevel=2,
            )
        step.memory["penalties"] = self.num_penalties

    # --- what the keeper has to know

    @property
    def moves_weights(self) -> bool:
        """Whether the pull is implicit."""
        return self.pull == "implicit"

    @property
    def period(self) -> int:
        """`every`; under "auto" by what is held (`holdfast.retention.rhythm`), and 1 where each step is projected."""
        return 1 if self.projects else self._rhythm

    def check(self, optimizer: Optimizer) -> Iterator[str]:
        """Whether the metric of its steps is known, and the pull stable."""
        kind, rule = type(optimizer).__name__, update_rule(optimizer)
        if self.pull != "implicit":
            if self.metric is not None:
                yield f'metric= has no effect under pull={self.pull!r}; it belongs to pull="implicit".'
            return
        if self.metric is None and (found := unknown_rate(optimizer)) is not None:
            remedy = "Pass metric=, such as lambda group, parameter, state: 1 / 1e-3 for steps of about 1e-3. Or: "
            raise OptionError(no_rate(self.name, kind, found, remedy=remedy))
        if is_unsteady(optimizer):
            yield unsteady_warning(others='pull="gradient", which LBFGS minimises beside the loss, ')
        if self.metric is None and rule == "other":
            yield (
                f"{kind} is no optimizer whose metric is known: its plain learning rate is taken, so that a strength "
                "means something else than under SGD and Adam. Pass metric= for an exact one."
            )
        if self.metric is not None and rule != "other":
            yield f"metric= takes the place of the exact metric of {kind}."

    def check_sharded(self, held: Retained) -> None:
        """Refuse what needs whole weights."""
        if self.pull == "penalty":
            raise OptionError(
                'EWC: the model is sharded, and pull="penalty" needs whole weights in the loss. Use pull="implicit".'
            )

    @property
    def projects(self) -> bool:
        """Whether a budget is kept by the forecast alone."""
        return self.budget is not None and self.steered is None

    def accepted(self, importance: Measured, *, where: str) -> Measured:
        """Itself; warns once of a strength that is meant for another unit."""
        if self.strength == 1.0 and not self.warned_of_unit and (told := laplace_warning(importance, where=where)):
            self.warned_of_unit = True
            warnings.warn(told, stacklevel=3)
        return importance

    def forecast(self, importance: Measured, *, where: str) -> Measured:
        """In nats."""
        if self.every not in (1, "auto"):
            raise OptionError(
                f"{where}: every={self.every}, and a budget without probes is kept by a projection at each step. Pass "
                "probes=, leave every at 1, or build it with strength=."
            )
        check_directions(importance.layers, where=where)
        found = in_nats(importance, where=where)
        if self.is_default and not importance.info.is_calibrated:
            warnings.warn(
                f"{where}: without strength= and budget= {self.name} keeps each task to {BUDGET} nats, and without "
                "probes it keeps what the importance foresees alone, which is too little. Pass "
                "probes=hf.probes_of(model, held_out), or measure with hf.measure, which takes them along; or retain "
                "hf.calibrated(model, importance, data), whose forecast is measured along training's ways; or choose a "
                "strength or a budget.",
                stacklevel=3,
            )
        return found

    def steering(self, importance: Measured) -> tuple[float, float]:
        """In nats 10,000: held in every direction, for factors are damped, and then given room.

        A lesson that begins free goes far first, and what the importance does not see of that, more strength does not
        call back. Nor is it ever more: from about 2,000 on learning under Adam escapes into such directions too.
        """
        nats = importance.info.nats_per_unit
        return (1e4 * nats, 1e4 * nats) if nats else super().steering(importance)

    def steer(self, strength: float | None) -> None:
        """Pull with this strength in place of a projection."""
        self.steered = strength

    def retained(self, held: Retained) -> None:
        """The multiplier starts at zero."""
        self.multiplier = 0.0
        self._follow(held)

    def _follow(self, held: Retained) -> None:
        if self.every == "auto":
            self._rhythm = rhythm(held.all_layers)

    @property
    def acting_strength(self) -> float | None:
        """The strength; under a budget what stands in its place."""
        return self.multiplier if self.projects else self.strength if self.steered is None else self.steered

    def progress(self) -> dict[str, float]:
        """The multiplier, where the next step starts."""
        return {"multiplier": self.multiplier}

    def resume(self, progress: Mapping[str, float], held: Retained, *, where: str) -> None:
        """Go on from a saved multiplier."""
        if self.projects:
            check_directions(held.layers, where=where)
        if self.projects and held.num_tasks and held.nats_per_unit != 1:
            raise OptionError(
                f"{where}: a budget is in nats, and the importance that was saved is not (nats_per_unit is "
                f"{held.nats_per_unit}). Save it with probes=True, load it with a strength, or retain again."
            )
        self.multiplier = progress["multiplier"]
        self._follow(held)
