"""EWC and WVA in a run: importances measured as each task closes, and held at every later step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.calibration import calibrated
from holdfast.curvature.factored import AnyImportance
from holdfast.errors import OptionError
from holdfast.importance import fisher, kfac, mas, signal, taylor, uniform
from holdfast.importance.path import SynapticIntelligence
from holdfast.lab.methods.columns import of_columns
from holdfast.lab.methods.learner import Learner
from holdfast.lab.methods.options import MethodOptions, accumulation
from holdfast.lab.methods.registry import Method
from holdfast.lab.streams import Examples
from holdfast.lab.training import Losses, task_loss
from holdfast.records import Importance
from holdfast.retention import EWC, WVA, Keeper
from holdfast.tensors import prefixed, under

_LESSON_BATCH = 32
"""Examples a step of a made-up lesson."""


class KeeperLearner(Learner):
    """A keeper, and the importance it is given as each task closes.

    Attributes:
        keeper: EWC or WVA.
        path: SI's path of training; None for other importances.

    Raises:
        OptionError: the method holds no weights, or cannot work under these options.
    """

    def __init__(self, method: Method, model: nn.Module, options: MethodOptions) -> None:
        super().__init__(model)
        self.method, self.options = method, options
        self.keeper, self._penalty = _keeper(method, model, options)
        self.path: SynapticIntelligence | None = None
        self._optimizer: Optimizer | None = None
        if method.importance == "si":
            self.path = SynapticIntelligence(
                model,
                damping=options.damping,
                variant=options.si_variant,
                gradient=None if options.si_gradient == "before" else options.si_gradient,  # which "kutalev" refuses
            )

    def attach(self, optimizer: Optimizer) -> None:
        """Hold this optimizer's steps from now on, in place of any other's."""
        self.keeper.detach().attach(optimizer)
        self._optimizer = optimizer
        if self.path is not None:
            self.path.detach().attach(optimizer)

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The task's mean loss, and the penalty under `pull="penalty"`."""
        own = task_loss(self.model, inputs, targets, columns)
        return own, None if self._penalty is None else self._penalty()

    def after_step(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> None:
        """Let SI take its gradient where the variant takes it after the step."""
        if self.path is not None and self.path.variant == "kutalev":
            self.path.after_step(lambda: task_loss(self.model, inputs, targets, columns))

    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """Measure what the task needs, and hold it."""
        importance = self._importance(examples, classes, task)
        if (budget := self.options.budget) is not None and importance.info.nats_per_unit is None:
            importance = self._calibrated(importance, examples, classes, task, budget=budget)
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
        if self.method.mechanism == "wva":
            return ": WVA slows the important weights, and all others move at the full rate"
        if self.options.pull == "implicit":
            return ""
        return f', or use pull="implicit": pull="{self.options.pull}" diverges where lr * strength * importance > 2'

    def report(self) -> str:
        """Is it on, and does it work?"""
        return str(self.keeper.report())

    def _importance(self, examples: Examples, classes: tuple[int, ...] | None, task: int) -> AnyImportance:
        options, model, loss = self.options, self.model, self.likelihood_of(classes)
        match self.method.importance:
            case "fisher":
                batched = options.fisher == "batched"
                # batches of 128, as in van de Ven's comparison (arXiv 2502.11756)
                data = examples.batches(128) if batched else examples
                seed = options.seed + 1000 * task
                return fisher(model, data, kind=options.fisher, loss=loss, seed=seed)
            case "kfac":
                assert options.fisher != "batched"
                return kfac(model, examples, kind=options.fisher, loss=loss, seed=options.seed + 1000 * task)
            case "mas":
                output, batched = options.mas_output, options.mas_batched
                return mas(model, examples, output=output, classes=classes, batched=batched)
            case "signal":
                return _of_columns(signal(model, examples, bias=options.signal_bias), classes)
            case "taylor":
                return taylor(model, examples, loss=loss)
            case "si":
                assert self.path is not None
                return self.path.importance(num_examples=len(examples))
            case "uniform":
                return _of_columns(uniform(model), classes)
            case None:
                raise AssertionError("Holding was made for a method that holds no weights")
            case _:
                assert_never(self.method.importance)

    def _calibrated(
        self,
        importance: AnyImportance,
        examples: Examples,
        classes: tuple[int, ...] | None,
        task: int,
        *,
        budget: float,
    ) -> AnyImportance:
        """In nats, as a budget is, under another optimizer of the same kind."""
        assert self._optimizer is not None
        seed = self.options.seed + 1000 * task
        kind, given = type(self._optimizer), self._optimizer.defaults
        settings = {name: given[name] for name in signature(kind).parameters if name in given}
        return calibrated(
            self.model,
            importance,
            examples.batches(_LESSON_BATCH, generator=torch.Generator().manual_seed(seed)),
            loss=self.likelihood_of(classes),
            budget=budget,
            optimizer=lambda parameters: kind(parameters, **settings),
            seed=seed,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of the keeper and of SI's path."""
        held, kept = self.keeper.state()
        tensors, notes = prefixed("keeper", held), {"keeper": kept}
        if self.path is not None:
            state = self.path.state_dict()
            notes["path"] = state["num_steps"]
            tensors |= prefixed("path", state["tensors"])
        return tensors, notes

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.keeper.load_state(under("keeper", tensors), notes["keeper"])
        if self.path is not None:
            self.path.load_state_dict({"num_steps": notes["path"], "tensors": under("path", tensors)})


def _of_columns(importance: Importance, classes: tuple[int, ...] | None) -> Importance:
    return Importance(of_columns(importance, classes), importance.info)


def _keeper(method: Method, model: nn.Module, options: MethodOptions) -> tuple[Keeper, Callable[[], Tensor] | None]:
    """The keeper, and what it adds to the loss, if anything."""
    rule = accumulation(options.accumulate)
    if options.budget is not None and method.mechanism == "wva":
        raise OptionError(f"{method.name} cannot keep a budget: WVA has no anchors. Give a strength.")
    if options.budget is not None and options.pull_every != 1:
        raise OptionError(
            f"{method.name}: pull_every is {options.pull_every}, and a budget is kept at each step. Leave it out, or "
            "give a strength."
        )
    if method.importance == "kfac":
        _check_kfac(method, options)
    if method.mechanism == "ewc":
        keeper = EWC(
            model,
            strength=options.strength,
            budget=options.budget,
            pull=options.pull,
            every=options.pull_every,
            accumulate=rule,
            weighting=options.weighting,
        )
        return keeper, keeper.penalty if options.pull == "penalty" else None
    if method.mechanism != "wva":
        raise OptionError(
            f"{method.name}: mechanism is {method.mechanism!r}, which holds no weights; expected 'ewc' or 'wva'. "
            "Make its learner with build_learner."
        )
    if options.strength is None:
        raise OptionError(f"{method.name} needs a strength; found None. Give one.")
    keeper = WVA(
        model,
        strength=options.strength,
        attenuation=options.attenuation,
        on=options.attenuate,
        accumulate=rule,
        weighting=options.weighting,
    )
    return keeper, None


def _check_kfac(method: Method, options: MethodOptions) -> None:
    """Raise at once for what `EWC.retain` and `kfac` would refuse after the first task."""
    for name, value, expected in (
        ("pull", options.pull, ("implicit", "penalty")),
        ("fisher", options.fisher, ("exact", "sampled", "empirical")),
    ):
        if value not in expected:
            raise OptionError(
                f"{method.name}: {name} is {value!r}; with Kronecker factors it is {' or '.join(expected)}."
            )
    if options.accumulate == "max":
        raise OptionError(f"{method.name}: accumulate is 'max', a rule that Kronecker factors do not have. Use sum.")
