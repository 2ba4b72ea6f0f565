"""Weight velocity attenuation: important weights move slowly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.curvature import Measured
from holdfast.errors import OptionError
from holdfast.retention.force import Attenuation, relative_force, relative_share
from holdfast.retention.keeper import Keeper
from holdfast.retention.mechanism import Mechanism, as_budget, as_strength, check_choices
from holdfast.retention.options import KeeperOptions, is_unsteady, unsteady_warning
from holdfast.retention.route import Route
from holdfast.retention.step import Step
from holdfast.steps import update_rule
from holdfast.tensors import sum_of


@dataclass
class Viscous(Mechanism):
    """The attenuation of increments; `WVA` says what the options mean."""

    name: ClassVar[str] = "WVA"
    anchored: ClassVar[bool] = False

    strength: float | None = None
    attenuation: Attenuation = "hyperbolic"
    on: Literal["increments", "gradients"] = "increments"
    budget: float | None = None
    steered: float = field(default=1.0, init=False)

    def __post_init__(self) -> None:
        if (self.strength is None) == (self.budget is None):
            raise OptionError(
                f"WVA: strength is {self.strength!r} and budget is {self.budget!r}; expected one of the two."
            )
        if self.strength is not None:
            self.strength = as_strength(self.strength, where="WVA")
        if self.budget is not None:
            self.budget = as_budget(self.budget, where="WVA")
        check_choices(self, type(self), where="WVA")
        self._route = Route()

    def gradients(self, step: Step) -> None:
        """Attenuate the gradients."""
        if self.on != "gradients":
            return
        for block in step.tensors():
            shares = self._shares(block.importance, largest=step.held.largest)
            taken = torch._foreach_mul(block.gradients, shares)
            step.measure(block.gradients, taken, shares, block.importance)
            torch._foreach_sub_(block.gradients, taken)

    def after(self, step: Step) -> None:
        """Attenuate what the step added."""
        if self.on != "increments":
            return
        largest = step.held.largest
        for block in step.blocks(increments=True):
            if step.is_measured:
                moved, shares = block.moved(), self._shares(block.importance, largest=largest)
                step.measure(moved, torch._foreach_mul(moved, shares), shares, block.importance)
            self._route.attenuate(block, self.acting_strength, attenuation=self.attenuation, largest=largest)

    @property
    def needs_increments(self) -> bool:
        """On increments."""
        return self.on == "increments"

    @property
    def moves_weights(self) -> bool:
        """On increments."""
        return self.on == "increments"

    def check(self, optimizer: Optimizer) -> Iterator[str]:
        """Whether the attenuation is stable, and has an effect."""
        if self.on == "increments" and is_unsteady(optimizer):
            yield unsteady_warning(others="")
        if self.on == "gradients" and update_rule(optimizer) == "adam":
            yield (
                f'on="gradients" is cancelled by the normalisation of {type(optimizer).__name__}, which divides each '
                'gradient by its own size. Use on="increments".'
            )

    def steering(self, importance: Measured) -> tuple[float, float]:
        """From where a weight of mean importance moves a thousandth: what has moved is not brought back."""
        values = importance.diagonal.values()
        mean = sum_of(value.sum() for value in values) / max(1, sum(value.numel() for value in values))
        return (1e3 / mean if mean else 1.0), 1e12

    def steer(self, strength: float | None) -> None:
        """Attenuate with this strength."""
        self.steered = 1.0 if strength is None else strength

    @property
    def acting_strength(self) -> float:
        """The strength; under a budget the one that measured rises ask for."""
        return self.steered if self.strength is None else self.strength

    def _shares(self, importance: list[Tensor], *, largest: float) -> list[Tensor]:
        force = relative_force(importance, self.acting_strength, largest=largest)
        return relative_share(force, attenuation=self.attenuation)


class WVA(Keeper):
    """Holds skills viscously: important weights move slowly.

    Of the increment that a step makes, a weight takes

        1/(1 + strength * Omega)    ("hyperbolic"), or    exp(-strength * Omega)    ("exponential").

    It is EWC's step with an anchor that moves: the weights before the step. So it needs no anchors in memory,
    and the weights before the step are recomputed from the optimizer's state (SGD, momentum, Nesterov, Adam, AdamW
    in float32) instead of copied; where that is impossible a copy is kept during the step. It holds weights one by one:
    of a `FactoredImportance` it takes the diagonal.

    Args:
        model: the model; tied weights count once, frozen ones are left out, wrappers are seen through.
        strength: lambda, 0..inf, in units of 1/Omega. It has no relation to EWC's: the authors' is 250 for
            signal importances where EWC's is 1. Give strength or budget, not both.
        attenuation: "hyperbolic", which forgives a wrong strength, or "exponential".
        on: "increments" (any optimizer), or "gradients": the same for plain SGD without weight decay, and without
            effect under Adam, whose normalisation cancels it.
        budget: in place of a strength, what each skill may lose in a lesson, in nats per target: measured on probes,
            which every task is then to be retained with (`Keeper.retain`). There is no way back to it where it is
            exceeded, for want of anchors.
        options: those of every keeper but anchors and anchor_dtype, which it has none of: accumulate (not "per_task"),
            weighting, new_parameters, importance_dtype, offload, statistics and log_every (see `Keeper`).

    Raises:
        OptionError: an option out of its range.

    Cost: memory of one copy of the importance, however many tasks, or of what its form takes, and 2 MB to work in; of
    weights of half precision two copies of them, one of them only during a step (`holdfast.retention.rounding`). Each
    step takes three passes over the weights under SGD, five under Adam and eight under AdamW with weight decay, block
    by block, or one kernel a tensor on CUDA where Triton is at hand.

    Source: Kutalev, arXiv 2109.10021 and 2208.05791, where the attenuation is 1/(1 + strength * Omega).
    """

    mechanism: Viscous
    _kind: ClassVar[type[Mechanism] | None] = Viscous

    def __init__(
        self,
        model: nn.Module,
        strength: float | None = None,
        *,
        attenuation: Attenuation = "hyperbolic",
        on: Literal["increments", "gradients"] = "increments",
        budget: float | None = None,
        **options: Unpack[KeeperOptions],
    ) -> None:
        super().__init__(model, Viscous(strength, attenuation, on, budget), **options)

    @property
    def strength(self) -> float | None:
        """lambda, 0..inf; None under a budget. It may be changed between steps."""
        return self.mechanism.strength

    @strength.setter
    def strength(self, value: float) -> None:
        if self.mechanism.strength is None:
            raise OptionError("WVA: it keeps a budget, not a strength. Build another.")
        self.mechanism.strength = as_strength(value, where="WVA")

    @property
    def budget(self) -> float | None:
        """As given."""
        return self.mechanism.budget

    @property
    def attenuation(self) -> Attenuation:
        """As given."""
        return self.mechanism.attenuation

    @property
    def on(self) -> str:
        """As given."""
        return self.mechanism.on
