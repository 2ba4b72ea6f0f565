"""Weights held by their importance: every mechanism with every importance is a method."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.calibration import calibrated
from holdfast.curvature import Accumulate, Decayed, Weighting
from holdfast.curvature.factored import AnyImportance
from holdfast.errors import OptionError
from holdfast.files.typed import Within
from holdfast.importance import uniform
from holdfast.lab.methods.columns import importance_of_columns
from holdfast.lab.methods.estimators import (
    ClosedTask,
    Estimator,
    FisherOptions,
    FunctionEstimator,
    KfacOptions,
    MasOptions,
    PathEstimator,
    PathOptions,
    SignalOptions,
    measured_fisher,
    measured_kfac,
    measured_mas,
    measured_signal,
    measured_taylor,
)
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.registry import (
    COLOURS,
    IMPORTANCES,
    MECHANISMS,
    METHODS,
    ImportanceEntry,
    MechanismEntry,
    MethodEntry,
)
from holdfast.lab.methods.states import checked_state
from holdfast.lab.registry import combined
from holdfast.lab.streams import Examples
from holdfast.lab.training import Losses, task_loss
from holdfast.retention import EWC, WVA, Keeper
from holdfast.tensors import prefixed, under

_LESSON_BATCH = 32
"""Examples a step of a made-up lesson."""

Strength = Annotated[float, Within(0, math.inf)]


@dataclass(frozen=True, kw_only=True)
class HoldingOptions:
    """Of every mechanism that holds weights.

    Attributes:
        accumulate: "sum", "mean", "max", "per_task" or "decayed:GAMMA".
        weighting: "task" or "examples", which weighs by targets.
    """

    accumulate: str = "sum"
    weighting: Weighting = "task"

    def __post_init__(self) -> None:
        accumulation(self.accumulate)


@dataclass(frozen=True, kw_only=True)
class EwcOptions(HoldingOptions):
    """Of elastic weight consolidation.

    Attributes:
        strength: of the pull, where no budget is kept.
        budget: nats per target, in place of the strength.
        pull: "implicit", "gradient" or "penalty".
        pull_every: steps from one implicit pull to the next, each as strong as that many pulls together.
    """

    strength: Strength | None = None
    budget: Annotated[float, Within(1e-12, math.inf)] | None = None
    pull: Literal["implicit", "gradient", "penalty"] = "implicit"
    pull_every: Annotated[int, Within(1, 10**9)] = 1


@dataclass(frozen=True, kw_only=True)
class WvaOptions(HoldingOptions):
    """Of weight velocity attenuation.

    Attributes:
        strength: of the attenuation.
        attenuation: "hyperbolic" or "exponential".
        attenuate: "increments" or "gradients".
    """

    strength: Strength | None = None
    attenuation: Literal["hyperbolic", "exponential"] = "hyperbolic"
    attenuate: Literal["increments", "gradients"] = "increments"


def accumulation(text: str) -> Accumulate:
    """The rule that a text names: "sum", "mean", "max", "per_task" or "decayed:GAMMA".

    Raises:
        OptionError: it names none.
    """
    match text.split(":"):
        case ["sum" | "mean" | "max" | "per_task" as rule]:
            return rule
        case ["decayed", number]:
            try:
                gamma = float(number)
            except ValueError as error:
                raise OptionError(f"accumulate: {text!r} names no decay; expected such as 'decayed:0.9'.") from error
            return Decayed(gamma)
        case _:
            raise OptionError(f"accumulate is {text!r}; expected sum, mean, max, per_task or decayed:GAMMA.")


class KeeperLearner(Learner):
    """A keeper, and the importance it is given as each task closes.

    Args:
        model: to be trained.
        setting: of the stream.
        keeper: that holds the weights, such as `EWC`.
        estimator: of their importance.
        budget: nats that the keeper keeps to, for which an importance in another unit is calibrated; None: none.
        name: of the method, for messages.

    Attributes:
        keeper: as given.
        estimator: likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        setting: Setting,
        *,
        keeper: Keeper,
        estimator: Estimator,
        budget: float | None = None,
        name: str = "",
    ) -> None:
        super().__init__(model, setting)
        self.name, self.keeper, self.estimator, self._budget = name, keeper, estimator, budget
        self._penalty: Callable[[], Tensor] | None = None
        if isinstance(keeper, EWC) and keeper.pull == "penalty":
            self._penalty = keeper.penalty
        self._optimizer: Optimizer | None = None

    def attach(self, optimizer: Optimizer) -> None:
        """Hold this optimizer's steps from now on, in place of any other's."""
        self.keeper.detach().attach(optimizer)
        self._optimizer = optimizer
        self.estimator.attach(optimizer)

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The task's mean loss, and the penalty under `pull="penalty"`."""
        own = task_loss(self.model, inputs, targets, columns)
        return own, None if self._penalty is None else self._penalty()

    def after_step(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> None:
        """Let the estimator look back."""
        self.estimator.after_step(lambda: task_loss(self.model, inputs, targets, columns))

    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """Measure what the task needs, and hold it."""
        closed = ClosedTask(examples, classes, self.likelihood_of(classes), task, self.setting.seed + 1000 * task)
        importance = self.estimator.importance(closed)
        if self._budget is not None and importance.info.nats_per_unit is None:
            importance = self._calibrated(importance, closed, self._budget)
        with warnings.catch_warnings():  # a protocol's strength is chosen for its importance, whatever the unit
            warnings.filterwarnings(
                "ignore", message=r"EWC\.retain: a strength of 1\.0 is meant for importances in nats"
            )
            self.keeper.retain(importance)

    @property
    def steadier(self) -> str:
        """Beside an explicit pull the implicit one; beside WVA nothing, and why; nothing before a task is held."""
        if self.keeper.held.num_tasks == 0:
            return ""
        if isinstance(self.keeper, WVA):
            return ": WVA slows the important weights, and all others move at the full rate"
        if not isinstance(self.keeper, EWC) or self.keeper.pull == "implicit":
            return ""
        return f', or use pull="implicit": pull="{self.keeper.pull}" diverges where lr * strength * importance > 2'

    def report(self) -> str:
        """Is it on, and does it work?"""
        return str(self.keeper.report())

    def _calibrated(self, importance: AnyImportance, closed: ClosedTask, budget: float) -> AnyImportance:
        """In nats, as a budget is, under another optimizer of the same kind."""
        assert self._optimizer is not None
        kind, given = type(self._optimizer), self._optimizer.defaults
        settings = {name: given[name] for name in signature(kind).parameters if name in given}
        return calibrated(
            self.model,
            importance,
            closed.examples.batches(_LESSON_BATCH, generator=torch.Generator().manual_seed(closed.seed)),
            loss=closed.loss,
            budget=budget,
            optimizer=lambda parameters: kind(parameters, **settings),
            seed=closed.seed,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of the keeper and of the estimator."""
        held, kept = self.keeper.state()
        tensors, notes = checked_state(self.estimator.state(), whose=type(self.estimator).__name__, reserved=["keeper"])
        return {**prefixed("keeper", held), **tensors}, {"keeper": kept, **notes}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.keeper.load_state(under("keeper", tensors), notes["keeper"])
        self.estimator.load_state(tensors, notes)


@dataclass(frozen=True)
class HeldMethod:
    """Makes the learner of a mechanism with an importance.

    Attributes:
        name: of the method.
        mechanism: what holds.
        importance: by what.
    """

    name: str
    mechanism: MechanismEntry
    importance: ImportanceEntry

    @property
    def modules(self) -> frozenset[str]:
        """In which both are written."""
        return self.mechanism.modules | self.importance.modules

    def __call__(self, model: nn.Module, setting: Setting, options: Any = None) -> Learner:
        """The learner.

        Raises:
            OptionError: options that have no meaning together.
        """
        check_hold(self.name, options)
        keeper: Keeper = self.mechanism(model, options=options)
        if not isinstance(keeper, Keeper):
            raise OptionError(f"{self.name}: its mechanism made a {type(keeper).__name__}; expected a holdfast.Keeper.")
        made = self.importance.make
        if isinstance(made, type) and issubclass(made, Estimator):
            estimator: Estimator = self.importance(model, options=options)
        else:
            estimator = FunctionEstimator(model, partial(self.importance, options=options))
        budget = getattr(options, "budget", None)
        return KeeperLearner(model, setting, keeper=keeper, estimator=estimator, budget=budget, name=self.name)


def check_hold(name: str, options: Any) -> None:
    """Raise at once for what the keeper would refuse after the first task, or not at all.

    Raises:
        OptionError: options that have no meaning together.
    """
    if not isinstance(options, EwcOptions | WvaOptions):
        return
    if isinstance(options, WvaOptions):
        if options.strength is None:
            raise OptionError(f"{name} needs a strength; found None. Give one.")
        return
    if (options.strength is None) == (options.budget is None):
        raise OptionError(
            f"{name} needs a strength or a budget, one of them; found strength {options.strength!r} and budget "
            f"{options.budget!r}."
        )
    if options.budget is not None and options.pull_every != 1:
        raise OptionError(
            f"{name}: pull_every is {options.pull_every}, and a budget is kept at each step. Leave it out, or give a "
            "strength."
        )
    if isinstance(options, KfacOptions):
        if options.pull == "gradient":
            raise OptionError(f"{name}: pull is 'gradient'; with Kronecker factors it is implicit or penalty.")
        if options.accumulate == "max":
            raise OptionError(f"{name}: accumulate is 'max', a rule that Kronecker factors do not have. Use sum.")


def register_mechanism(name: str, **traits: Any) -> Callable[[Any], Any]:
    """A decorator that registers a mechanism, and with it a method for every importance: NAME-fisher and so on.

    What it decorates is called as `make(model, options)`, or `make(model)` where no options are given, and returns a
    `Keeper`, such as `Keeper(model, mechanism=...)` of a `Mechanism` of yours.

    Args:
        name: as it is typed before the importance's.
        traits: those of a `MechanismEntry`: label, options, style, factored, verb.
    """

    def registered(make: Any) -> Any:
        MECHANISMS.register(name, **traits)(make)
        for importance in IMPORTANCES.values():
            _meet(MECHANISMS[name], importance)
        return make

    return registered


def register_importance(name: str, **traits: Any) -> Callable[[Any], Any]:
    """A decorator that registers an importance, and with it a method for every mechanism: ewc-NAME, wva-NAME.

    What it decorates is a function `make(model, task, options)` (without options where none are given) that returns an
    `Importance` measured on a `ClosedTask`, or an `Estimator`, made as `make(model, options)`.

    Args:
        name: as it is typed after the mechanism's.
        traits: those of an `ImportanceEntry`: label, options, style, factored, on_examples, source.
    """

    def registered(make: Any) -> Any:
        IMPORTANCES.register(name, **traits)(make)
        for mechanism in MECHANISMS.values():
            _meet(mechanism, IMPORTANCES[name])
        return make

    return registered


def _meet(mechanism: MechanismEntry, importance: ImportanceEntry) -> None:
    """Register the method of a mechanism with an importance, where they go together."""
    if importance.factored and not mechanism.factored:
        return
    name = f"{mechanism.name}-{importance.name}"
    METHODS.add(
        MethodEntry(
            name=name,
            make=HeldMethod(name, mechanism, importance),
            label=f"{mechanism.label} {importance.label}",
            summary=f"{mechanism.verb}, by {importance.source or importance.name}",
            options=combined(f"{name} options", importance.options, mechanism.options),
            style={**importance.style, **mechanism.style},
            mechanism=mechanism.name,
            importance=importance.name,
            batches=False,
        )
    )


def build_ewc(model: nn.Module, options: EwcOptions) -> Keeper:
    """Elastic weight consolidation."""
    return EWC(
        model,
        strength=options.strength,
        budget=options.budget,
        pull=options.pull,
        every=options.pull_every,
        accumulate=accumulation(options.accumulate),
        weighting=options.weighting,
    )


def build_wva(model: nn.Module, options: WvaOptions) -> Keeper:
    """Weight velocity attenuation."""
    return WVA(
        model,
        strength=options.strength,
        attenuation=options.attenuation,
        on=options.attenuate,
        accumulate=accumulation(options.accumulate),
        weighting=options.weighting,
    )


def all_alike(model: nn.Module, task: ClosedTask) -> AnyImportance:
    """One for every weight that took part."""
    return importance_of_columns(uniform(model), task.classes)


for _name, _make, _traits in (
    ("fisher", measured_fisher, {"label": "Fisher", "options": FisherOptions, "source": "Fisher information"}),
    ("mas", measured_mas, {"label": "MAS", "options": MasOptions, "source": "memory aware synapses"}),
    (
        "si",
        PathEstimator,
        {
            "label": "SI",
            "options": PathOptions,
            "source": "the path integral of synaptic intelligence",
            "on_examples": False,
        },
    ),
    (
        "signal",
        measured_signal,
        {"label": "signal", "options": SignalOptions, "source": "the total absolute signal through a connection"},
    ),
    ("taylor", measured_taylor, {"label": "Taylor", "source": "the first-order Taylor importance"}),
    (
        "kfac",
        measured_kfac,
        {"label": "K-FAC", "options": KfacOptions, "source": "Kronecker-factored Fisher information", "factored": True},
    ),
):
    register_importance(_name, style={"color": COLOURS[_name]}, **_traits)(_make)

_EWC_STYLE = {"linestyle": "-", "marker": "o"}
_WVA_STYLE = {"linestyle": (0, (7, 1.6, 1.4, 1.6)), "marker": "^"}

register_mechanism(
    "ewc",
    label="EWC",
    options=EwcOptions,
    style=_EWC_STYLE,
    factored=True,
    verb="pulls weights elastically to their anchors",
)(build_ewc)
register_mechanism("wva", label="WVA", options=WvaOptions, style=_WVA_STYLE, verb="makes weights slow")(build_wva)

METHODS.add(
    MethodEntry(
        name="l2",
        make=HeldMethod("l2", MECHANISMS["ewc"], ImportanceEntry(name="uniform", make=all_alike, on_examples=False)),
        label="L2",
        summary="elastic pull on every weight alike: EWC with a uniform importance",
        options=EwcOptions,
        place="floor",
        style={**_EWC_STYLE, "color": COLOURS["uniform"]},
        mechanism="ewc",
        importance="uniform",
        batches=False,
    )
)
