"""What is done to the held weights around an optimizer's step: two kinds are ours, `EWC` and `WVA`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from numbers import Real
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from holdfast.choices import choices_of
from holdfast.curvature import Measured
from holdfast.errors import OptionError
from holdfast.memory import Retained
from holdfast.retention.step import Step


class Mechanism:
    """Steps around the optimizer's own, driven by a `Keeper`: `hf.Keeper(model, MyMechanism(...))`.

    Subclass it as a dataclass and override what it needs. Its fields are its options: numbers, strings, None. They are
    saved with the keeper, and `hf.Keeper.load(folder, model, mechanism=MyMechanism)` builds it from them again.

    Attributes:
        name: in messages, reports and files; the class's own unless it is given.
        anchored: whether the keeper keeps an anchor for every held weight, where it was when its task was closed.
        unsaved: fields that no file holds, such as functions. They have a default, and are given again when it is
            loaded.
    """

    name: ClassVar[str] = "Mechanism"
    anchored: ClassVar[bool] = True
    unsaved: ClassVar[frozenset[str]] = frozenset()

    budget: float | None = None
    """Nats per target that each skill may lose in a lesson, for a mechanism that has such an option."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    # --- the steps

    def before(self, step: Step) -> None:
        """Called before the optimizer's step, with the weights and gradients as they are then."""

    def gradients(self, step: Step) -> None:
        """Called when the gradients are complete, just before the optimizer uses them; may change them in place."""

    def after(self, step: Step) -> None:
        """Called after the optimizer's step; may change the weights in place."""

    def at_end(self, step: Step) -> None:
        """Called where a lesson is closed some steps after the last call of `after`, between two of the optimizer's.

        Args:
            step: the last one taken. Its blocks are of every weight that the optimizer has moved, and know no
                increments and no gradients; `step.since` steps are to be made up for.
        """

    # --- what the keeper has to know

    @property
    def needs_increments(self) -> bool:
        """Whether `after` asks for the increments of every step, for which copies may have to be kept."""
        return False

    @property
    def moves_weights(self) -> bool:
        """Whether `after` changes weights: those of half precision then keep what rounding takes from it."""
        return type(self).after is not Mechanism.after

    @property
    def period(self) -> int:
        """Steps of an optimizer from one call of `after` to the next; they count from when the last task was closed."""
        return 1

    def check(self, optimizer: Optimizer) -> Iterator[str]:
        """Raise `OptionError` for an optimizer that it cannot work with; yields warnings about one that it can."""
        return iter(())

    def steering(self, importance: Measured) -> tuple[float, float]:
        """The strength that `steer` begins with for this importance, and the highest that it comes to."""
        return 1.0, 1e12

    def check_sharded(self, held: Retained) -> None:
        """Raise `OptionError` for an option that needs whole weights, where the model is sharded."""

    def accepted(self, importance: Measured, *, where: str) -> Measured:
        """The importance as it can be held.

        Raises:
            OptionError: it cannot be.
        """
        return importance.to_diagonal()

    def forecast(self, importance: Measured, *, where: str) -> Measured:
        """The accepted importance, as a budget needs it that nothing is measured for.

        Raises:
            OptionError: it cannot keep such a budget.
        """
        raise OptionError(
            f"{where}: a budget of {self.name} is kept by measuring. Pass probes= (hf.probes_of, or hf.measure, which "
            "takes them along), or build it with strength=."
        )

    def steer(self, strength: float | None) -> None:
        """Take this strength from now on, which measured rises ask for under a budget; None: nothing is measured.

        Raises:
            OptionError: it has none.
        """
        raise OptionError(f"{self.name}: it has no strength that a budget could steer. Retain without probes.")

    def retained(self, held: Retained) -> None:
        """Called when one more task has been retained, with all that is held now."""

    # --- what is told and saved

    @property
    def acting_strength(self) -> float | None:
        """The strength that the report shows; None where there is none."""
        return getattr(self, "strength", None)

    def options(self) -> dict[str, Any]:
        """Its options as JSON values or numbers, for a file."""
        if not is_dataclass(self):
            raise OptionError(
                f"{self.name}: {type(self).__name__} is no dataclass, whose fields would be its options. Put "
                "@dataclass over the class."
            )
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in self.unsaved}

    def progress(self) -> dict[str, float]:
        """Numbers >= 0 beside the options that decide the steps to come, for a file."""
        return {}

    def resume(self, progress: Mapping[str, float], held: Retained, *, where: str) -> None:
        """Go on from what `progress` gave, with what is held then.

        Raises:
            OptionError: what is held contradicts an option; nothing was changed.
        """


def check_mechanism(mechanism: object, *, taken: Collection[str]) -> None:
    """Raise `OptionError` unless a keeper can be driven by it, saved, and built from the file again.

    Args:
        mechanism: as a keeper was given it.
        taken: names of the keeper's own options.
    """
    if not isinstance(mechanism, Mechanism):
        raise OptionError(
            f"Keeper: mechanism is {mechanism!r:.80}; expected an instance of a subclass of hf.Mechanism, as in "
            "hf.Keeper(model, MyMechanism(...)). EWC and WVA are keepers: hf.EWC(model, strength=...)."
        )
    where, period, options = mechanism.name, mechanism.period, mechanism.options()
    check_option(isinstance(period, int) and period >= 1, "period", period, "a whole number >= 1", where=where)
    if twice := sorted(set(options) & set(taken)):
        raise OptionError(f"{where}: {', '.join(twice)} are options of every keeper too. Give the fields other names.")
    for name, value in options.items():
        known = value is None or isinstance(value, bool | int | float | str)
        check_option(known, name, value, "a number, a string or None; or its name in `unsaved`", where=where)


def as_strength(value: object, *, where: str) -> float:
    """A strength as Python's own number.

    Raises:
        OptionError: it is no real number from 0 to infinity.
    """
    number = _as_number(value)
    check_option(number >= 0, "strength", _shown(value, number), "a number from 0 to infinity", where=where)
    return number


def as_budget(value: object, *, where: str) -> float:
    """A budget as Python's own number.

    Raises:
        OptionError: it is no real number above 0.
    """
    number = _as_number(value)
    check_option(number > 0, "budget", _shown(value, number), "nats above 0", where=where)
    return number


def _as_number(value: object) -> float:
    """A real number of any kind, NumPy's and zero-dimensional tensors too, as an int or float; NaN for what is none."""
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        number = float(value)
    except OverflowError:  # a whole number or fraction beyond all floats
        return math.inf if abs(value) == value else -math.inf
    return value if type(value) is int else number


def _shown(value: object, number: float) -> object:
    return value if math.isnan(number) else number


def check_choices(record: object, kind: type, *, where: str) -> None:
    """Raise `OptionError` where an attribute that `kind` annotates with a `Literal` has another value."""
    for name, known in choices_of(kind).items():
        *others, last = ("None" if choice is None else f'"{choice}"' for choice in known)
        value = getattr(record, name)
        check_option(value in known, name, value, f"{', '.join(others)} or {last}", where=where)


def check_option(holds: bool, option: str, value: object, expected: str, *, where: str) -> None:
    """Raise `OptionError` unless it holds."""
    if not holds:
        raise OptionError(f"{where}: {option} is {value!r}; expected {expected}.")
