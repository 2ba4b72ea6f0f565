"""Elastic weight consolidation: each important weight is pulled back to its anchor."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.errors import OptionError, StateError
from holdfast.factored import FactoredImportance
from holdfast.memory import Accumulate, AnchorForm, ImportanceForm, Retained, Weighting
from holdfast.memory.reference import Reference, anchors_on_disk
from holdfast.records import Importance
from holdfast.retention.budget import solve_multiplier
from holdfast.retention.files import accumulate_to_json
from holdfast.retention.force import pull_shares
from holdfast.retention.keeper import Keeper, NewParameters
from holdfast.retention.kronecker import layer_metric, layer_pull
from holdfast.retention.meter import Meter
from holdfast.retention.options import (
    check_holds_factors,
    check_implicit,
    check_on_disk,
    chosen_forms,
    in_nats,
    is_unsteady,
    no_rate,
    unsteady_warning,
)
from holdfast.retention.parts import Block
from holdfast.retention.plan import LayerPart, Plan
from holdfast.retention.rise import layer_rise, weights_rise
from holdfast.retention.rounding import round_
from holdfast.retention.textbook import add_to_gradients, penalty
from holdfast.steps import UserMetric, step_metrics, unknown_rate, update_rule
from holdfast.tensors import all_parameters, local, sum_of, tied_names

Pull = Literal["implicit", "gradient", "penalty"]


class EWC(Keeper):
    """Holds skills elastically: important weights are pulled back to their anchors.

    Beside the new task's mean loss stands

        strength/2 * sum_i Omega_i (theta_i - anchor_i)^2.

    By default the pull is *implicit*: after the optimizer's own step has given theta', each weight goes
    w = a/(1 + a) of the way to its anchor, with a = strength * Omega / M and M the metric of the optimizer's step
    (`holdfast.steps.metric`). This is the proximal step of the penalty. It never overshoots, so that every strength
    from 0 to infinity is stable, and its fixed point is grad L + strength * Omega * (theta - anchor) = 0 under SGD,
    momentum, Nesterov and Adam alike. AdamW's decoupled decay adds decay * M_i * lr * theta_i to that balance, which
    shifts the point: exclude important weights from decay where that matters.

    With a `FactoredImportance` (from `kfac`) whole layers are held: strength/2 * sum D * K(D), with D = W - anchor for
    weight and bias as one matrix, and K the tasks' Kronecker products along one common basis
    (`holdfast.memory.kronecker`). The implicit pull has the same fixed point and the same stability; under Adam it
    comes to the fixed point over a few steps (`holdfast.retention.kronecker`).

    Args:
        model: the model; tied weights count once, frozen ones are left out, wrappers are seen through.
        strength: lambda, 0..inf. With Fisher importances in nats N_old/N_new is the Laplace value, and 1.0 the
            default. Give strength or budget, not both.
        budget: in place of a strength, the most that the old tasks' loss may rise, in nats by the quadratic model
            1/2 sum Omega d^2, during each new task. A step that leaves this ellipsoid is projected back onto it in the
            optimizer's metric. Needs importances in nats (Fisher, or any measured with `calibrate=True`).
        pull: "implicit"; "gradient", which adds strength * Omega * (theta - anchor) to the gradients before the step
            (after clipping, and it diverges where lr * strength * Omega > 2); or "penalty": add `penalty()` to the
            loss yourself.
        every: steps from one implicit pull to the next, each as strong as that many pulls together: the same fixed
            point and stability, for less time where Kronecker factors make it dear, or where what is held is not at
            hand.
            Between pulls the weights move freely, and so end elsewhere (`benchmarks/holding.py` measures how far); the
            last pull of a task should be at its end, so let it divide the number of steps.
        metric: for optimizers other than SGD, Adam and AdamW: a function of (group, parameter, state) that gives
            M, a number or tensor. Without it 1/lr is taken, with a warning.
        accumulate: "sum", "mean", "max", "per_task" (one anchor a task, collapsed exactly) or `Decayed(gamma)`.
        weighting: "task", or "examples": each importance times its number of examples over that of the first.
        new_parameters: "error" or "free", for trainable parameters that no importance covers, such as a grown head.
        importance_dtype: "float32", "bfloat16" or "int8": the form importances are held in, each with its stated error
            (`holdfast.memory.forms`).
        anchor_dtype: "float32" (as the weights are, exact), "bfloat16" or "int16", likewise for anchors. A rounded
            anchor holds its weight to a place beside the one it was learned at, with "int16" a hundredth as far away
            as with "bfloat16"; weights that are bfloat16 themselves are exact in either of the first two.
        anchors: a safetensors checkpoint of today's weights (a file, an index of shards, or a folder with one): anchors
            are read from it slice by slice and take no memory. `retain` checks that it holds them; for a later task
            save the weights again and set `keeper.anchors`. The file must stay as it is.
        offload: "cpu" keeps importances and anchors in the host's memory (pinned) when the model is on an accelerator,
            and brings them over block by block in each step; with `every=k`, in one step of k.
        log_every: every so many steps the pull is measured and a line logged at INFO (logger "holdfast"); 0: never.

    Raises:
        OptionError: an option out of its range, or both strength and budget.

    Cost: memory of one copy of the weights and one of the importance, however many tasks, or of what their forms take
    (`pull="penalty"` and "gradient" read a form back whole), and 2 MB to work in; of weights of half precision another
    copy, so that no pull vanishes (`holdfast.retention.rounding`). Each step takes three passes over the weights under
    SGD and five under Adam, block by block, or one kernel a tensor on CUDA where Triton is at hand. Under a budget a
    step within the ellipsoid costs three passes, and finding the multiplier of one that leaves it about two evaluations
    of ten passes. A layer held by Kronecker factors, n inputs and m outputs, has n^2 + m^2 + m n numbers in memory
    beside its anchor, all in full, and a step costs 4 m n (m + n) operations: 6 plain steps of an MLP 784-300-150-10 at
    batch 100.

    Source: Kirkpatrick et al. 2017 (PNAS 114), with the anchors of "sum" as in Huszar's note (2018) and online
    EWC's decay after Schwarz et al. 2018. The implicit pull, the optimizer's metric and the budget are our own.
    Kronecker factors of earlier tasks: Ritter et al. 2018 (arXiv 1805.07810), with the penalty in the loss; here their
    sum is held in one eigenbasis (after George et al. 2018, arXiv 1806.03884), and the pull is implicit.
    """

    mechanism: ClassVar[str] = "EWC"
    _has_anchors: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float | None = None,
        budget: float | None = None,
        pull: Pull = "implicit",
        every: int = 1,
        metric: UserMetric | None = None,
        accumulate: Accumulate = "sum",
        weighting: Weighting = "task",
        new_parameters: NewParameters = "error",
        importance_dtype: ImportanceForm = "float32",
        anchor_dtype: AnchorForm = "float32",
        anchors: str | os.PathLike[str] | None = None,
        offload: Literal["cpu"] | None = None,
        log_every: int = 100,
    ) -> None:
        if strength is not None and budget is not None:
            raise OptionError(f"EWC: strength {strength!r} and budget {budget!r} exclude each other. Give one of them.")
        if strength is None and budget is None:
            strength = 1.0
        self.pull: Pull = pull  # the check of the strength asks for it
        super().__init__(
            model,
            strength=strength,
            accumulate=accumulate,
            weighting=weighting,
            new_parameters=new_parameters,
            forms=chosen_forms("EWC", importance=importance_dtype, anchors=anchor_dtype, offload=offload),
            log_every=log_every,
        )
        self.anchors = anchors
        self._check(pull in ("implicit", "gradient", "penalty"), "pull", pull, '"implicit", "gradient" or "penalty"')
        self._check(
            budget is None or (isinstance(budget, int | float) and budget > 0), "budget", budget, "nats above 0"
        )
        self._check(isinstance(every, int) and every >= 1, "every", every, "a whole number >= 1")
        check_implicit(pull, budget=budget, every=every)
        self.budget = budget
        self.every = every
        self.metric = metric
        self._multiplier = 0.0
        self._num_penalties = 0
        self._penalties_seen: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()

    @property
    def anchors(self) -> str | None:
        """The checkpoint that `retain` is to find today's weights in; None for anchors in memory."""
        return self._anchors

    @anchors.setter
    def anchors(self, path: str | os.PathLike[str] | None) -> None:
        if path is not None:
            check_on_disk(path, self.forms, self.accumulate)
        self._anchors = None if path is None else os.fspath(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module, **options: Any) -> Self:
        """As `Keeper.load`; a strength or budget given takes the place of the saved budget or strength."""
        if options.keys() & {"strength", "budget"}:
            options = {"strength": None, "budget": None, **options}
        return super().load(path, model, **options)

    def predicted_rise(self) -> float:
        """How much the old tasks' loss has risen by the quadratic model: 1/2 sum Omega (theta - anchor)^2, >= 0.

        Returns:
            Nats, where the importances know their factor (`ImportanceInfo.nats_per_unit`); else in their own unit.

        Cost: one pass over the weights.
        """
        factor = 1.0 if self.held.nats_per_unit is None else self.held.nats_per_unit
        weights, held = all_parameters(self.model), self.held
        with torch.no_grad():
            layers = sum_of(layer_rise(name, layer, weights, held.anchors) for name, layer in held.factors.items())
        return factor * (self._rise_of(weights) + layers + held.constant)

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
        self._num_penalties += 1
        return penalty(self.held, all_parameters(self.model), self.strength)

    def _check_can_be_sharded(self, held: Retained) -> None:
        super()._check_can_be_sharded(held)
        if self.anchors is not None:
            raise OptionError(
                f"EWC: the model is sharded, and anchors={self.anchors!r} are whole on disk. Leave that out: in memory "
                "every process has the anchors of its own shards alone."
            )
        if self.pull == "penalty":
            raise OptionError(
                'EWC: the model is sharded, and pull="penalty" needs whole weights in the loss. Use pull="implicit".'
            )

    def _changes_weights(self) -> bool:
        return self.pull == "implicit"

    def _changes_gradients(self) -> bool:
        return self.pull == "gradient"

    def _gradients(self, optimizer: Optimizer, plan: Plan) -> None:
        if self.held.num_tasks == 0:
            return
        assert self.strength is not None
        # a fused optimizer under GradScaler divides by the scale itself, inside its step
        scale = getattr(optimizer, "grad_scale", None)
        factor = self.strength * (1.0 if scale is None else float(scale))
        with torch.no_grad():
            add_to_gradients(plan.parts(optimizer, self.held), factor, meter=self._meter)

    def _hold(self, optimizer: Optimizer, plan: Plan) -> None:
        if self.pull == "penalty":
            if self._penalties_seen.get(optimizer, 0) == self._num_penalties:
                warnings.warn(
                    'EWC: pull="penalty", but penalty() was not called in this step: nothing holds the old tasks. '
                    'Add keeper.penalty() to the loss, or use pull="implicit".',
                    stacklevel=2,
                )
            self._penalties_seen[optimizer] = self._num_penalties
        if self.pull != "implicit":
            return
        if (plan.num_steps + 1) % self.every:
            return
        strength = self._budget_multiplier(optimizer, plan) if self.budget is not None else self.strength
        assert strength is not None
        strength *= self.every
        if strength == 0 and self._meter is None:
            return
        for block in self._blocks(optimizer, plan):
            wide = block.wide()
            if self._meter is None:
                self._route.pull(wide, strength, largest=self.held.largest)
            else:
                self._pull_measured(wide, strength, meter=self._meter)
            block.round_back(wide)
        for part in plan.layers(optimizer, self.held) if strength > 0 else ():
            if part.stepped(plan.gradients, where=self.mechanism):
                self._hold_layer(optimizer, part, strength)

    def _hold_layer(self, optimizer: Optimizer, part: LayerPart, strength: float) -> None:
        metric = layer_metric(optimizer, part, user_metric=self.metric)
        if not isinstance(metric, Tensor) and metric == math.inf:  # a learning rate of zero: nothing moves
            return
        pull, share = layer_pull(
            part.distance(), part.layer, strength, metric=metric, before=self._holdings.pulls.get(part.name)
        )
        if isinstance(metric, Tensor):
            self._holdings.pulls[part.name] = pull
        pulls = part.layer.split(pull)
        if self._meter is not None:
            moved = [p.detach().to(pull.dtype) - self._snapshots[p].to(pull.dtype) for p in part.parameters]
            self._meter.add(moved, pulls, [share], [part.layer.spectrum])
        for parameter, residual, value, change in zip(part.parameters, part.residuals, part.values(), pulls):
            if residual is None:
                parameter.detach().copy_(value.add_(change))
            else:
                round_(parameter.detach(), residual, value.add_(change))

    def _measures(self, plan: Plan) -> bool:
        if self.log_every == 0 or (plan.num_steps + 1) % self.every:
            return False
        return (plan.num_steps // self.every) % max(1, self.log_every // self.every) == 0

    def _blocks(self, optimizer: Optimizer, plan: Plan) -> Iterator[Block]:
        """Every protected weight that this step moved, with its metric."""
        for part in plan.parts(optimizer, self.held):
            metrics = step_metrics(optimizer, part.group, part.parameters, user_metric=self.metric)
            moved = self._increments(optimizer, part, plan.gradients) if self._meter is not None else []
            yield from part.blocks(metrics=metrics, increments=moved)

    def _pull_measured(self, block: Block, strength: float, *, meter: Meter) -> None:
        moved, before = block.moved(), [weight.clone() for weight in block.weights]
        self._route.pull(block, strength, largest=self.held.largest)
        shares = pull_shares(block.importance, strength, metric=block.metric(), largest=self.held.largest)
        meter.add(moved, torch._foreach_sub(block.weights, before), shares, block.importance)

    def _budget_multiplier(self, optimizer: Optimizer, plan: Plan) -> float:
        assert self.budget is not None
        largest = self.held.largest
        moved = {id(parameter) for part in plan.parts(optimizer, self.held) for parameter in part.parameters}
        resting = {name: p for name, p in all_parameters(self.model).items() if id(p) not in moved}
        unmoved = self._rise_of(resting)
        limit = max(0.0, self.budget + self.held.start - unmoved)

        def rise(multiplier: float) -> tuple[float, float]:
            found = [self._route.rise(b, multiplier, largest=largest) for b in self._blocks(optimizer, plan)]
            values, slopes = ([term for pair in found for term in pair[i]] for i in (0, 1))
            return 0.5 * self._holdings.sum_of(values), -self._holdings.sum_of(slopes)

        if self._multiplier == 0:  # mostly within the budget, and that is sooner seen without a metric
            held = (block for part in plan.parts(optimizer, self.held) for block in part.blocks())
            if 0.5 * self._holdings.sum_of(term for block in held for term in self._route.distance(block)) <= limit:
                return 0.0
        self._multiplier = solve_multiplier(rise, limit, start=self._multiplier)
        return self._multiplier

    def _rise_of(self, weights: Mapping[str, Tensor]) -> float:
        return weights_rise(weights, self.held.importance, self.held.anchors, sum_of=self._holdings.sum_of)

    def _check_factored(self, importance: FactoredImportance) -> None:
        check_holds_factors("EWC.retain", budget=self.budget, pull=self.pull)

    def _accepted(self, importance: Importance) -> Importance:
        return importance if self.budget is None else in_nats(importance)

    def _retained(self) -> None:
        self._multiplier = 0.0

    def _references(self, weights: Mapping[str, Tensor]) -> dict[str, Reference]:
        if self.anchors is None:
            return {}
        return anchors_on_disk(self.anchors, weights, names=tied_names(self.model), where="EWC.retain")

    def _in_form(self, held: Retained) -> Retained:
        weights = {name: local(parameter.detach()) for name, parameter in all_parameters(self.model).items()}
        anchors = {
            name: self.forms.anchor_as(anchor, weights[name])
            if name in held.importance and not (self.anchors and isinstance(anchor, Reference))
            else anchor
            for name, anchor in held.anchors.items()
        }
        return replace(super()._in_form(held), anchors=anchors)

    def _progress(self) -> dict[str, Any]:
        return {**super()._progress(), "multiplier": self._multiplier}

    def _go_on(self, progress: Mapping[str, Any]) -> None:
        super()._go_on(progress)
        self._multiplier = progress["multiplier"]

    def _check_taken(self, held: Retained) -> None:
        if held.factors:
            check_holds_factors("EWC.load", budget=self.budget, pull=self.pull)
        if self.budget is not None and held.num_tasks and held.nats_per_unit != 1:
            raise OptionError(
                f"EWC.load: a budget is in nats, and the importance that was saved is not (nats_per_unit is "
                f"{held.nats_per_unit}). Load it with a strength, or retain again under a budget."
            )

    def _rise_for_report(self) -> float | None:
        return self.predicted_rise()

    def _strength_now(self) -> float | None:
        return self.strength if self.budget is None else self._multiplier

    def _check_strength(self, strength: object) -> None:
        super()._check_strength(strength)
        if strength == math.inf and self.pull != "implicit":
            raise OptionError(f'EWC: an infinite strength needs pull="implicit"; pull is {self.pull!r}.')

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        if self.metric is None and self.pull == "implicit" and (found := unknown_rate(optimizer)) is not None:
            remedy = "Pass metric=, such as lambda group, parameter, state: 1 / 1e-3 for steps of about 1e-3. Or: "
            raise OptionError(no_rate("EWC", type(optimizer).__name__, found, remedy=remedy))
        if self.pull == "implicit" and is_unsteady(optimizer):
            self._warn(unsteady_warning(others='pull="gradient", which LBFGS minimises beside the loss, '))
        if self.metric is None and self.pull == "implicit" and update_rule(optimizer) == "other":
            self._warn(
                f"{type(optimizer).__name__} is no optimizer whose metric is known: its plain learning rate is taken, "
                "so that a strength means something else than under SGD and Adam. Pass metric= for an exact one."
            )
        if self.metric is not None and self.pull != "implicit":
            self._warn(f'metric= has no effect under pull={self.pull!r}; it belongs to pull="implicit".')
        if self.metric is not None and update_rule(optimizer) != "other":
            self._warn(f"metric= takes the place of the exact metric of {type(optimizer).__name__}.")

    def _options(self) -> dict[str, Any]:
        return {
            "strength": self.strength,
            "budget": self.budget,
            "pull": self.pull,
            "every": self.every,
            "accumulate": accumulate_to_json(self.accumulate),
            "weighting": self.weighting,
            "new_parameters": self.new_parameters,
            "importance_dtype": self.forms.importance,
            "anchor_dtype": self.forms.anchors,
            "anchors": self.anchors,
            "offload": "cpu" if self.forms.offload else None,
            "log_every": self.log_every,
        }
