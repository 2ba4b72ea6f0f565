"""What holds a model's skills: it retains tasks, attaches to optimizers, reports, and is saved."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, Self

from torch import nn
from torch.optim import Optimizer

from holdfast.curvature import Accumulate, Weighting
from holdfast.memory import AnchorForm, Forms, ImportanceForm
from holdfast.replicas import Replicas
from holdfast.retention.attachments import Attachments
from holdfast.retention.holdings import Holdings
from holdfast.retention.lessons import Lessons
from holdfast.retention.mechanism import Mechanism, check_choices, check_mechanism, check_option
from holdfast.retention.options import KeeperOptions, NewParameters, check_rule_of
from holdfast.retention.report import Report, counted, protected_share, rise_unit
from holdfast.retention.skills import Skills
from holdfast.retention.statistics import HeldStatistics, Statistics
from holdfast.tensors import TensorMap, check_real, copied, trainable_parameters, unwrap

logger = logging.getLogger("holdfast")


class Keeper(Lessons):
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
            save the weights again and set `keeper.anchors`. The file must stay as it is. Of a sharded model every
            process reads its own part.
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
    def anchors(self) -> str | None:
        """The checkpoint that `retain` is to find today's weights in; None for anchors in memory."""
        return self._holdings.checkpoint

    @anchors.setter
    def anchors(self, path: str | os.PathLike[str] | None) -> None:
        self._holdings.set_checkpoint(path, self.accumulate)

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

    def report(self) -> Report:
        """Is it on, and does it work? Pull and pinned share are of the last measured steps (`log_every`)."""
        self._attachments.compare()
        parameters = trainable_parameters(self.model)
        pinned, pull_ratio = self._attachments.ratios
        return Report(
            mechanism=self.name,
            num_tasks=self.held.num_tasks,
            num_steps=sum(self._attachments.steps),
            strength=self.mechanism.acting_strength,
            protected=protected_share(self.held, parameters, sum_of_shards=self._holdings.sum_of),
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

    def _remarks(self, parameters: TensorMap) -> Iterator[str]:
        covered = self.held.covered
        if free := [name for name in parameters if name not in covered]:
            yield f"{counted(len(free), 'parameter')} not held, such as {free[0]!r}"
        if loose := self._statistics.loose:
            yield f"{counted(len(loose), 'running statistic')} not held, such as {loose[0]!r}"
        yield from self._skills.remarks()

    def _after_step(self) -> None:
        strength = self._skills.after_step(period=self.mechanism.period)
        if strength is not None and self.mechanism.budget is not None:
            self.mechanism.steer(strength)

    def _log(self) -> None:
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", self.report())
