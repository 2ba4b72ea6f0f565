"""What holds a model's skills: it retains tasks, attaches to optimizers, reports, and is saved."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Mapping
from functools import reduce
from inspect import signature
from operator import add
from typing import Any, ClassVar, Literal, NoReturn, Self, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.curvature import Accumulate, Measured, Weighting, shapes_of
from holdfast.curvature.rules import check_rule
from holdfast.errors import OptionError, ParameterMismatchError, StateError
from holdfast.files import from_bytes, to_bytes
from holdfast.memory import AnchorForm, ImportanceForm, Retained
from holdfast.memory.stored import num_positive
from holdfast.records import Importance, ImportanceInfo, check_names, check_shapes, check_tensors
from holdfast.retention import files
from holdfast.retention.attachment import Attachment
from holdfast.retention.checks import check_mechanism_progress, check_notes, check_progress
from holdfast.retention.holdings import Holdings
from holdfast.retention.mechanism import Mechanism, check_mechanism, check_option
from holdfast.retention.meter import Figures
from holdfast.retention.options import (
    chosen_forms,
    moved_around_warning,
    own_weights_warning,
    unheld_warning,
)
from holdfast.retention.plan import Plan, check_covered, check_held_shapes, check_same_curvature
from holdfast.retention.replicas import check_replicas
from holdfast.retention.report import Report, counted
from holdfast.retention.rise import layers_rise, weights_rise
from holdfast.retention.statistics import HeldStatistics, Statistics
from holdfast.retention.unheld import UnheldDetector, moved_by_steps_alone
from holdfast.steps import Copies, bare_optimizer, optimizer_around, weights_of_wrapper
from holdfast.tensors import TensorMap, all_parameters, check_real, copied, shard, sum_of, trainable_parameters, unwrap

logger = logging.getLogger("holdfast")

NewParameters = Literal["error", "free"]


class KeeperOptions(TypedDict, total=False):
    """The options of every keeper; `Keeper` says what they mean."""

    accumulate: Accumulate
    weighting: Weighting
    new_parameters: NewParameters
    importance_dtype: ImportanceForm
    anchor_dtype: AnchorForm
    anchors: str | os.PathLike[str] | None
    offload: Literal["cpu"] | None
    statistics: Statistics
    log_every: int


class Keeper:
    """Holds what a model has learned while its optimizer learns on, by a mechanism. `EWC` and `WVA` are keepers.

    Args:
        model: the model; tied weights count once, frozen ones are left out, wrappers are seen through.
        mechanism: what is done to the weights at every step.
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
            and brings them over block by block in each step.
        statistics: what a forward pass in training changes besides the weights, such as the running statistics of batch
            norm: "warn" says so once where it is seen, "hold" holds them as they were when the task was retained, so
            that norms use these in training too, and "free" lets them move (`holdfast.retention.statistics`).
        log_every: every so many steps of an optimizer the pull is measured and a line logged at INFO (logger
            "holdfast"); 0: never.

    Raises:
        OptionError: an option out of its range.
        UnsupportedLayerError: a trainable parameter is not of real numbers.

    Copied together with its model and optimizer, `copy.deepcopy((model, optimizer, keeper))` gives a keeper that is
    attached to the copies. It is not pickled: `save` and `state_dict` are its files.
    """

    _kind: ClassVar[type[Mechanism] | None] = None  # whose options the constructor takes in the mechanism's place

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
        log_every: int = 100,
    ) -> None:
        check_mechanism(mechanism, taken={*KeeperOptions.__annotations__, "model", "mechanism"})
        where = mechanism.name
        check_rule(accumulate, where=where)
        if accumulate == "per_task" and not mechanism.anchored:
            raise OptionError(f'{where}: accumulate="per_task" joins anchors, and {where} has none. Use "sum".')
        for option, value, expected in (
            ("weighting", weighting, ("task", "examples")),
            ("new_parameters", new_parameters, ("error", "free")),
        ):
            check_option(value in expected, option, value, '"{}" or "{}"'.format(*expected), where=where)
        known = statistics in ("warn", "hold", "free")
        check_option(known, "statistics", statistics, '"warn", "hold" or "free"', where=where)
        counts = isinstance(log_every, int) and log_every >= 0
        check_option(counts, "log_every", log_every, "a whole number >= 0", where=where)
        trains = bool(trainable_parameters(model))
        check_option(trains, "model", type(model).__name__, "one with trainable parameters", where=where)
        check_real(trainable_parameters(model), where=where)
        self.model, self.mechanism = model, mechanism
        self.accumulate: Accumulate = accumulate
        self.weighting: Weighting = weighting
        self.new_parameters: NewParameters = new_parameters
        self.statistics: Statistics = statistics
        self.log_every = log_every
        self._holdings = Holdings(
            model,
            forms=chosen_forms(where, importance=importance_dtype, anchors=anchor_dtype, offload=offload),
            where=where,
            anchored=mechanism.anchored,
            check_sharded=mechanism.check_sharded,
        )
        self.anchors = anchors
        self._statistics = HeldStatistics(
            model, statistics, where=where, moving=self._holdings.moving, resting=self._holdings.resting
        )
        self._attachments: list[Attachment] = []
        self._resumed: list[int] = []  # steps of the optimizers to come, in the order of attaching
        self._figures: tuple[float | None, float | None] = None, None
        self._unheld = UnheldDetector(self._warn_unheld, self._warn_moved_around)

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
    def is_sharded(self) -> bool:
        """Whether every process holds what belongs to its own shards of the model."""
        return self._holdings.shards is not None

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that it is attached to, without what wraps them."""
        return [attachment.optimizer for attachment in self._attachments]

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
        soon as it is seen (`holdfast.retention.unheld`).
        """
        bare = bare_optimizer(optimizer)
        if any(attached is bare for attached in self.optimizers):
            raise StateError(f"{self.name}: already attached to this {type(bare).__name__}. Call detach() first.")
        check_real(trainable_parameters(self.model), where=f"{self.name}.attach")
        own = {id(parameter) for parameter in trainable_parameters(self.model).values()}
        trained = [p for group in bare.param_groups for p in group["params"] if id(p) in own]
        if not trained:
            raise ParameterMismatchError(
                f"{self.name}: this {type(bare).__name__} trains none of the {len(own)} trainable parameters of "
                f"{type(unwrap(self.model)).__name__}. Build the optimizer from the same model's parameters()."
            )
        messages = list(self.mechanism.check(bare))
        if (kind := weights_of_wrapper(optimizer, bare)) is not None:
            messages.append(own_weights_warning(kind))
        for message in messages:
            warnings.warn(f"{self.name}: {message}", stacklevel=2)
        self._holdings.follow_shards()
        around = optimizer_around(optimizer, bare)
        attachment = Attachment(
            bare,
            mechanism=self.mechanism,
            holdings=self._holdings,
            plan=Plan(
                self.model,
                new_parameters=self.new_parameters,
                forms=self._holdings.forms,
                where=self.name,
                residuals=self._holdings.residuals if self.mechanism.moves_weights else None,
            ),
            copies=Copies(bare, trained if kind is None else []),
            unheld=self._unheld,
            statistics=self._statistics,
            log_every=self.log_every,
            measured=self._log,
            num_steps=self._resumed.pop(0) if self._resumed else 0,
            around=around,
        )
        self._attachments.append(attachment)
        self._unheld.add(moved_by_steps_alone(trained, self.model), around=around is not None)
        if self.held.num_tasks:
            self._start_watch()
        return self

    def detach(self) -> Self:
        """Take every hook off again, of the model too; what is retained stays."""
        self._resumed, self._figures = self._steps(), self._measured()
        for attachment in self._attachments:
            attachment.remove()
        self._attachments.clear()
        self._unheld.remove()
        self._statistics.release()
        return self

    @torch.no_grad()
    def retain(self, importance: Mapping[str, Tensor] | Measured) -> Self:
        """Close a task: merge its importance into what is held, and move the anchors to today's weights.

        Args:
            importance: an `Importance`, a plain mapping from name to tensor >= 0 of the parameter's shape, or for
                mechanisms that hold whole layers a `FactoredImportance`.

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
            StateError: the processes that train replicas of the model hold different importances (`check_replicas`).

        Nothing is changed when it raises. Cost: a copy of importance and, with anchors, of the weights, in the forms
        they are held in and made a few megabytes at a time; for Kronecker factors two eigendecompositions a layer.
        """
        where = f"{self.name}.retain"
        self._unheld.compare()
        parameters = trainable_parameters(self.model)
        check_real(parameters, where=where)
        given = as_importance(importance, where=where)
        check_replicas(given, self.model, where=where)
        in_layers = shapes_of(given.layers)
        rests = {name for name in in_layers if name in all_parameters(self.model) and name not in parameters}
        covers = {**given.diagonal, **{name: zero for name, zero in in_layers.items() if name not in rests}}
        check_names(covers, self.model, where=where)
        check_held_shapes(self.held, self.model, where=where)
        accepted = self.mechanism.accepted(given, where=where)
        check_same_curvature(covers, shapes_of(accepted.layers), self.held, where=where)
        covered = Retained(importance={**self.held.covered, **covers}, num_tasks=self.held.num_tasks)
        check_covered(list(parameters), covered, new_parameters=self.new_parameters, where=where)
        self._holdings.follow_shards()
        self._holdings.close(accepted, rule=self.accumulate, weighting=self.weighting)
        self._statistics.retain()
        self._count_from([])
        self.mechanism.retained()
        self._start_watch()
        return self

    @torch.no_grad()
    def predicted_rise(self, reference: TensorMap | None = None) -> float:
        """How much the old tasks' loss has risen by the quadratic model: 1/2 sum Omega (theta - anchor)^2, >= 0.

        Args:
            reference: name -> weights in place of the anchors, such as a copied `state_dict()` of the end of the old
                task; needed where the mechanism has no anchors.

        Returns:
            Nats, where the importances know their factor (`ImportanceInfo.nats_per_unit`); else in their own unit.

        Raises:
            OptionError: no reference, and no anchors.
            ParameterMismatchError: names or shapes of `reference` do not match the model.

        Cost: one pass over the weights.
        """
        held, weights, where = self.held, all_parameters(self.model), f"{self.name}.predicted_rise"
        there, constant = held.anchors, held.constant
        if reference is not None:
            missing = [name for name in held.covered if name not in reference]
            if missing:
                raise ParameterMismatchError(
                    f"{where}: the reference lacks {', '.join(map(repr, missing))}. Give it under the names of the "
                    "bare model's state_dict()."
                )
            given = {name: reference[name] for name in held.covered}
            check_tensors(given, where=where, error=ParameterMismatchError)
            check_shapes(given, self.model, where=where, remedy="Give the weights of this model.")
            there = {name: shard(value.detach(), weights[name]) for name, value in given.items() if name in weights}
            constant = 0.0
        elif not self.mechanism.anchored:
            raise OptionError(f"{where}: {self.name} keeps no anchors. Pass reference=, the weights of the old task.")
        rise = weights_rise(weights, held.importance, there, sum_of=self._holdings.sum_of)
        rise += layers_rise(weights, held.layers, there) + constant
        return rise * (1.0 if held.nats_per_unit is None else held.nats_per_unit)

    def report(self) -> Report:
        """Is it on, and does it work? Pull and pinned share are those of the last measured steps (`log_every`)."""
        self._unheld.compare()
        parameters = trainable_parameters(self.model)
        in_layers, layers = shapes_of(self.held.layers), [layer.diagonal() for layer in self.held.layers.values()]
        weights = sum(parameter.numel() for name, parameter in parameters.items() if name not in in_layers)
        weights += sum(layer.numel() for layer in layers)
        protected = self._holdings.sum_of(
            num_positive(value) for name, value in self.held.importance.items() if name in parameters
        )
        protected += sum_of((layer > 0).sum() for layer in layers)
        pinned, pull_ratio = self._measured()
        return Report(
            mechanism=self.name,
            num_tasks=self.held.num_tasks,
            num_steps=sum(self._steps()),
            strength=self.mechanism.acting_strength,
            protected=protected / weights if weights else 0.0,
            pinned=pinned,
            pull_ratio=pull_ratio,
            predicted_rise=self.predicted_rise() if self.mechanism.anchored else None,
            rise_unit="importance units" if self.held.nats_per_unit is None else "nats",
        )

    # --- what is kept

    def options(self) -> dict[str, Any]:
        """The constructor's options but the model and a metric, of the mechanism and of the keeper."""
        return {**self.mechanism.options(), **self._keeper_options()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder `path`: importance, anchors, `keeper_config.json` and a `README.md`; whole or not at all.

        Of a sharded model every process calls it, and the first one writes what all of them hold, whole: it loads into
        any sharding or none. Of any other model, one process alone calls it.

        Raises:
            OutputError: if it cannot be written, or holds what holdfast did not write; it is then unchanged.
        """
        self._unheld.compare()
        held, extra = self._holdings.whole()
        try:
            if self._holdings.writes:
                files.save(
                    path,
                    held,
                    mechanism=self.name,
                    options=self.options(),
                    progress=self._progress(),
                    extra=extra,
                    model=unwrap(self.model),
                )
        finally:  # the others wait also where the first process is refused
            self._holdings.wait()

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: nn.Module, *, mechanism: type[Mechanism] | None = None, **options: Any
    ) -> Self:
        """A keeper as `save` wrote it, for `model`; `options` of the constructor replace the saved ones.

        Args:
            path: the folder.
            model: its weights are not touched: what is loaded is what is held, not the network. Attach it to go on.
            mechanism: the class of the mechanism, for `hf.Keeper.load`; `EWC.load` and `WVA.load` know theirs.
            options: see above.

        Raises:
            FileFormatError: a missing, truncated, edited or wrong-version file, or another mechanism's folder.
            ParameterMismatchError: names or shapes that do not match `model`.
        """
        kind = cls._kind or mechanism
        if not (isinstance(kind, type) and issubclass(kind, Mechanism)):
            raise OptionError(
                f"{cls.__name__}.load: say which mechanism it has: load(folder, model, mechanism=...), the class."
            )
        if mechanism not in (None, kind):
            raise OptionError(f"{cls.__name__}.load: its mechanism is its own. Use hf.Keeper.load for {mechanism!r}.")
        held, saved, progress, extra = files.load(
            path, mechanism=kind.name, anchors=kind.anchored, checkpoint=options.get("anchors")
        )
        own = set(signature(kind).parameters) - kind.unsaved
        files.check_saved_options(saved, {*KeeperOptions.__annotations__, *own}, where=path, kind=kind.name)
        given = {**saved, **options}
        if cls._kind is None:
            of_kind = {name: given.pop(name) for name in signature(kind).parameters if name in given}
            given = {"mechanism": kind(**of_kind), **given}
        keeper = cls(model, **given)
        keeper._take(held, extra, progress, where=f"{kind.name}.load({str(path)!r})", in_form=True)
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
            path, mechanism=self.name, anchors=self.mechanism.anchored, checkpoint=self.anchors
        )
        self._take(held, extra, progress, where=f"{self.name}.restore({str(path)!r})", in_form=True)
        return self

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that going on to the same bits needs, for a training checkpoint: tensors, and JSON notes.

        The tensors are those in use, as in torch's own state dicts: copy them to keep them past the next step.
        Of a sharded model every process asks for it, and the first gets it, whole.
        """
        tensors, notes = files.to_state(*self._holdings.whole())
        return tensors, {**notes, "mechanism": self.name, "progress": self._progress()}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            FileFormatError, NotFiniteError, ParameterMismatchError, OptionError: as `restore`.
        """
        where = f"{self.name}.load_state"
        check_notes(tensors, notes, parts=files.PARTS, mechanism=self.name, where=where)
        held, extra = files.from_state(tensors, notes, checkpoint=self.anchors, where=where)
        self._take(held, extra, notes["progress"], where=where)

    def state_dict(self) -> dict[str, Any]:
        """The same under one key, as bytes: for what asks objects for their `state_dict`.

        accelerate's `register_for_checkpointing` and `torch.distributed.checkpoint` take a keeper as it is; bytes have
        any length, so that they are read into a keeper that holds nothing yet as well. Cost: a copy of all that is
        held in the host's memory; `save` and `state` make none.
        """
        return {"keeper": to_bytes(*self.state())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            FileFormatError: it has no key "keeper", or its bytes are damaged.
            NotFiniteError, ParameterMismatchError, OptionError: as `restore`.
        """
        self.load_state(*from_bytes(state_dict.get("keeper"), where=f"{self.name}.load_state_dict"))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = memo[id(self)] = type(self).__new__(type(self))
        mechanism = copy.deepcopy(self.mechanism, memo)
        Keeper.__init__(twin, copied(self.model, memo, where=self.name), mechanism, **self._keeper_options())
        tensors, notes = self.state()
        twin.load_state({name: tensor.clone() for name, tensor in tensors.items()}, notes)
        for optimizer in self.optimizers:
            twin.attach(copy.deepcopy(optimizer, memo))
        of_subclass = vars(self).keys() - vars(twin).keys()
        vars(twin).update({name: copy.deepcopy(vars(self)[name], memo) for name in of_subclass})
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{self.name}: a keeper is bound to its model and optimizers, and is neither pickled nor copied alone. Use "
            "save(folder) and load(folder, model), state_dict(), or copy.deepcopy((model, optimizer, keeper))."
        )

    # --- inside

    def _keeper_options(self) -> KeeperOptions:
        forms = self._holdings.forms
        return {
            "accumulate": self.accumulate,
            "weighting": self.weighting,
            "new_parameters": self.new_parameters,
            "importance_dtype": forms.importance,
            "anchor_dtype": forms.anchors,
            "anchors": self.anchors,
            "offload": "cpu" if forms.offload else None,
            "statistics": self.statistics,
            "log_every": self.log_every,
        }

    def _progress(self) -> dict[str, Any]:
        """What besides `held` decides the steps and reports to come, as JSON values."""
        pinned, ratio = self._measured()
        steps = self._steps()
        told, own = (
            {"num_steps": sum(steps), "steps": steps, "pinned": pinned, "pull_ratio": ratio},
            self.mechanism.progress(),
        )
        check_mechanism_progress(own, taken=told, where=self.name)
        return {**told, **own}

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
        steps = check_progress(progress, names=self.mechanism.progress(), where=where)
        taken = self._holdings.checked(held, extra, where=where, in_form=in_form)
        self.mechanism.resume(progress, held, where=where)
        self._holdings.take(taken)
        self._count_from(steps)
        self._figures = progress["pinned"], progress["pull_ratio"]
        if held.num_tasks:
            self._start_watch()
        else:
            self._unheld.stop()

    def _count_from(self, steps: list[int]) -> None:
        """Count on from these steps of the attached optimizers in turn, and of those to come; 0 where there is none."""
        attached = len(self._attachments)
        for attachment, num_steps in zip(self._attachments, [*steps, *[0] * attached]):
            attachment.reset(num_steps)
        self._resumed, self._figures = steps[attached:], (None, None)

    def _steps(self) -> list[int]:
        """Held steps of the attached optimizers, and of those that are to be attached."""
        return [*(attachment.num_steps for attachment in self._attachments), *self._resumed]

    def _measured(self) -> tuple[float | None, float | None]:
        """Pinned share and pull ratio of the last measured step of every optimizer together."""
        found: list[Figures] = [a.figures for a in self._attachments if a.figures is not None]
        if not found:
            return self._figures
        total = reduce(add, found)
        return total.pinned_share, total.pull_ratio

    def _log(self) -> None:
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", self.report())

    def _start_watch(self) -> None:
        trained = {id(p) for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]}
        held, parameters = self.held.covered, trainable_parameters(self.model)
        others = [p for name, p in parameters.items() if name in held and id(p) not in trained] if trained else []
        self._unheld.start(others=moved_by_steps_alone(others, self.model))
        if self._attachments:
            self._statistics.begin()

    def _warn_unheld(self) -> None:
        kinds = ", ".join(type(optimizer).__name__ for optimizer in self.optimizers)
        warnings.warn(unheld_warning(self.name, kinds), stacklevel=2)

    def _warn_moved_around(self) -> None:
        for attachment in self._attachments:
            if attachment.around is not None:
                inner = type(attachment.optimizer).__name__
                warnings.warn(moved_around_warning(self.name, attachment.around, inner), stacklevel=2)


def as_importance(importance: Any, *, where: str) -> Measured:
    """As it is; of a plain mapping an `Importance` of unknown unit."""
    if hasattr(importance, "layers") and hasattr(importance, "info"):
        return importance
    check_tensors(importance, where=where, error=OptionError)
    return Importance(dict(importance), ImportanceInfo(kind="custom", num_examples=0))
