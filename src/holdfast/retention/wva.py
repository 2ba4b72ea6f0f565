"""Weight velocity attenuation: important weights move slowly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.retention.force import Attenuation, relative_force, relative_share
from holdfast.retention.keeper import Keeper
from holdfast.retention.mechanism import Mechanism, as_strength, check_choices
from holdfast.retention.options import KeeperOptions, is_unsteady, unsteady_warning
from holdfast.retention.route import Route
from holdfast.retention.step import Step
from holdfast.steps import update_rule


@dataclass
class Viscous(Mechanism):
    """The attenuation of increments; `WVA` says what the options mean."""

    name: ClassVar[str] = "WVA"
    anchored: ClassVar[bool] = False

    strength: float
    attenuation: Attenuation = "hyperbolic"
    on: Literal["increments", "gradients"] = "increments"

    def __post_init__(self) -> None:
        self.strength = as_strength(self.strength, where="WVA")
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
            self._route.attenuate(block, self.strength, attenuation=self.attenuation, largest=largest)

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

    def _shares(self, importance: list[Tensor], *, largest: float) -> list[Tensor]:
        force = relative_force(importance, self.strength, largest=largest)
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
            signal importances where EWC's is 1.
        attenuation: "hyperbolic", which forgives a wrong strength, or "exponential".
        on: "increments" (any optimizer), or "gradients": the same for plain SGD without weight decay, and without
            effect under Adam, whose normalisation cancels it.
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
        strength: float,
        *,
        attenuation: Attenuation = "hyperbolic",
        on: Literal["increments", "gradients"] = "increments",
        **options: Unpack[KeeperOptions],
    ) -> None:
        super().__init__(model, Viscous(strength, attenuation, on), **options)

    @property
    def strength(self) -> float:
        """lambda, 0..inf. It may be changed between steps."""
        return self.mechanism.strength

    @strength.setter
    def strength(self, value: float) -> None:
        self.mechanism.strength = as_strength(value, where="WVA")

    @property
    def attenuation(self) -> Attenuation:
        """As given."""
        return self.mechanism.attenuation

    @property
    def on(self) -> str:
        """As given."""
        return self.mechanism.on
