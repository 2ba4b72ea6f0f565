"""What is done to the held weights around an optimizer's step: two kinds are ours, `EWC` and `WVA`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, ClassVar

from torch.optim import Optimizer

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
    """

    name: ClassVar[str] = "Mechanism"
    anchored: ClassVar[bool] = True

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

    def check_sharded(self, held: Retained) -> None:
        """Raise `OptionError` for an option that needs whole weights, where the model is sharded."""

    def accepted(self, importance: Measured, *, where: str) -> Measured:
        """The importance as it can be held.

        Raises:
            OptionError: it cannot be.
        """
        return importance.to_diagonal()

    def retained(self) -> None:
        """Called when one more task has been retained."""

    # --- what is told and saved

    @property
    def acting_strength(self) -> float | None:
        """The strength that the report shows; None where there is none."""
        return getattr(self, "strength", None)

    def options(self) -> dict[str, Any]:
        """Its options as JSON values or numbers, for a file."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # pyright: ignore[reportArgumentType]

    def progress(self) -> dict[str, float]:
        """Numbers >= 0 beside the options that decide the steps to come, for a file."""
        return {}

    def resume(self, progress: Mapping[str, float], held: Retained, *, where: str) -> None:
        """Go on from what `progress` gave, with what is held then.

        Raises:
            OptionError: what is held contradicts an option; nothing was changed.
        """


def check_strength(strength: object, *, where: str) -> None:
    """Raise `OptionError` unless it is a number from 0 to infinity."""
    check_option(
        isinstance(strength, int | float) and not isinstance(strength, bool) and strength >= 0,
        "strength",
        strength,
        "a number from 0 to infinity",
        where=where,
    )


def check_option(holds: bool, option: str, value: object, expected: str, *, where: str) -> None:
    """Raise `OptionError` unless it holds."""
    if not holds:
        raise OptionError(f"{where}: {option} is {value!r}; expected {expected}.")
