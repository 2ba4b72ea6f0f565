"""Incremental moment matching: the networks of all tasks merged into one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.curvature import Decayed
from holdfast.files.typed import Within
from holdfast.importance import uniform
from holdfast.lab.methods.columns import importance_of_columns
from holdfast.lab.methods.estimator import ClosedTask
from holdfast.lab.methods.importances import FisherOptions, measured_fisher
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.streams import Examples
from holdfast.records import Importance
from holdfast.retention import EWC
from holdfast.tensors import prefixed, trainable_parameters, under


def merged_mode(mean: Tensor, precision: Tensor, weights: Tensor, own: Tensor) -> Tensor:
    """The mode of a product of Gaussians, by one more of them.

        m' = m + F_k/(F + F_k) (theta_k - m);   theta_k where F + F_k = 0

    After K tasks it is sum_k F_k theta_k / sum_k F_k.

    Args:
        mean: m, of the tasks before.
        precision: F >= 0, the sum over them.
        weights: theta_k.
        own: F_k >= 0.
    """
    total = precision + own
    share = own / total.clamp(min=torch.finfo(total.dtype).tiny)
    return torch.where(total > 0, mean + share * (weights - mean), weights)


@dataclass(frozen=True, kw_only=True)
class MergingOptions(FisherOptions):
    """Of incremental moment matching.

    Attributes:
        imm: weights of all tasks merged by their "mean", or by their Fisher ("mode").
        l2_transfer: weight of the squared distance to the weights of the task before.
    """

    imm: Literal["mean", "mode"] = "mean"
    l2_transfer: Annotated[float, Within(0, 1e6)] = 0.0


@register_method(
    "imm",
    label="IMM",
    summary="merges the networks of all tasks, by mean or by mode",
    options=MergingOptions,
    style={"color": COLOURS["average"], "linestyle": (0, (4, 1.5)), "marker": "<"},
    batches=False,
)
class MomentMatching(Learner):
    """Each task trains from the weights of the one before; what is tested is the merger of the weights of all tasks.

        mean: sum_k theta_k / K            mode: sum_k F_k theta_k / sum_k F_k,   F_k the diagonal Fisher of task k

    Training goes on from the task's own weights, not from the merger (the paper's weight transfer). With `l2_transfer`
    > 0 the loss has l2_transfer ||theta - theta_{k-1}||^2 added, taken implicitly after each step as `EWC` does.
    A row of the last layer counts only in tasks whose loss it took part in.

    Cost: the weights once more in memory, and twice more for "mode"; a pass for the Fisher after each task.

    Source: Lee et al. 2017, arXiv 1703.08475, with equal mixing ratios alpha_k = 1/K. Departures: no drop-transfer;
    the Fisher is the library's, exact by default, and where all are zero the last task's weight stands.
    """

    def __init__(self, model: nn.Module, setting: Setting, options: MergingOptions) -> None:
        super().__init__(model, setting)
        self._options = options
        self._keeper = EWC(model, strength=2 * options.l2_transfer, accumulate=Decayed(0.0))
        self._mean: dict[str, Tensor] = {}
        self._precision: dict[str, Tensor] = {}

    def attach(self, optimizer: Optimizer) -> None:
        """Pull this optimizer's steps to the weights of the task before."""
        if self._options.l2_transfer:
            self._keeper.detach().attach(optimizer)

    @torch.no_grad()
    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """Merge the task's weights."""
        alike = importance_of_columns(uniform(self.model), classes)
        if self._options.l2_transfer:
            self._keeper.retain(alike)
        own = alike if self._options.imm == "mean" else self._fisher(examples, classes, task)
        for name, weights in trainable_parameters(self.model).items():
            mean = self._mean.get(name, weights)
            precision = self._precision.get(name, torch.zeros_like(own[name]))
            self._mean[name] = merged_mode(mean, precision, weights, own[name]).detach().clone()
            self._precision[name] = precision + own[name]

    @contextmanager
    def evaluating(self, task: int) -> Iterator[None]:
        """With the merged weights in place of the task's own."""
        parameters = trainable_parameters(self.model)
        own = {name: parameters[name].detach().clone() for name in self._mean}
        self._put(self._mean)
        try:
            yield
        finally:
            self._put(own)

    def report(self) -> str:
        """What the pull of l2-transfer does."""
        return str(self._keeper.report()) if self._options.l2_transfer else ""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The merged weights, their precision, and the pull of l2-transfer."""
        held, notes = self._keeper.state()
        merged = prefixed("mean", self._mean) | prefixed("precision", self._precision)
        return merged | prefixed("keeper", held), notes

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._mean, self._precision = under("mean", tensors), under("precision", tensors)
        self._keeper.load_state(under("keeper", tensors), notes)

    def _fisher(self, examples: Examples, classes: tuple[int, ...] | None, task: int) -> Importance:
        seed = self.setting.seed + 1000 * task
        return measured_fisher(
            self.model, ClosedTask(examples, classes, self.likelihood_of(classes), task, seed), self._options
        )

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        parameters = trainable_parameters(self.model)
        for name, value in weights.items():
            parameters[name].copy_(value)
