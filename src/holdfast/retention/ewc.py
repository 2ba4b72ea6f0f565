"""Elastic weight consolidation: each important weight is pulled back to its anchor."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.curvature import Measured
from holdfast.curvature.protocol import Group
from holdfast.errors import OptionError, StateError
from holdfast.memory import Retained
from holdfast.retention import force
from holdfast.retention.budget import solve_multiplier
from holdfast.retention.keeper import Keeper
from holdfast.retention.mechanism import Mechanism, as_budget, as_strength, check_choices, check_option
from holdfast.retention.options import (
    KeeperOptions,
    check_implicit,
    in_nats,
    is_unsteady,
    laplace_warning,
    no_rate,
    unsteady_warning,
)
from holdfast.retention.parts import Block
from holdfast.retention.plan import LayerPart
from holdfast.retention.rhythm import rhythm
from holdfast.retention.rise import layers_rise, weights_rise
from holdfast.retention.route import Route
from holdfast.retention.step import Step
from holdfast.retention.textbook import add_to_gradients, penalty
from holdfast.steps import UserMetric, unknown_rate, update_rule
from holdfast.tensors import all_parameters

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
            strength = self._solved(step, self.budget)
        strength *= step.since
        if strength == 0 and not step.is_measured:
            return
        for block in step.blocks(metric=True, user_metric=self.metric, increments=step.is_measured):
            self._pull(step, block, strength)
        for part in step.layers() if strength > 0 else ():
            self._pull_layer(step, part, strength)

    def _pull(self, step: Step, block: Block, strength: float) -> None:
        largest = step.held.largest
        if not step.is_measured:
            self._route.pull(block, strength, largest=largest)
            return
        moved, before = block.moved(), [weight.clone() for weight in block.weights]
        self._route.pull(block, strength, largest=largest)
        shares = force.pull_shares(block.importance, strength, metric=block.metric(), largest=largest)
        step.measure(moved, torch._foreach_sub(block.weights, before), shares, block.importance)

    def _pull_layer(self, step: Step, part: LayerPart, strength: float) -> None:
        metrics: Sequence[float | Tensor] = part.metrics(step.optimizer, self.metric, where=self.name)
        if all(not isinstance(m, Tensor) and m == math.inf for m in metrics):  # learning rates of zero: nothing moves
            return
        values, held, before = part.values(), part.curvature, step.pulls.get(part.name)
        if self.projects:
            metrics, before = [held.line(values, part.anchors, metrics)[2]] * len(metrics), None
        pulls, share, after = held.pull(values, part.anchors, strength, metrics=metrics, before=before)
        if after is not None:
            step.pulls[part.name] = after
        if step.is_measured:
            pinned = ([share], [held.spectrum]) if share.numel() else ([], [])
            step.measure(step.moved(part), pulls, *pinned)
        part.add(pulls)

    def _solved(self, step: Step, budget: float) -> float:
        """The multiplier whose pull brings the predicted rise to the budget; 0 where it is within."""
        held, largest = step.held, step.held.largest
        resting = step.resting()
        unmoved = weights_rise(resting, held.importance, held.anchors, sum_of=step.sum_of)
        unmoved += layers_rise(resting, held.layers, held.anchors)
        limit = max(0.0, budget + held.start - unmoved)
        layers = [
            part.curvature.line(part.values(), part.anchors, part.metrics(step.optimizer, self.metric, where=self.name))
            for part in step.layers()
        ]

        def rise(multiplier: float) -> tuple[float, float]:
            blocks = step.blocks(metric=True, user_metric=self.metric, changes=False)
            pairs = [self._route.rise(block, multiplier, largest=largest) for block in blocks]
            for way, spectrum, metric in layers:
                pairs.append(force.rise([way], [torch.zeros_like(way)], [spectrum], multiplier, metric=metric))
            values, slopes = ([term for pair in pairs for term in pair[i]] for i in (0, 1))
            return 0.5 * step.sum_of(values), -step.sum_of(slopes)

        if self.multiplier == 0:  # mostly within the budget, and that is sooner seen without a metric
            terms = [term for block in step.blocks(changes=False) for term in self._route.distance(block)]
            terms += [(spectrum * way.square()).sum() for way, spectrum, _ in layers]
            if 0.5 * step.sum_of(terms) <= limit:
                return 0.0
        self.multiplier = solve_multiplier(rise, limit, start=self.multiplier)
        return self.multiplier

    def _check_directions(self, layers: Mapping[str, Group], *, where: str) -> None:
        without = [name for name, layer in layers.items() if not layer.has_directions]
        if without:
            raise OptionError(
                f"{where}: a budget is kept along the directions of a curvature, and those of {len(without)} layers, "
                f"such as {without[0]!r}, have none. Give a strength."
            )

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
        self._check_directions(importance.layers, where=where)
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
            self._rhythm = rhythm(held.layers)

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
            self._check_directions(held.layers, where=where)
        if self.projects and held.num_tasks and held.nats_per_unit != 1:
            raise OptionError(
                f"{where}: a budget is in nats, and the importance that was saved is not (nats_per_unit is "
                f"{held.nats_per_unit}). Save it with probes=True, load it with a strength, or retain again."
            )
        self.multiplier = progress["multiplier"]
        self._follow(held)


class EWC(Keeper):
    """Holds skills elastically: important weights are pulled back to their anchors.

    Beside the new task's mean loss stands

        strength/2 * sum_i Omega_i (theta_i - anchor_i)^2.

    By default the pull is *implicit*: after the optimizer's own step has given theta', each weight goes
    w = a/(1 + a) of the way to its anchor, with a = strength * Omega / M and M the metric of the optimizer's step
    (`holdfast.steps.metric`). This is the proximal step of the penalty. It never overshoots, so that every strength
    from 0 to infinity is stable, and its fixed point is grad L + strength * Omega * (theta - anchor) = 0 under SGD,
    momentum, Nesterov and Adam alike. AdamW's decoupled decay adds decay * M_i * lr * theta_i to that balance, which
    shifts the point: exclude important weights from decay where that matters. The pull knows of no gradient clip: one
    that is active at rest takes the gradient's place in the balance, and a weight that it halves there rests half as
    far from its anchor.

    With a `FactoredImportance` (from `kfac`) whole layers are held: strength/2 * sum D * K(D), with D = W - anchor for
    weight and bias as one matrix, and K the tasks' Kronecker products along one common basis
    (`holdfast.curvature.kronecker`). The implicit pull has the same fixed point and the same stability; under Adam it
    comes to the exact step over some steps, 1 to 34 by the spread of the metric (`holdfast.curvature.implicit`).

    Args:
        model: the model; tied weights count once, frozen ones are left out, wrappers are seen through.
        strength: lambda, 0..inf. With Fisher importances in nats N_old/N_new is the Laplace value, 1.0 for sets of
            equal size. Give strength or budget, not both; without either it is a budget of 0.02, with a warning where
            it is not measured on probes (under the pulls of the textbook a strength of 1.0).
        budget: in place of a strength, the most that the loss of each old task may rise during each new one, in nats
            per target. Measured where tasks are retained with probes (`Keeper.retain`): every `probe_every` steps the
            rise is taken, one strength follows the task that is worst off (`holdfast.retention.controller`), and
            `close()` takes back what is over. Without probes the quadratic model 1/2 sum Omega d^2 foresees it, and a
            step that leaves this ellipsoid is projected back onto it in the optimizer's metric. That needs importances
            in nats, and those that hold where training goes: learning that is held to a forecast goes where this sees
            least, and the real rise was 5 to 35 times what Kronecker factors foresaw, and 10 to 1,500 times what a
            diagonal did. `hf.calibrated` finds that factor (docs/strength.md).
        pull: "implicit"; "gradient", which adds strength * Omega * (theta - anchor) to the gradients before the step
            (after clipping, and it diverges where lr * strength * Omega > 2); or "penalty": add `penalty()` to the
            loss yourself.
        every: steps from one implicit pull to the next, each as strong as that many pulls together: as stable, for
            less time where Kronecker factors make it dear, or where what is held is not at hand. Between pulls the
            weights move freely, and so rest elsewhere: nearer the anchor, by at most every * lr * h / 8 of the way
            from anchor to task, h the task's own curvature (docs/strength.md; `benchmarks/holding.py` measures it in
            training). `close()` makes up for the steps since the last pull, so that a task ends with one. "auto",
            the default under a budget (under a strength it is 1): as often as adds a twentieth to a step's operations
            over 2,048 rows of inputs, 16 steps at most; that is each step where weights are held one by one, or a
            budget is kept without probes.
        metric: for optimizers other than SGD, Adam and AdamW: a function of (group, parameter, state) that gives
            M, a number or tensor. Without it 1/lr is taken, with a warning.
        options: those of every keeper: accumulate, weighting, new_parameters, importance_dtype, anchor_dtype, anchors,
            offload, statistics and log_every (see `Keeper`).

    Raises:
        OptionError: an option out of its range, or both strength and budget.

    Cost: memory of one copy of the weights and one of the importance, however many tasks, or of what their forms take
    (`pull="penalty"` and "gradient" read a form back whole), and 2 MB to work in; of weights of half precision another
    copy, so that no pull vanishes (`holdfast.retention.rounding`). Each step takes three passes over the weights under
    SGD and five under Adam, block by block, or one kernel a tensor on CUDA where Triton is at hand. Under a budget a
    step within the ellipsoid costs three passes, and finding the multiplier of one that leaves it about two evaluations
    of ten passes. A layer held by Kronecker factors, n inputs and m outputs, has n^2 + m^2 + m n numbers in memory
    beside its anchor, all in full, and a step costs 4 m n (m + n) operations under SGD and 10 m n (m + n) under Adam,
    which takes m n numbers more: 6 and 15 plain steps of an MLP 784-300-150-10 at batch 100.

    Source: Kirkpatrick et al. 2017 (PNAS 114), with the anchors of "sum" as in Huszar's note (2018) and online
    EWC's decay after Schwarz et al. 2018. The implicit pull, the optimizer's metric and the budget are our own.
    Kronecker factors of earlier tasks: Ritter et al. 2018 (arXiv 1805.07810), with the penalty in the loss; here their
    sum is held in one eigenbasis (after George et al. 2018, arXiv 1806.03884), and the pull is implicit.
    """

    mechanism: Elastic
    _kind: ClassVar[type[Mechanism] | None] = Elastic

    def __init__(
        self,
        model: nn.Module,
        strength: float | None = None,
        *,
        budget: float | None = None,
        pull: Pull = "implicit",
        every: int | Literal["auto"] | None = None,
        metric: UserMetric | None = None,
        **options: Unpack[KeeperOptions],
    ) -> None:
        super().__init__(model, Elastic(strength, budget, pull, every, metric), **options)

    @property
    def strength(self) -> float | None:
        """lambda, 0..inf; None under a budget. It may be changed between steps."""
        return self.mechanism.strength

    @strength.setter
    def strength(self, value: float) -> None:
        if self.mechanism.strength is None:
            raise OptionError("EWC: it keeps a budget, not a strength. Set budget, or build another.")
        strength = as_strength(value, where=self.name)
        check_implicit(self.pull, strength=strength, budget=None, every=self.every)
        self.mechanism.strength = strength

    @property
    def budget(self) -> float | None:
        """Nats per target that each old task's loss may rise in a lesson; None under a strength.

        It may be changed between steps; a task that was retained with a budget of its own keeps that.
        """
        return self.mechanism.budget

    @budget.setter
    def budget(self, value: float) -> None:
        if self.mechanism.budget is None:
            raise OptionError("EWC: it keeps a strength, not a budget. Set strength, or build another.")
        self.mechanism.budget = as_budget(value, where=self.name)
        self._skills.bound(self.mechanism.budget)

    @property
    def pull(self) -> Pull:
        """As given."""
        return self.mechanism.pull

    @property
    def every(self) -> int | Literal["auto"]:
        """As given; where nothing was, "auto" under a budget and 1 under a strength."""
        assert self.mechanism.every is not None
        return self.mechanism.every

    @property
    def metric(self) -> UserMetric | None:
        """As given."""
        return self.mechanism.metric

    def penalty(self) -> Tensor:
        """strength/2 sum Omega (theta - anchor)^2 with its gradient, to be added to the loss under `pull="penalty"`.

        Returns:
            A scalar on the model's device; zero before the first task is retained.

        Raises:
            StateError: under another pull, where adding it would pull twice.
        """
        if self.pull != "penalty":
            raise StateError(
                f"EWC.penalty: this keeper's pull is {self.pull!r}, so that adding a penalty would pull twice. "
                'Build it with EWC(model, pull="penalty"), or read predicted_rise().'
            )
        assert self.strength is not None
        self.mechanism.num_penalties += 1
        return penalty(self.held, all_parameters(self.model), self.strength)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module, **options: Any) -> Self:
        """As `Keeper.load`; a strength or budget given takes the place of the saved budget or strength."""
        if options.keys() & {"strength", "budget"}:
            options = {"strength": None, "budget": None, **options}
        return super().load(path, model, **options)
