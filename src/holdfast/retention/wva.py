"""Weight velocity attenuation: important weights move slowly."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.errors import OptionError, ParameterMismatchError
from holdfast.memory import Accumulate, ImportanceForm, Weighting
from holdfast.records import check_shapes
from holdfast.retention.files import accumulate_to_json
from holdfast.retention.force import Attenuation, relative_force, relative_share
from holdfast.retention.keeper import Keeper, NewParameters
from holdfast.retention.options import chosen_forms, is_unsteady, unsteady_warning
from holdfast.retention.plan import Plan
from holdfast.retention.rise import weights_rise
from holdfast.steps import update_rule
from holdfast.tensors import TensorMap, all_parameters, shard


class WVA(Keeper):
    """Holds skills viscously: important weights move slowly.

    Of the increment that a step makes, a weight takes

        1/(1 + strength * Omega)    ("hyperbolic"), or    exp(-strength * Omega)    ("exponential").

    It is EWC's step with an anchor that moves: the weights before the step. So it needs no anchors in memory,
    and the weights before the step are recomputed from the optimizer's state (SGD, momentum, Nesterov, Adam, AdamW
    in float32) instead of copied; where that is impossible a copy is kept during the step.

    Args:
        model: the model; tied weights count once, frozen ones are left out, wrappers are seen through.
        strength: lambda, 0..inf, in units of 1/Omega. It has no relation to EWC's: the authors' is 250 for
            signal importances where EWC's is 1.
        attenuation: "hyperbolic", which forgives a wrong strength, or "exponential".
        on: "increments" (any optimizer), or "gradients": the same for plain SGD without weight decay, and without
            effect under Adam, whose normalisation cancels it.
        accumulate: "sum", "mean", "max" or `Decayed(gamma)`.
        weighting: "task", or "examples": each importance times its number of examples over that of the first.
        new_parameters: "error" or "free", for trainable parameters that no importance covers, such as a grown head.
        importance_dtype: "float32", "bfloat16" or "int8": the form importances are held in, each with its stated error
            (`holdfast.memory.forms`).
        offload: "cpu" keeps importances in the host's memory (pinned) when the model is on an accelerator, and brings
            them over block by block in each step.
        log_every: every so many steps the pull is measured and a line logged at INFO (logger "holdfast"); 0: never.

    Raises:
        OptionError: an option out of its range.

    Cost: memory of one copy of the importance, however many tasks, or of what its form takes, and 2 MB to work in; of
    weights of half precision two copies of them, one of them only during a step (`holdfast.retention.rounding`). Each
    step takes three passes over the weights under SGD, five under Adam and eight under AdamW with weight decay, block
    by block, or one kernel a tensor on CUDA where Triton is at hand.

    Source: Kutalev, arXiv 2109.10021 and 2208.05791, where the attenuation is 1/(1 + strength * Omega).
    """

    mechanism: ClassVar[str] = "WVA"
    _has_anchors: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float,
        attenuation: Attenuation = "hyperbolic",
        on: Literal["increments", "gradients"] = "increments",
        accumulate: Accumulate = "sum",
        weighting: Weighting = "task",
        new_parameters: NewParameters = "error",
        importance_dtype: ImportanceForm = "float32",
        offload: Literal["cpu"] | None = None,
        log_every: int = 100,
    ) -> None:
        super().__init__(
            model,
            strength=strength,
            accumulate=accumulate,
            weighting=weighting,
            new_parameters=new_parameters,
            forms=chosen_forms("WVA", importance=importance_dtype, offload=offload),
            log_every=log_every,
        )
        self._check(strength is not None, "strength", strength, "a number from 0 to infinity")
        self._check(
            attenuation in ("hyperbolic", "exponential"), "attenuation", attenuation, '"hyperbolic" or "exponential"'
        )
        self._check(on in ("increments", "gradients"), "on", on, '"increments" or "gradients"')
        if accumulate == "per_task":
            raise OptionError('WVA: accumulate="per_task" joins anchors, and WVA has none. Use "sum".')
        self.attenuation: Attenuation = attenuation
        self.on = on

    @torch.no_grad()
    def predicted_rise(self, reference: TensorMap) -> float:
        """How much the old tasks' loss has risen by the quadratic model, if `reference` is where they were learned.

        Args:
            reference: name -> weights at the end of the old task, such as a copied `state_dict()`; WVA keeps none.

        Returns:
            1/2 sum Omega (theta - reference)^2, >= 0; nats where the importances know their factor.

        Raises:
            ParameterMismatchError: names or shapes of `reference` do not match the model.
        """
        held = self.held.importance
        missing = [name for name in held if name not in reference]
        if missing:
            raise ParameterMismatchError(
                f"WVA.predicted_rise: the reference lacks {', '.join(map(repr, missing))}. Give it under the names of "
                "the bare model's state_dict()."
            )
        remedy = "Give the weights of this model."
        check_shapes({name: reference[name] for name in held}, self.model, where="WVA.predicted_rise", remedy=remedy)
        weights = all_parameters(self.model)
        there = {name: shard(reference[name], weights[name]) for name in held if name in weights}
        rise = weights_rise(weights, held, there, sum_of=self._holdings.sum_of)
        return rise * (1.0 if self.held.nats_per_unit is None else self.held.nats_per_unit)

    def _needs_increments(self) -> bool:
        return self.on == "increments"

    def _changes_gradients(self) -> bool:
        return self.on == "gradients"

    def _gradients(self, optimizer: Optimizer, plan: Plan) -> None:
        if self.held.num_tasks == 0:
            return
        with torch.no_grad():
            for part in plan.parts(optimizer, self.held):
                importance, gradients = part.whole().importance, part.gradients
                shares = self._shares(importance)
                if self._meter is not None:
                    self._meter.add(gradients, torch._foreach_mul(gradients, shares), shares, importance)
                for gradient, share in zip(gradients, shares, strict=True):
                    gradient.sub_(gradient * share)

    def _hold(self, optimizer: Optimizer, plan: Plan) -> None:
        if self.on == "gradients":
            return
        assert self.strength is not None
        for part in plan.parts(optimizer, self.held):
            for rounded in part.blocks(increments=self._increments(optimizer, part, plan.gradients)):
                block = rounded.wide()
                if self._meter is not None:
                    moved, shares = block.moved(), self._shares(block.importance)
                    self._meter.add(moved, torch._foreach_mul(moved, shares), shares, block.importance)
                self._route.attenuate(block, self.strength, attenuation=self.attenuation, largest=self.held.largest)
                rounded.round_back(block)

    def _shares(self, importance: list[Tensor]) -> list[Tensor]:
        assert self.strength is not None
        force = relative_force(importance, self.strength, largest=self.held.largest)
        return relative_share(force, attenuation=self.attenuation)

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        if self.on == "increments" and is_unsteady(optimizer):
            self._warn(unsteady_warning(others=""))
        if self.on == "gradients" and update_rule(optimizer) == "adam":
            self._warn(
                f'on="gradients" is cancelled by the normalisation of {type(optimizer).__name__}, which divides each '
                'gradient by its own size. Use on="increments".'
            )

    def _options(self) -> dict[str, Any]:
        return {
            "strength": self.strength,
            "attenuation": self.attenuation,
            "on": self.on,
            "accumulate": accumulate_to_json(self.accumulate),
            "weighting": self.weighting,
            "new_parameters": self.new_parameters,
            "importance_dtype": self.forms.importance,
            "offload": "cpu" if self.forms.offload else None,
            "log_every": self.log_every,
        }
