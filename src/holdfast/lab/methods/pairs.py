"""Every mechanism that holds weights makes a method with every importance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from holdfast.errors import OptionError
from holdfast.lab.methods.estimator import Estimator, FunctionEstimator
from holdfast.lab.methods.holding import KeeperLearner
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.registry import IMPORTANCES, MECHANISMS, METHODS, ImportanceEntry, MechanismEntry, MethodEntry
from holdfast.lab.options import combined
from holdfast.retention import Keeper


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
        check_strength(self.name, vars(options) if options else {})
        keeper: Keeper = self.mechanism(model, options=options)
        if not isinstance(keeper, Keeper):
            raise OptionError(f"{self.name}: its mechanism made a {type(keeper).__name__}; expected a holdfast.Keeper.")
        made = self.importance.make
        if isinstance(made, type) and issubclass(made, Estimator):
            estimator: Estimator = self.importance(model, options=options)
        else:
            estimator = FunctionEstimator(model, partial(self.importance, options=options))
        budget = getattr(options, "budget", None)
        return KeeperLearner(model, setting, keeper=keeper, estimator=estimator, budget=budget)


def check_strength(name: str, options: Mapping[str, Any]) -> None:
    """Raise `OptionError` unless a method that takes a strength, or a budget in its place, has one of them."""
    if "strength" not in options:
        return
    strength, budget = options["strength"], options.get("budget")
    either = "a strength or a budget, one of them" if "budget" in options else "a strength"
    if strength is None and budget is None:
        raise OptionError(f"method {name!r} needs {either}; found none. Give one; `holdfast sweep` finds strengths.")
    if strength is not None and budget is not None:
        raise OptionError(f"method {name!r} needs {either}; found strength {strength!r} and budget {budget!r}.")


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
