"""Elastic weight consolidation: each important weight is pulled back to its anchor."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Literal, Self, Unpack

from torch import Tensor, nn

from holdfast.errors import OptionError, StateError
from holdfast.retention.elastic import Elastic, Pull
from holdfast.retention.keeper import Keeper
from holdfast.retention.mechanism import Mechanism, as_budget, as_strength
from holdfast.retention.options import KeeperOptions, check_implicit
from holdfast.retention.textbook import penalty
from holdfast.steps import UserMetric
from holdfast.tensors import all_parameters


class EWC(Keeper):
    """Holds skills elastically: important weights are pulled back to their anchors.

    Beside the new task's mean loss stands

        strength/2 * sum_i Omega_i (theta_i - anchor_i)^2.

    By default the pull is *implicit*: after the optimizer's own step has given theta', each weight goes
    w = a/(1 + a) of the way to its anchor, with a = strength * Omega / M and M the metric of the optimizer's step
    (`holdfast.steps.metric`). This is the proximal step of the penalty. It never overshoots, so that every strength
    from 0 to infinity is stable, and its fixed point is grad L + strength * Omega * (theta - anchor) = 0 under SGD,
    momentum, Nesterov and Adam alike. AdamW's decoupled decay adds decay * M_i * lr * theta_i to that balance, which
    shifts the point: exclude important weights from decay where that matters. The pull knows of no gradient clip: one
    that is active at rest takes the gradient's place in the balance, and a weight that it halves there rests half as
    far from its anchor.

    With a `FactoredImportance` (from `kfac`) whole layers are held: strength/2 * sum D * K(D), with D = W - anchor for
    weight and bias as one matrix, and K the tasks' Kronecker products along one common basis
    (`holdfast.curvature.kronecker`). The implicit pull has the same fixed point and the same stability; under Adam it
    comes to the exact step over some steps, 1 to 34 by the spread of the metric (`holdfast.curvature.implicit`).

    Args:
        model: the model; tied weights count once, frozen ones are left out, wrappers are seen through.
        strength: lambda, 0..inf. With Fisher importances in nats N_old/N_new is the Laplace value, 1.0 for sets of
            equal size. Give strength or budget, not both; without either it is a budget of 0.02, with a warning where
            it is not measured on probes (under the pulls of the textbook a strength of 1.0).
        budget: in place of a strength, the most that the loss of each old task may rise during each new one, in nats
            per target. Measured where tasks are retained with probes (`Keeper.retain`): every `probe_every` steps the
            rise is taken, one strength follows the task that is worst off (`holdfast.retention.controller`), and
            `close()` takes back what is over. Without probes the quadratic model 1/2 sum Omega d^2 foresees it, and a
            step that leaves this ellipsoid is projected back onto it in the optimizer's metric. That needs importances
            in nats, and those that hold where training goes: learning that is held to a forecast goes where this sees
            least, and the real rise was 5 to 35 times what Kronecker factors foresaw, and 10 to 1,500 times what a
            diagonal did. `hf.calibrated` finds that factor (docs/strength.md).
        pull: "implicit"; "gradient", which adds strength * Omega * (theta - anchor) to the gradients before the step
            (after clipping, and it diverges where lr * strength * Omega > 2); or "penalty": add `penalty()` to the
            loss yourself.
        every: steps from one implicit pull to the next, each as strong as that many pulls together: as stable, for
            less time where Kronecker factors make it dear, or where what is held is not at hand. Between pulls the
            weights move freely, and so rest elsewhere: nearer the anchor, by at most every * lr * h / 8 of the way
            from anchor to task, h the task's own curvature (docs/strength.md; `benchmarks/holding.py` measures it in
            training). `close()` makes up for the steps since the last pull, so that a task ends with one. "auto",
            the default under a budget (under a strength it is 1): as often as adds a twentieth to a step's operations
            over 2,048 rows of inputs, 16 steps at most; that is each step where weights are held one by one, or a
            budget is kept without probes.
        metric: for optimizers other than SGD, Adam and AdamW: a function of (group, parameter, state) that gives
            M, a number or tensor. Without it 1/lr is taken, with a warning.
        options: those of every keeper: accumulate, weighting, new_parameters, importance_dtype, anchor_dtype, anchors,
            offload, statistics and log_every (see `Keeper`).

    Raises:
        OptionError: an option out of its range, or both strength and budget.

    Cost: memory of one copy of the weights and one of the importance, however many tasks, or of what their forms take
    (`pull="penalty"` and "gradient" read a form back whole), and 2 MB to work in; of weights of half precision another
    copy, so that no pull vanishes (`holdfast.retention.rounding`). Each step takes three passes over the weights under
    SGD and five under Adam, block by block, or one kernel a tensor on CUDA where Triton is at hand. Under a budget a
    step within the ellipsoid costs three passes, and finding the multiplier of one that leaves it about two evaluations
    of ten passes. A layer held by Kronecker factors, n inputs and m outputs, has n^2 + m^2 + m n numbers in memory
    beside its anchor, all in full, and a step costs 4 m n (m + n) operations under SGD and 10 m n (m + n) under Adam,
    which takes m n numbers more: 6 and 15 plain steps of an MLP 784-300-150-10 at batch 100. In a
    model that `fully_shard` spread over processes one of them holds each layer, and is sent its shards for a pull.

    Source: Kirkpatrick et al. 2017 (PNAS 114), with the anchors of "sum" as in Huszar's note (2018) and online
    EWC's decay after Schwarz et al. 2018. The implicit pull, the optimizer's metric and the budget are our own.
    Kronecker factors of earlier tasks: Ritter et al. 2018 (arXiv 1805.07810), with the penalty in the loss; here their
    sum is held in one eigenbasis (after George et al. 2018, arXiv 1806.03884), and the pull is implicit.
    """

    mechanism: Elastic
    _kind: ClassVar[type[Mechanism] | None] = Elastic

    def __init__(
        self,
        model: nn.Module,
        strength: float | None = None,
        *,
        budget: float | None = None,
        pull: Pull = "implicit",
        every: int | Literal["auto"] | None = None,
        metric: UserMetric | None = None,
        **options: Unpack[KeeperOptions],
    ) -> None:
        super().__init__(model, Elastic(strength, budget, pull, every, metric), **options)

    @property
    def strength(self) -> float | None:
        """lambda, 0..inf; None under a budget. It may be changed between steps."""
        return self.mechanism.strength

    @strength.setter
    def strength(self, value: float) -> None:
        if self.mechanism.strength is None:
            raise OptionError("EWC: it keeps a budget, not a strength. Set budget, or build another.")
        strength = as_strength(value, where=self.name)
        check_implicit(self.pull, strength=strength, budget=None, every=self.every)
        self.mechanism.strength = strength

    @property
    def budget(self) -> float | None:
        """Nats per target that each old task's loss may rise in a lesson; None under a strength.

        It may be changed between steps; a task that was retained with a budget of its own keeps that.
        """
        return self.mechanism.budget

    @budget.setter
    def budget(self, value: float) -> None:
        if self.mechanism.budget is None:
            raise OptionError("EWC: it keeps a strength, not a budget. Set strength, or build another.")
        self.mechanism.budget = as_budget(value, where=self.name)
        self._skills.bound(self.mechanism.budget)

    @property
    def pull(self) -> Pull:
        """As given."""
        return self.mechanism.pull

    @property
    def every(self) -> int | Literal["auto"]:
        """As given; where nothing was, "auto" under a budget and 1 under a strength."""
        assert self.mechanism.every is not None
        return self.mechanism.every

    @property
    def metric(self) -> UserMetric | None:
        """As given."""
        return self.mechanism.metric

    def penalty(self) -> Tensor:
        """strength/2 sum Omega (theta - anchor)^2 with its gradient, to be added to the loss under `pull="penalty"`.

        Returns:
            A scalar on the model's device; zero before the first task is retained.

        Raises:
            StateError: under another pull, where adding it would pull twice.
        """
        if self.pull != "penalty":
            raise StateError(
                f"EWC.penalty: this keeper's pull is {self.pull!r}, so that adding a penalty would pull twice. "
                'Build it with EWC(model, pull="penalty"), or read predicted_rise().'
            )
        assert self.strength is not None
        self.mechanism.num_penalties += 1
        return penalty(self.held, all_parameters(self.model), self.strength)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module, **options: Any) -> Self:
        """As `Keeper.load`; a strength or budget given takes the place of the saved budget or strength."""
        if options.keys() & {"strength", "budget"}:
            options = {"strength": None, "budget": None, **options}
        return super().load(path, model, **options)
