"""What holds a model's skills: it retains tasks, attaches to optimizers, reports, and is saved."""

from __future__ import annotations

import copy
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.curvature import Accumulate, Measured, Weighting, shapes_of
from holdfast.errors import OptionError, StateError
from holdfast.memory import AnchorForm, Forms, ImportanceForm, Retained
from holdfast.memory.stored import num_positive
from holdfast.probes import Probes
from holdfast.records import Importance, ImportanceInfo, check_names, check_tensors
from holdfast.replicas import Replicas
from holdfast.retention.attachments import Attachments
from holdfast.retention.checks import weights_elsewhere
from holdfast.retention.closing import Rewound, go_back, new_task_cost
from holdfast.retention.holdings import Holdings
from holdfast.retention.mechanism import Mechanism, as_budget, check_choices, check_mechanism, check_option
from holdfast.retention.options import KeeperOptions, NewParameters, check_rule_of
from holdfast.retention.persistence import Persistent
from holdfast.retention.plan import check_covered, check_held_shapes, check_same_curvature
from holdfast.retention.replicas import check_replicas
from holdfast.retention.report import Report, counted, rise_unit
from holdfast.retention.rewinding import new_task
from holdfast.retention.rise import layers_rise, weights_rise
from holdfast.retention.skills import Skill, Skills
from holdfast.retention.statistics import HeldStatistics, Statistics
from holdfast.tensors import TensorMap, all_parameters, check_real, copied, sum_of, trainable_parameters, unwrap

logger = logging.getLogger("holdfast")


class Keeper(Persistent):
    """Holds what a model has learned while its optimizer learns on, by a mechanism. `EWC` and `WVA` are keepers.

    Args:
        model: the model; tied weights count once, frozen ones are left out, wrappers are seen through.
        mechanism: what is done to the weights at every step.
        accumulate: "sum", "mean", "max", "per_task" (one anchor a task, collapsed exactly) or `Decayed(gamma)`.
        weighting: "task", or "examples": each importance times its number of targets over that of the first (one target
            an example, or each token of a text).
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
            and brings them over block by block in each step.
        statistics: what a forward pass in training changes besides the weights, such as the running statistics of batch
            norm: "warn" says so once where it is seen, "hold" holds them as they were when the task was retained, so
            that norms use these in training too, and "free" lets them move (`holdfast.retention.statistics`).
        probe_every: steps from one measurement of the skills' rises to the next, where they were retained with probes.
            A measurement is a forward pass over the probes of every skill. "auto": after each pull at first, then ever
            more rarely, when the lesson has grown by a quarter to an eighth, and once in 128 steps at least
            (`holdfast.retention.controller`).
        log_every: every so many steps of an optimizer the pull is measured and a line logged at INFO (logger
            "holdfast"); 0: never.

    Raises:
        OptionError: an option out of its range.
        UnsupportedLayerError: a trainable parameter is not of real numbers.

    Copied together with its model and optimizer, `copy.deepcopy((model, optimizer, keeper))` gives a keeper that is
    attached to the copies. It is not pickled: `save` and `state_dict` are its files.
    """

    def __init__(
        self,
        model: nn.Module,
        mechanism: Mechanism,
        *,
        accumulate: Accumulate = "sum",
        weighting: Weighting = "task",
        new_parameters: NewParameters = "error",
        importance_dtype: ImportanceForm = "float32",
        anchor_dtype: AnchorForm = "float32",
        anchors: str | os.PathLike[str] | None = None,
        offload: Literal["cpu"] | None = None,
        statistics: Statistics = "warn",
        probe_every: int | Literal["auto"] = "auto",
        log_every: int = 100,
    ) -> None:
        check_mechanism(mechanism, taken={*KeeperOptions.__annotations__, "model", "mechanism"})
        where = mechanism.name
        trains = bool(trainable_parameters(model))
        check_option(trains, "model", type(model).__name__, "one with trainable parameters", where=where)
        check_real(trainable_parameters(model), where=where)
        self.model, self.mechanism = model, mechanism
        self.accumulate: Accumulate = accumulate
        self.weighting: Weighting = weighting
        self.new_parameters: NewParameters = new_parameters
        self.importance_dtype: ImportanceForm = importance_dtype
        self.anchor_dtype: AnchorForm = anchor_dtype
        self.offload: Literal["cpu"] | None = offload
        self.statistics: Statistics = statistics
        self.probe_every = probe_every
        self.log_every = log_every
        check_choices(self, KeeperOptions, where=where)
        check_rule_of(accumulate, mechanism)
        counts = isinstance(log_every, int) and log_every >= 0
        check_option(counts, "log_every", log_every, "a whole number >= 0", where=where)
        counts = probe_every == "auto" or (isinstance(probe_every, int) and probe_every >= 1)
        check_option(counts, "probe_every", probe_every, 'a whole number >= 1 or "auto"', where=where)
        self._replicas = Replicas(model)
        self._skills = Skills(model, where=where, every=probe_every, replicas=self._replicas)
        self._holdings = Holdings(
            model,
            forms=Forms(importance_dtype, anchor_dtype, offload == "cpu"),
            where=where,
            anchored=mechanism.anchored,
            check_sharded=mechanism.check_sharded,
        )
        self.anchors = anchors
        self._statistics = HeldStatistics(
            model, statistics, where=where, moving=self._holdings.moving, resting=self._holdings.resting
        )
        self._attachments = Attachments(
            model, mechanism, self._holdings, self._statistics, stepped=self._after_step, measured=self._log
        )

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.mechanism.options().items() if v is not None)
        weights = sum(value.numel() for value in self.held.covered.values())
        attached = ", ".join(type(optimizer).__name__ for optimizer in self.optimizers) or "no optimizer"
        model, tasks = type(unwrap(self.model)).__name__, counted(self.held.num_tasks, "task")
        return f"{self.name}({model}, {options}: {tasks}, {weights:,} weights held, attached to {attached})"

    # --- what a user does

    @property
    def name(self) -> str:
        """Of the mechanism, in messages, reports and files."""
        return self.mechanism.name

    @property
    def held(self) -> Retained:
        """What is held of the tasks retained so far; replaced, never changed in place."""
        return self._holdings.held

    @held.setter
    def held(self, value: Retained) -> None:
        self._holdings.held = value

    @property
    def anchors(self) -> str | None:
        """The checkpoint that `retain` is to find today's weights in; None for anchors in memory."""
        return self._holdings.checkpoint

    @anchors.setter
    def anchors(self, path: str | os.PathLike[str] | None) -> None:
        self._holdings.set_checkpoint(path, self.accumulate)

    @property
    def skills(self) -> tuple[Skill, ...]:
        """The tasks that were retained with probes, and what they have lost; see `holdfast.retention.skills`."""
        return tuple(self._skills.all)

    @property
    def group(self) -> Any:
        """The process group that trains the model together, whose mean a measured rise is; None for this process alone.

        It is that of the `DistributedDataParallel` that the keeper was built on, or all processes where `fully_shard`
        has spread the model. Of a bare model it is to be set, in all processes at once, where it is wrapped later; the
        callbacks for Trainers do so.
        """
        return self._replicas.group

    @group.setter
    def group(self, value: Any) -> None:
        self._replicas.named = value
        self._skills.join()
        self._begin(self._skills)

    @property
    def is_sharded(self) -> bool:
        """Whether every process holds what belongs to its own shards of the model."""
        return self._holdings.shards is not None

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that it is attached to, without what wraps them."""
        return self._attachments.optimizers

    def attach(self, optimizer: Any) -> Self:
        """Hold this optimizer's steps back from now on, through its step hooks; the loop does not change.

        Several optimizers may be attached, one after the other or together. Wrappers with an `.optimizer` are seen
        through. Under `GradScaler`, skipped steps pull nothing.

        Returns:
            The keeper itself.

        Raises:
            StateError: it is attached to this optimizer already, this is no torch optimizer, or its steps cannot be
                followed (`holdfast.steps.bare_optimizer`).
            ParameterMismatchError: the optimizer trains none of the model's parameters.
            UnsupportedLayerError: a trainable parameter is not of real numbers.
            OptionError: the metric of its steps cannot be known, for want of a learning rate.

        Warns where weights are known to move without being held: an optimizer with weights of its own now, any other as
        soon as it is seen (`holdfast.retention.unheld`). An optimizer stays attached, and in memory, until `detach`:
        where each task or epoch builds a new one, `keeper.detach().attach(optimizer)`.
        """
        self._attachments.add(optimizer, new_parameters=self.new_parameters, log_every=self.log_every)
        return self

    def detach(self) -> Self:
        """Take every hook off again, of the model too; what is retained stays."""
        self._attachments.remove()
        return self

    @torch.no_grad()
    def retain(
        self,
        importance: Mapping[str, Tensor] | Measured,
        *,
        probes: Probes | None = None,
        budget: float | None = None,
        anchors: TensorMap | None = None,
    ) -> Self:
        """Close a task: merge its importance into what is held, and move the anchors to today's weights.

        A new lesson begins for every skill that has probes: its rise is measured, and its budget holds from here.
        With `anchors` the task was closed at those weights, here or in another copy of the model: its rise counts from
        there, and no lesson of the other skills ends. Under accumulate="per_task" each task keeps its own, joined
        exactly where a diagonal holds them and nearly under Kronecker factors; under the other rules the newest hold
        for all.

        Args:
            importance: an `Importance`, a plain mapping from name to tensor >= 0 of the parameter's shape, or for
                mechanisms that hold whole layers a `FactoredImportance`.
            probes: of this task, for what it loses to be measured (`probes_of`); None for those that the importance
                brings along, if any. Where several processes train the model (`group`) a rise is the mean over them:
                with probes each of them retains, steps and closes.
            budget: of this task alone, in nats per target; None for the keeper's.
            anchors: name -> the weights at which the task was closed, such as a `state_dict()`; None for today's.

        Returns:
            The keeper itself.

        Raises:
            NotFiniteError: an entry is NaN, infinite or negative, or a weight to be an anchor is NaN or infinite.
            UnsupportedLayerError: a trainable parameter is not of real numbers.
            ParameterMismatchError: names or shapes that do not match the model, parameters without importance under
                `new_parameters="error"`, or anchors by reference that are not today's weights.
            FileFormatError: anchors by reference, and their checkpoint is missing, truncated or no safetensors file.
            OptionError: a budget without probes over an importance whose unit is not nats; a budget for this task
                where the keeper has a strength; Kronecker factors where they have no meaning, or for a parameter that
                is held by a diagonal; no mapping to dense tensors of real numbers; probes that are none; anchors given
                to a mechanism that has none, or beside a checkpoint to find them in.
            StateError: the model takes probes no more; the processes that train replicas of the model hold different
                importances (`check_replicas`).

        Nothing is changed when it raises. Cost: a copy of importance and, with anchors, of the weights, in the forms
        they are held in and made a few megabytes at a time; for Kronecker factors two eigendecompositions a layer.
        """
        where = f"{self.name}.retain"
        self._attachments.compare()
        parameters = trainable_parameters(self.model)
        check_real(parameters, where=where)
        given = as_importance(importance, where=where)
        check_replicas(given, self.model, where=where)
        in_layers = shapes_of(given.layers)
        rests = {name for name in in_layers if name in all_parameters(self.model) and name not in parameters}
        covers = {**given.diagonal, **{name: zero for name, zero in in_layers.items() if name not in rests}}
        check_names(covers, self.model, where=where)
        check_held_shapes(self.held, self.model, where=where)
        elsewhere = None if anchors is None else self._elsewhere(anchors, covers, where=where)
        accepted = self.mechanism.accepted(given, where=where)
        probes = getattr(importance, "probes", None) if probes is None else probes
        steering = self.mechanism.steering(accepted)
        skills = self._skills.with_skill(
            probes, budget, of_keeper=self.mechanism.budget, steering=steering, closed_here=elsewhere is None
        )
        if self.mechanism.budget is not None and not skills.are_bounded:
            accepted = self.mechanism.forecast(accepted, where=where)
        check_same_curvature(covers, shapes_of(accepted.layers), self.held, where=where)
        covered = Retained(importance={**self.held.covered, **covers}, num_tasks=self.held.num_tasks)
        check_covered(list(parameters), covered, new_parameters=self.new_parameters, where=where)
        self._holdings.follow_shards()
        self._holdings.close(accepted, at=elsewhere, rule=self.accumulate, weighting=self.weighting)
        self._statistics.retain()
        self._attachments.count_from([])
        self.mechanism.retained(self.held)
        self._begin(skills)
        self._attachments.watch()
        return self

    def close(
        self,
        data: Iterable[Any] | None = None,
        *,
        importance: Mapping[str, Tensor] | Measured | None = None,
        loss: Any = None,
        max_loss: float = math.inf,
    ) -> Rewound | None:
        """End a lesson: measure what every skill has lost in it, and `rewind` where a budget is exceeded.

        Call it before evaluating, and before measuring the importance of what was learned, with the optimizers still
        attached. Where pulls come at every few steps, it first makes up for the steps since the last one. Without
        probes that is all.

        Args:
            data: see `rewind`; so are the others.
            importance: of the new task.
            loss: of the new task.
            max_loss: the most that the new task may lose.

        Returns:
            What going back did; None where every budget was kept.

        Raises:
            NotFiniteError, StateError: as `Probes.rise`.
        """
        self._attachments.compare()
        self._attachments.finish()
        self._attachments.watch()
        skills = self._skills
        worst, skills.is_closed = skills.measure(), True
        if worst <= 1:
            return None
        if self.mechanism.anchored:
            return self.rewind(importance=importance, data=data, loss=loss, max_loss=max_loss)
        warnings.warn(
            f"{self.name}.close: the budget is exceeded: {skills.told()}; without anchors there is no way back. Train "
            "for fewer steps or at a lower learning rate, or hold with EWC.",
            stacklevel=2,
        )
        return None

    def rewind(
        self,
        budget: float | None = None,
        *,
        importance: Mapping[str, Tensor] | Measured | None = None,
        data: Iterable[Any] | None = None,
        loss: Any = None,
        max_loss: float = math.inf,
    ) -> Rewound:
        """Go back along the curvature toward the anchors, as little as keeps every skill within its budget.

        Also for weights that were trained elsewhere without a keeper: load them into the model, and rewind. How far is
        found by measuring on the probes of the skills, or without these by the forecast (`predicted_rise`).

        Args:
            budget: nats per target for every skill, since its lesson began; None for their own.
            importance: of the new task, measured at the weights as they are, such as `hf.kfac(model, new_data)`. With
                it the way back spares what the new task rests on, and costs it a fraction: under tight budgets the
                difference between both skills and one. What it says of weights that are not held is not used.
            data: batches of the new task. With them several ways back are tried, linear averaging among them, and the
                one at which the new task loses least is kept; without them there is one
                (`holdfast.retention.rewinding`).
            loss: of the new task, as for `fisher`.
            max_loss: nats per target that the new task may lose; where it would lose more, the trained weights stay,
                with a warning. Needs `data`.

        Returns:
            What going back did.

        Raises:
            OptionError: the mechanism has no anchors; there is no budget, or one that is no number above 0;
                `max_loss` without `data`; neither probes nor importances in nats.
            StateError: no task is retained.
            ParameterMismatchError: the importance lacks weights that are held, or is zero.
            NotFiniteError: as `Probes.rise`.

        Cost: about 15 forward passes over the probes; with `data` five times as many, six over the data, and a copy of
        these in memory; with Kronecker factors in `importance` two eigendecompositions a layer.
        """
        where = f"{self.name}.rewind"
        budget = None if budget is None else as_budget(budget, where=where)
        if not self.mechanism.anchored:
            raise OptionError(f"{where}: {self.name} keeps no anchors to go back to. Hold with EWC.")
        if not self.held.num_tasks:
            raise StateError(f"{where}: no task is retained yet, so there is nothing to go back to.")
        if max_loss < math.inf and data is None:
            raise OptionError(f"{where}: max_loss={max_loss!r} needs data=, batches of the new task.")
        given = self.mechanism.budget if budget is None else budget
        if given is None and not self._skills.are_bounded:
            raise OptionError(f"{where}: this keeper has no budget. Say one: rewind(0.05), in nats per target.")
        rises, budgets = self._skills.increments, [skill.budget if budget is None else budget for skill in self.skills]
        if not budgets:
            if self.held.nats_per_unit is None:
                raise OptionError(
                    f"{where}: a budget is in nats, and without probes the rise is forecast in the importances' unit, "
                    "whose factor to nats is not known. Retain with probes=, or calibrate it with hf.calibrated."
                )
            begun = self.held.nats_per_unit * (self.held.start + self.held.constant)
            rises, budgets = lambda: [self.predicted_rise() - begun], [given]
        self._attachments.compare()
        weights = all_parameters(self.model)
        new = None
        if importance is not None:
            new = new_task(as_importance(importance, where=where), self.held, weights, where=where)
        cost = None if data is None else new_task_cost(self.model, data, loss, replicas=self._replicas, where=where)
        found = go_back(weights, self.held, rises=rises, budgets=budgets, cost=cost, max_loss=max_loss, new=new)
        self._holdings.settle()
        self._attachments.watch()
        if not found.kept:
            warnings.warn(f"{where}: {found.why}", stacklevel=2)
        return found

    @torch.no_grad()
    def predicted_rise(self, reference: TensorMap | None = None) -> float:
        """How much the old tasks' loss has risen by the quadratic model: 1/2 sum Omega (theta - anchor)^2, >= 0.

        Args:
            reference: name -> weights in place of the anchors, such as a copied `state_dict()` of the end of the old
                task; needed where the mechanism has no anchors.

        Returns:
            Nats per target within a factor, where all importances were calibrated along the ways that training goes
            (`calibrated`). Else what the quadratic model foresees, in nats by definition alone, as Fisher information
            is (`ImportanceInfo.nats_per_unit`), or in the importances' own unit; along the ways that training goes the
            real rise is larger, 5 to 35 times with Kronecker factors and 10 to 1,500 times with a diagonal.

        Raises:
            OptionError: no reference, and no anchors.
            ParameterMismatchError: names or shapes of `reference` do not match the model.

        Cost: one pass over the weights.
        """
        held, weights, where = self.held, all_parameters(self.model), f"{self.name}.predicted_rise"
        there, constant = held.anchors, held.constant
        if reference is not None:
            there = weights_elsewhere(reference, held.covered, self.model, where=where, what="weights of reference=")
            constant = 0.0
        elif not self.mechanism.anchored:
            raise OptionError(f"{where}: {self.name} keeps no anchors. Pass reference=, the weights of the old task.")
        rise = weights_rise(weights, held.importance, there, sum_of=self._holdings.sum_of)
        rise += layers_rise(weights, held.layers, there) + constant
        return rise * (1.0 if held.nats_per_unit is None else held.nats_per_unit)

    def report(self) -> Report:
        """Is it on, and does it work? Pull and pinned share are of the last measured steps (`log_every`)."""
        self._attachments.compare()
        parameters = trainable_parameters(self.model)
        in_layers, layers = shapes_of(self.held.layers), [layer.diagonal() for layer in self.held.layers.values()]
        weights = sum(parameter.numel() for name, parameter in parameters.items() if name not in in_layers)
        weights += sum(layer.numel() for layer in layers)
        protected = self._holdings.sum_of(
            num_positive(value) for name, value in self.held.importance.items() if name in parameters
        )
        protected += sum_of((layer > 0).sum() for layer in layers)
        pinned, pull_ratio = self._attachments.ratios
        return Report(
            mechanism=self.name,
            num_tasks=self.held.num_tasks,
            num_steps=sum(self._attachments.steps),
            strength=self.mechanism.acting_strength,
            protected=protected / weights if weights else 0.0,
            pinned=pinned,
            pull_ratio=pull_ratio,
            predicted_rise=self.predicted_rise() if self.mechanism.anchored else None,
            rise_unit=rise_unit(self.held),
            scatter=self.held.scatter,
            budget=self.mechanism.budget,
            anchored=self.mechanism.anchored,
            skills=tuple((skill.increment, skill.rise, skill.budget) for skill in self.skills),
            remarks=tuple(self._remarks(parameters)) if self.held.num_tasks else (),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = memo[id(self)] = type(self).__new__(type(self))
        mechanism = copy.deepcopy(self.mechanism, memo)
        Keeper.__init__(twin, copied(self.model, memo, where=self.name), mechanism, **self._own_options())
        tensors, notes = self.state()
        twin.load_state({name: tensor.clone() for name, tensor in tensors.items()}, notes)
        twin._replicas.named = self._replicas.named
        for skill, original in zip(twin.skills, self.skills, strict=True):  # a loss of one's own is in no state
            skill.probes = replace(skill.probes, loss=copy.deepcopy(original.probes.loss, memo))
        twin._attachments.add_copies(
            self._attachments, memo, new_parameters=self.new_parameters, log_every=self.log_every
        )
        of_subclass = vars(self).keys() - vars(twin).keys()
        vars(twin).update({name: copy.deepcopy(vars(self)[name], memo) for name in of_subclass})
        return twin

    def _elsewhere(self, anchors: TensorMap, covers: Iterable[str], *, where: str) -> dict[str, Tensor]:
        if not self.mechanism.anchored:
            raise OptionError(f"{where}: {self.name} keeps no anchors. Leave anchors= out, or hold with EWC.")
        if self.anchors is not None:
            raise OptionError(
                f"{where}: anchors= are given, and the keeper is to find today's weights in {self.anchors!r}. Build it "
                "without anchors=."
            )
        names = [*covers, *self.held.covered]
        return weights_elsewhere(anchors, names, self.model, where=where, what="weights of anchors=")

    def _remarks(self, parameters: TensorMap) -> Iterator[str]:
        covered = self.held.covered
        if free := [name for name in parameters if name not in covered]:
            yield f"{counted(len(free), 'parameter')} not held, such as {free[0]!r}"
        if loose := self._statistics.loose:
            yield f"{counted(len(loose), 'running statistic')} not held, such as {loose[0]!r}"
        yield from self._skills.remarks()

    def _begin(self, skills: Skills) -> None:
        self._skills = skills
        if skills.are_bounded and self.mechanism.budget is not None:
            self.mechanism.steer(skills.controller.strength)

    def _after_step(self) -> None:
        strength = self._skills.after_step(period=self.mechanism.period)
        if strength is not None and self.mechanism.budget is not None:
            self.mechanism.steer(strength)

    def _log(self) -> None:
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", self.report())


def as_importance(importance: Any, *, where: str) -> Measured:
    """As it is; of a plain mapping an `Importance` of unknown unit."""
    if hasattr(importance, "layers") and hasattr(importance, "info"):
        return importance
    check_tensors(importance, where=where, error=OptionError)
    return Importance(dict(importance), ImportanceInfo(kind="custom", num_examples=0))
