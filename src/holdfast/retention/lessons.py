"""From lesson to lesson: a task is retained, and what the next one takes from it is measured, and taken back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from holdfast.curvature import Accumulate, Measured, Weighting
from holdfast.errors import OptionError, StateError
from holdfast.memory import Retained
from holdfast.probes import Probes
from holdfast.replicas import Replicas, rest
from holdfast.retention.checks import weights_elsewhere
from holdfast.retention.closing import Rewound, go_back, new_task_cost
from holdfast.retention.mechanism import as_budget
from holdfast.retention.options import NewParameters
from holdfast.retention.owned import with_all_diagonals
from holdfast.retention.persistence import Persistent
from holdfast.retention.replicas import check_replicas
from holdfast.retention.rewinding import new_task
from holdfast.retention.rise import layers_rise, weights_rise
from holdfast.retention.skills import Skill, Skills
from holdfast.retention.statistics import HeldStatistics
from holdfast.retention.task import anchors_given, as_importance, check_joins, covered_by
from holdfast.tensors import TensorMap, all_parameters, check_real, trainable_parameters


class Lessons(Persistent):
    """The part of a keeper that goes from task to task: `retain`, `close`, `rewind`, and the rise that they are about.

    Attributes:
        accumulate: how the tasks' importances are merged.
        weighting: with which weights.
        new_parameters: whether trainable parameters without an importance are an error.
    """

    accumulate: Accumulate
    weighting: Weighting
    new_parameters: NewParameters
    _replicas: Replicas
    _statistics: HeldStatistics

    @property
    def held(self) -> Retained:
        """What is held of the tasks retained so far; replaced, never changed in place."""
        return self._holdings.held

    @held.setter
    def held(self, value: Retained) -> None:
        self._holdings.held = value

    @property
    def skills(self) -> tuple[Skill, ...]:
        """The tasks that were retained with probes, and what they have lost; see `holdfast.retention.skills`."""
        return tuple(self._skills.all)

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
        where = f"{self.mechanism.name}.retain"
        self._attachments.compare()
        check_real(trainable_parameters(self.model), where=where)
        given = as_importance(importance, where=where)
        check_replicas(given, self.model, where=where)
        covers = covered_by(given, self.model, held=self.held, where=where)
        elsewhere = None
        if anchors is not None:
            names, checkpoint = [*covers, *self.held.covered], self._holdings.checkpoint
            elsewhere = anchors_given(
                anchors, names, self.model, mechanism=self.mechanism, checkpoint=checkpoint, where=where
            )
        accepted = with_all_diagonals(self.mechanism.accepted(given, where=where), given, self.model, where=where)
        probes = getattr(importance, "probes", None) if probes is None else probes
        steering = self.mechanism.steering(accepted)
        skills = self._skills.with_skill(
            probes, budget, of_keeper=self.mechanism.budget, steering=steering, closed_here=elsewhere is None
        )
        if self.mechanism.budget is not None and not skills.are_bounded:
            accepted = self.mechanism.forecast(accepted, where=where)
        check_joins(covers, accepted, self.held, self.model, new_parameters=self.new_parameters, where=where)
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
            f"{self.mechanism.name}.close: the budget is exceeded: {skills.told()}; without anchors there is no way "
            "back. Train for fewer steps or at a lower learning rate, or hold with EWC.",
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
        where = f"{self.mechanism.name}.rewind"
        budget = None if budget is None else as_budget(budget, where=where)
        if not self.mechanism.anchored:
            raise OptionError(f"{where}: {self.mechanism.name} keeps no anchors to go back to. Hold with EWC.")
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
            given_new = as_importance(importance, where=where)
            new = new_task(given_new, self.held, weights, exchange=self._holdings.exchange, where=where)
        cost = None if data is None else new_task_cost(self.model, data, loss, replicas=self._replicas, where=where)
        found = go_back(
            weights,
            self.held,
            rises=rises,
            budgets=budgets,
            cost=cost,
            max_loss=max_loss,
            new=new,
            exchange=self._holdings.exchange,
        )
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
        rest(self.model)
        held, weights, where = self.held, all_parameters(self.model), f"{self.mechanism.name}.predicted_rise"
        there, constant = held.anchors, held.constant
        if reference is not None:
            there = weights_elsewhere(reference, held.covered, self.model, where=where, what="weights of reference=")
            constant = 0.0
        elif not self.mechanism.anchored:
            raise OptionError(
                f"{where}: {self.mechanism.name} keeps no anchors. Pass reference=, the weights of the old task."
            )
        rise = weights_rise(weights, held.importance, there, sum_of=self._holdings.sum_of)
        rise += layers_rise(weights, held, there, exchange=self._holdings.exchange) + constant
        return rise * (1.0 if held.nats_per_unit is None else held.nats_per_unit)

    def _begin(self, skills: Skills) -> None:
        self._skills = skills
        if skills.are_bounded and self.mechanism.budget is not None:
            self.mechanism.steer(skills.controller.strength)
