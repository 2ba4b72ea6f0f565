"""What EWC and WVA share: they attach to an optimizer, retain tasks, report, and are saved.

`Keeper` is inherited, against our habit: the two mechanisms differ in a few lines of one step, and a reader
finds those lines alone in `ewc.py` and `wva.py`. What is held, in shards too, is in `holdings.py`; that this module is
long all the same is owed to the contracts of its public methods.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.errors import FileFormatError, OptionError, ParameterMismatchError, StateError
from holdfast.factored import FactoredImportance, check_factored_names, shapes_of
from holdfast.memory import Accumulate, Decayed, Forms, Retained, Weighting
from holdfast.memory.codes import IMPORTANCE_ERROR
from holdfast.memory.reference import Reference
from holdfast.memory.stored import num_positive
from holdfast.records import Importance, ImportanceInfo, check_names, check_tensors
from holdfast.retention import files
from holdfast.retention.checks import check_notes, check_progress
from holdfast.retention.holdings import Holdings
from holdfast.retention.meter import Meter
from holdfast.retention.options import (
    moved_around_warning,
    no_factors_in_shards,
    own_weights_warning,
    unheld_warning,
)
from holdfast.retention.parts import Part
from holdfast.retention.plan import Plan, check_covered, check_held_shapes, check_same_kind
from holdfast.retention.report import Report
from holdfast.retention.route import Route
from holdfast.retention.watch import Watch
from holdfast.steps import (
    Copies,
    Increment,
    Kept,
    StepHooks,
    bare_optimizer,
    can_recompute,
    optimizer_around,
    step_increments,
    weights_of_wrapper,
)
from holdfast.tensors import TensorMap, check_real, local, sum_of, trainable_parameters, unwrap

logger = logging.getLogger("holdfast")

NewParameters = Literal["error", "free"]


class Keeper(ABC):
    """Holds what a model has learned while its optimizer learns on. Use `EWC` or `WVA`."""

    mechanism: ClassVar[str]
    _has_anchors: ClassVar[bool]

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float | None,
        accumulate: Accumulate,
        weighting: Weighting,
        new_parameters: NewParameters,
        forms: Forms,
        log_every: int,
    ) -> None:
        if strength is not None:
            self._check_strength(strength)
        self._check(
            isinstance(accumulate, Decayed) or accumulate in ("sum", "mean", "max", "per_task"),
            "accumulate",
            accumulate,
            '"sum", "mean", "max", "per_task" or Decayed(gamma)',
        )
        self._check(weighting in ("task", "examples"), "weighting", weighting, '"task" or "examples"')
        self._check(new_parameters in ("error", "free"), "new_parameters", new_parameters, '"error" or "free"')
        self._check(isinstance(log_every, int) and log_every >= 0, "log_every", log_every, "a whole number >= 0")
        self._check(bool(trainable_parameters(model)), "model", type(model).__name__, "one with trainable parameters")
        self.model = model
        self._strength = strength
        self.accumulate: Accumulate = accumulate
        self.weighting: Weighting = weighting
        self.new_parameters: NewParameters = new_parameters
        self.forms = forms
        self.log_every = log_every
        check_real(trainable_parameters(model), where=self.mechanism)
        self._holdings = Holdings(
            model,
            forms=forms,
            where=self.mechanism,
            in_form=lambda held: self._in_form(held),
            check_shards=lambda held: self._check_can_be_sharded(held),
        )
        self._hooks: list[tuple[StepHooks, Plan]] = []
        self._num_steps = 0
        self._snapshots: dict[nn.Parameter, Tensor] = {}
        self._route = Route()
        self._meter: Meter | None = None
        self._pinned: float | None = None
        self._pull_ratio: float | None = None
        self._watch = Watch(self._warn_unheld, self._warn_moved_around)
        self._around: dict[Optimizer, str] = {}

    # --- what a user does

    @property
    def strength(self) -> float | None:
        """Lambda, 0..inf; None under a budget. It may be changed between steps."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if self._strength is None:
            raise OptionError(f"{self.mechanism}: it keeps a budget, not a strength. Set budget, or build another.")
        self._check_strength(value)
        self._strength = value

    @property
    def held(self) -> Retained:
        """What is held of the tasks retained so far; replaced, never changed in place."""
        return self._holdings.held

    @held.setter
    def held(self, value: Retained) -> None:
        self._holdings.held = value

    @property
    def is_sharded(self) -> bool:
        """Whether every process holds what belongs to its own shards of the model."""
        return self._holdings.shards is not None

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
        soon as it is seen (`holdfast.retention.watch`).
        """
        bare = bare_optimizer(optimizer)
        if any(hooks.optimizer is bare for hooks, _ in self._hooks):
            raise StateError(f"{self.mechanism}: already attached to this {type(bare).__name__}. Call detach() first.")
        check_real(trainable_parameters(self.model), where=f"{self.mechanism}.attach")
        own = {id(parameter) for parameter in trainable_parameters(self.model).values()}
        trained = [p for group in bare.param_groups for p in group["params"] if id(p) in own]
        if not trained:
            raise ParameterMismatchError(
                f"{self.mechanism}: this {type(bare).__name__} trains none of the {len(own)} trainable parameters of "
                f"{type(unwrap(self.model)).__name__}. Build the optimizer from the same model's parameters()."
            )
        self._check_optimizer(bare)
        if (kind := weights_of_wrapper(optimizer, bare)) is not None:
            self._warn(own_weights_warning(kind))
        self._holdings.follow_shards()
        plan = Plan(
            self.model,
            new_parameters=self.new_parameters,
            forms=self.forms,
            where=self.mechanism,
            residuals=self._holdings.residuals if self._changes_weights() else None,
            num_steps=self._num_steps,
        )
        copies = Copies(bare, trained if kind is None else [])
        hooks = StepHooks(
            bare,
            before=lambda _: self._before(bare, plan, copies),
            gradients=lambda _: self._at_gradients(bare, plan),
            after=lambda _: self._after(bare, plan),
        )
        self._hooks.append((hooks, plan))
        if (around := optimizer_around(optimizer, bare)) is not None:
            self._around[bare] = around
        self._watch.add(trained, around=around is not None)
        if self.held.num_tasks:
            self._start_watch()
        return self

    def detach(self) -> Self:
        """Take every hook off again; what is retained stays."""
        for hooks, _ in self._hooks:
            hooks.remove()
        self._hooks.clear()
        self._snapshots.clear()
        self._around.clear()
        self._watch.remove()
        return self

    @torch.no_grad()
    def retain(self, importance: Mapping[str, Tensor] | FactoredImportance) -> Self:
        """Close a task: merge its importance into what is held, and move the anchors to today's weights.

        Args:
            importance: an `Importance`, a plain mapping from name to tensor >= 0 of the parameter's shape, or for EWC a
                `FactoredImportance`.

        Returns:
            The keeper itself.

        Raises:
            NotFiniteError: an entry is NaN, infinite or negative, or a weight to be an anchor is NaN or infinite.
            UnsupportedLayerError: a trainable parameter is not of real numbers.
            ParameterMismatchError: names or shapes that do not match the model, parameters without importance under
                `new_parameters="error"`, or anchors by reference that are not today's weights.
            FileFormatError: anchors by reference, and their checkpoint is missing, truncated or no safetensors file.
            OptionError: a budget over an importance whose unit is not nats; Kronecker factors where they have no
                meaning, or for a parameter that is held by a diagonal; no mapping to dense tensors of real numbers.

        Nothing is changed when it raises. Cost: a copy of importance and, with anchors, of the weights, in the forms
        they are held in and made a few megabytes at a time; for Kronecker factors two eigendecompositions a layer.
        """
        layers: FactoredImportance | None = None
        if isinstance(importance, FactoredImportance):
            self._check_factored(importance)
            check_factored_names(importance, self.model, where=f"{self.mechanism}.retain")
            layers, importance = importance, importance.diagonal
        elif not isinstance(importance, Importance):
            check_tensors(importance, where=f"{self.mechanism}.retain", error=OptionError)
            importance = Importance(dict(importance), ImportanceInfo(kind="custom", num_examples=0))
        self._watch.compare()
        parameters = trainable_parameters(self.model)
        where = f"{self.mechanism}.retain"
        check_real(parameters, where=where)
        check_names(importance, self.model, where=where)
        check_held_shapes(self.held, self.model, where=where)
        new = {**importance, **shapes_of(layers or {})}
        check_same_kind(new, shapes_of(layers or {}), self.held, where=where)
        covered = Retained(importance={**self.held.covered, **new}, num_tasks=self.held.num_tasks)
        check_covered(list(parameters), covered, new_parameters=self.new_parameters, where=where)
        importance = self._accepted(importance)
        self._holdings.follow_shards()
        if layers is not None and self.is_sharded:
            raise OptionError(no_factors_in_shards(self.mechanism))
        self._holdings.close(
            importance,
            layers,
            anchored=self._has_anchors,
            rule=self.accumulate,
            weighting=self.weighting,
            references=self._references,
        )
        self._count_from(0)
        self._pinned = self._pull_ratio = None
        self._retained()
        self._start_watch()
        return self

    def report(self) -> Report:
        """Is it on, and does it work? Pull and pinned share are those of the last measured step (`log_every`)."""
        self._watch.compare()
        parameters = trainable_parameters(self.model)
        weights = sum(parameter.numel() for parameter in parameters.values())
        protected = self._holdings.sum_of(
            num_positive(value) for name, value in self.held.importance.items() if name in parameters
        )
        protected += sum_of((f.diagonal() > 0).sum() for name, f in self.held.factors.items() if name in parameters)
        return Report(
            mechanism=self.mechanism,
            num_tasks=self.held.num_tasks,
            num_steps=self._num_steps,
            strength=self._strength_now(),
            protected=protected / weights,
            pinned=self._pinned,
            pull_ratio=self._pull_ratio,
            predicted_rise=self._rise_for_report(),
            rise_unit="importance units" if self.held.nats_per_unit is None else "nats",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder `path`: importance, anchors, `keeper_config.json` and a `README.md`; whole or not at all.

        Of a sharded model every process calls it, and the first one writes what all of them hold, whole: it loads into
        any sharding or none. Of any other model, one process alone calls it.

        Raises:
            OutputError: if it cannot be written, or holds what holdfast did not write; it is then unchanged.
        """
        self._watch.compare()
        held, extra = self._holdings.whole()
        try:
            if self._holdings.writes:
                files.save(
                    path,
                    held,
                    mechanism=self.mechanism,
                    options=self._options(),
                    progress=self._progress(),
                    extra=extra,
                    model=unwrap(self.model),
                )
        finally:  # the others wait also where the first process is refused
            self._holdings.wait()

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module, **options: Any) -> Self:
        """A keeper as `save` wrote it, for `model`; `options` of the constructor replace the saved ones.

        The model's weights are not touched: what is loaded is what is held, not the network. Attach it to go on.

        Raises:
            FileFormatError: a missing, truncated, edited or wrong-version file, or another mechanism's folder.
            ParameterMismatchError: names or shapes that do not match `model`.
        """
        held, saved, progress, extra = files.load(
            path, mechanism=cls.mechanism, anchors=cls._has_anchors, checkpoint=options.get("anchors")
        )
        known = set(inspect.signature(cls).parameters) - {"model", "metric"}  # which no file holds
        unknown = sorted(set(saved) - known)
        if unknown:
            raise FileFormatError(f"{path}: unknown options of {cls.mechanism}: {', '.join(unknown)}. Save it again.")
        keeper = cls(model, **{**saved, **options})
        keeper._take(held, extra, progress, where=f"{cls.mechanism}.load({str(path)!r})", in_form=True)
        return keeper

    def restore(self, path: str | os.PathLike[str]) -> Self:
        """Go on from what `save` wrote; the options stay those of this keeper.

        Returns:
            The keeper itself.

        Raises:
            FileFormatError: as `load`.
            NotFiniteError: an importance that is not finite and >= 0, or an anchor that is not finite.
            ParameterMismatchError: as `load`.
            OptionError: what was saved contradicts an option of this keeper.

        Nothing is changed when it raises.
        """
        held, _, progress, extra = files.load(
            path,
            mechanism=self.mechanism,
            anchors=self._has_anchors,
            checkpoint=self._options().get("anchors"),
        )
        self._take(held, extra, progress, where=f"{self.mechanism}.restore({str(path)!r})", in_form=True)
        return self

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that going on to the same bits needs, for a training checkpoint: tensors, and JSON notes.

        Of a sharded model every process asks for it, and the first gets it, whole.
        """
        tensors, notes = files.to_state(*self._holdings.whole())
        return tensors, {**notes, "progress": self._progress()}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            FileFormatError, NotFiniteError, ParameterMismatchError, OptionError: as `restore`.
        """
        where = f"{self.mechanism}.load_state"
        check_notes(tensors, notes, parts=files.PARTS, where=where)
        held, extra = files.from_state(tensors, notes, where=where)
        self._take(held, extra, notes["progress"], where=where)

    def _take(
        self,
        held: Retained,
        extra: Mapping[str, TensorMap],
        progress: Mapping[str, Any],
        *,
        where: str,
        in_form: bool = False,
    ) -> None:
        """Look at all that was read, and then hold it; nothing is changed by a refusal."""
        check_progress(progress, names=self._progress(), where=where)
        self._check_taken(held)
        taken = self._holdings.checked(held, extra, anchored=self._has_anchors, where=where, in_form=in_form)
        self._holdings.take(taken)
        self._go_on(progress)
        if held.num_tasks:
            self._start_watch()
        else:
            self._watch.stop()

    # --- what a mechanism defines

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """Constructor options as JSON values, for `save`."""

    @abstractmethod
    def _hold(self, optimizer: Optimizer, plan: Plan) -> None:
        """Change the weights after a step."""

    def _check_optimizer(self, optimizer: Optimizer) -> None:  # noqa: B027
        """Warn of an optimizer under which an option means little."""

    def _changes_weights(self) -> bool:
        """Whether the weights themselves are pulled, after the step."""
        return not self._changes_gradients()

    def _changes_gradients(self) -> bool:
        return False

    def _gradients(self, optimizer: Optimizer, plan: Plan) -> None:  # noqa: B027
        """Change the gradients before a step."""

    def _needs_increments(self) -> bool:
        """Whether every step needs to know the optimizer's increments, not only measured ones."""
        return False

    def _measures(self, plan: Plan) -> bool:
        """Whether the coming step of the plan's optimizer is measured."""
        return self.log_every > 0 and self._num_steps % self.log_every == 0

    def _accepted(self, importance: Importance) -> Importance:
        """The importance as this mechanism holds it."""
        return importance

    def _references(self, weights: Mapping[str, Tensor]) -> dict[str, Reference]:
        """The anchors of these weights that stay on disk."""
        return {}

    def _in_form(self, held: Retained) -> Retained:
        """The same, in the forms that this keeper was asked for."""
        importance = {name: self.forms.importance_as(value) for name, value in held.importance.items()}
        changed = any(value is not held.importance[name] for name, value in importance.items())
        return replace(held, importance=importance, largest=held.largest * (1 + IMPORTANCE_ERROR * changed))

    def _check_factored(self, importance: FactoredImportance) -> None:
        """Raise unless this mechanism can hold Kronecker factors."""
        raise OptionError(
            f"{self.mechanism}.retain: this importance ({importance.info.kind}) has Kronecker factors, and "
            f"{self.mechanism} holds weights one by one. Retain its diagonal, importance.to_diagonal(), or use EWC."
        )

    def _retained(self) -> None:  # noqa: B027
        """Called when one more task has been retained."""

    def _progress(self) -> dict[str, Any]:
        """What besides `held` decides the steps and reports to come, as JSON values, for `save` and `state`."""
        return {"num_steps": self._num_steps, "pinned": self._pinned, "pull_ratio": self._pull_ratio}

    def _check_taken(self, held: Retained) -> None:  # noqa: B027
        """Raise where what was read of past tasks contradicts an option."""

    def _go_on(self, progress: Mapping[str, Any]) -> None:
        """Take up what `_progress` gave and `check_progress` accepted; `held` is in place."""
        self._count_from(progress["num_steps"])
        self._pinned, self._pull_ratio = progress["pinned"], progress["pull_ratio"]

    def _count_from(self, num_steps: int) -> None:
        self._num_steps = num_steps
        for _, plan in self._hooks:
            plan.num_steps = num_steps

    def _rise_for_report(self) -> float | None:
        return None

    def _strength_now(self) -> float | None:
        return self.strength

    # --- around a step

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, plan: Plan, copies: Copies) -> None:
        if self.held.num_tasks == 0:
            return
        self._watch.before_step()
        plan.gradients = {}
        if (key := copies.found()) is not None:
            warnings.warn(f"{self.mechanism}: {own_weights_warning(type(optimizer).__name__, key)}", stacklevel=2)
        measured = self._measures(plan)
        self._meter = Meter(self._holdings.sum_of) if measured else None
        parts = plan.all_parts(optimizer, self.held)
        if measured or self._needs_increments():
            self._snapshots = {
                parameter: local(parameter.detach()).clone()
                for part in parts
                for parameter in part.parameters
                if not can_recompute(optimizer, part.group, parameter)
            }
        if measured:
            moved = [parameter for layer in plan.layers(optimizer, self.held) for parameter in layer.parameters]
            self._snapshots |= {parameter: parameter.detach().clone() for parameter in moved}

    def _at_gradients(self, optimizer: Optimizer, plan: Plan) -> None:
        if self.held.num_tasks == 0:
            return
        plan.note_gradients()
        if self._watch.is_on or not plan.gradients:
            self._watch.without_gradients([p for p in plan.found if id(p) not in plan.gradients])
        if self._changes_gradients():
            self._gradients(optimizer, plan)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, plan: Plan) -> None:
        if self.held.num_tasks == 0:
            return
        self._hold(optimizer, plan)
        self._watch.after_step()
        plan.gradients = {}
        self._num_steps += 1
        plan.num_steps += 1
        self._snapshots = {}
        if self._meter is not None:
            self._pinned, self._pull_ratio = self._meter.read()
            self._meter = None
            if logger.isEnabledFor(logging.INFO):
                logger.info("%s", self.report())

    def _check_can_be_sharded(self, held: Retained) -> None:
        """Raise `OptionError` for what needs whole weights."""
        if held.factors:
            raise OptionError(no_factors_in_shards(self.mechanism))

    def _increments(self, optimizer: Optimizer, part: Part, gradients: Mapping[int, Tensor]) -> list[Increment | Kept]:
        """What the optimizer's own step added, to be computed before anything else changes the weights."""
        known = [parameter for parameter in part.parameters if parameter not in self._snapshots]
        described = iter(step_increments(optimizer, part.group, known, gradients=gradients) if known else ())
        return [Kept(self._snapshots[p]) if p in self._snapshots else next(described) for p in part.parameters]

    def _start_watch(self) -> None:
        trained = {id(p) for hooks, _ in self._hooks for group in hooks.optimizer.param_groups for p in group["params"]}
        held, parameters = self.held.covered, trainable_parameters(self.model)
        others = [p for name, p in parameters.items() if name in held and id(p) not in trained] if trained else []
        self._watch.start(others=others)

    def _warn_unheld(self) -> None:
        kinds = ", ".join(type(hooks.optimizer).__name__ for hooks, _ in self._hooks)
        warnings.warn(unheld_warning(self.mechanism, kinds), stacklevel=2)

    def _warn_moved_around(self) -> None:
        for bare, kind in self._around.items():
            warnings.warn(moved_around_warning(self.mechanism, kind, type(bare).__name__), stacklevel=2)

    def _check_strength(self, strength: object) -> None:
        holds = isinstance(strength, int | float) and strength >= 0
        self._check(holds, "strength", strength, "a number from 0 to infinity")

    def _check(self, holds: bool, option: str, value: object, expected: str) -> None:
        if not holds or (isinstance(value, float) and math.isnan(value)):
            raise OptionError(f"{self.mechanism}: {option} is {value!r}; expected {expected}.")

    def _warn(self, text: str) -> None:
        warnings.warn(f"{self.mechanism}: {text}", stacklevel=4)  # the line that attaches
