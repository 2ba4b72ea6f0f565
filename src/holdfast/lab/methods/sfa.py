"""Sequential fine-tuning with averaging: again and again a step back toward the weights of the task before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.files.typed import Within
from holdfast.lab.methods.columns import of_columns
from holdfast.lab.methods.learner import Learner, Moment, Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.streams import Examples
from holdfast.likelihoods.masks import active_classes
from holdfast.tensors import trainable_parameters


@dataclass(frozen=True, kw_only=True)
class AveragingOptions:
    """Of sequential averaging.

    Attributes:
        sfa_share: beta, the share of the old weights in the average.
        sfa_period: p, weights are averaged after every such part of a task's steps; 1: at its end alone.
    """

    sfa_share: Annotated[float, Within(0, 1)] = 0.5
    sfa_period: Annotated[float, Within(0, 1)] = 0.25


@register_method(
    "sfa",
    label="SFA",
    summary="averages the weights with those of the task before, again and again",
    options=AveragingOptions,
    style={"color": COLOURS["average"], "linestyle": (0, (4, 1.5)), "marker": ">"},
    batches=False,
)
class SequentialAveraging(Learner):
    """After every p-th part of a task's steps, and after its last, the weights are averaged with those it began from.

        theta <- (1 - beta) theta + beta theta_o,   theta_o the weights at the end of the task before

    p is `sfa_period` (1: at the end of the task alone), beta `sfa_share`. Output columns that no earlier task has used
    are left out: there is nothing to go back to.

    Cost: the weights once more in memory; one pass over them at each averaging.

    Source: Kleiman et al. 2025, arXiv 2501.05559, who fine-tune language models and vision transformers. Departure: the
    optimizer's own state (momentum) is left as it is.
    """

    def __init__(self, model: nn.Module, setting: Setting, options: AveragingOptions) -> None:
        super().__init__(model, setting)
        self._share, self._period = options.sfa_share, options.sfa_period
        self._anchors: dict[str, Tensor] = {}
        self._num_closed = 0
        self._due = False

    def attach(self, optimizer: Optimizer) -> None:
        """Average after this optimizer's steps."""
        self.hook(optimizer, after=self._average)

    def before_step(self, moment: Moment) -> None:
        """Whether this step is followed by an averaging."""
        every = max(1, round(self._period * moment.num_steps))
        done = moment.step + 1
        self._due = done % every == 0 or done == moment.num_steps

    @torch.no_grad()
    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """Remember the weights."""
        self._num_closed = task + 1
        self._anchors = {name: weights.clone() for name, weights in trainable_parameters(self.model).items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights at the end of the last task."""
        return dict(self._anchors), {"closed": self._num_closed}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._anchors, self._num_closed = dict(tensors), notes["closed"]

    @torch.no_grad()
    def _average(self, optimizer: Optimizer) -> None:
        if not self._due or not self._anchors:
            return
        parameters = trainable_parameters(self.model)
        seen = None
        if self.setting.mask != "all":
            seen = active_classes("seen", self.setting.task_classes, self._num_closed - 1)
        toward = of_columns({name: self._anchors[name] - weights for name, weights in parameters.items()}, seen)
        for name, weights in parameters.items():
            weights.add_(toward[name], alpha=self._share)
