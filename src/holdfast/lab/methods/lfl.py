"""Less-forgetful learning: the features of the old network are kept, where its last layer reads them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from holdfast.analytic.features import head_of
from holdfast.files.typed import Within
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.streams import Examples
from holdfast.lab.training import Losses, logits_loss


@dataclass(frozen=True, kw_only=True)
class LessForgetfulOptions:
    """Of less-forgetful learning.

    Attributes:
        lfl_weight: of the distance of the features to the old ones.
    """

    lfl_weight: Annotated[float, Within(0, 1e12)] = 0.1


@register_method(
    "lfl",
    label="LFL",
    summary="keeps the old network's features on the inputs of the new task",
    options=LessForgetfulOptions,
    style={"color": COLOURS["teacher"], "linestyle": "--", "marker": "d"},
)
class LessForgetful(Learner):
    """A copy of the network as the last task left it says what the last layer should read.

        loss = L_new + lambda/2 |f(x; theta) - f(x; theta_old)|^2

    f the inputs of the last layer, and the mean over a batch; lambda is `lfl_weight`. Where tasks share all output
    columns the last layer is frozen after the first, as its authors have it; where a task has columns of its own these
    are trained.

    Cost: one more forward pass a step, and the weights once more.

    Source: Jung et al. 2016, arXiv 1607.00122.
    """

    def __init__(self, model: nn.Module, setting: Setting, options: LessForgetfulOptions) -> None:
        super().__init__(model, setting)
        self._weight = options.lfl_weight
        self._teacher: nn.Module | None = None

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The task's mean loss, and the price of features that move."""
        with inputs_of(head_of(self.model)) as read:
            own = logits_loss(self.model(inputs), targets, columns)
        if self._teacher is None:
            return own, None
        with torch.no_grad(), inputs_of(head_of(self._teacher)) as meant:
            self._teacher(inputs)
        return own, self._weight / 2 * (read[0] - meant[0]).square().flatten(1).sum(1).mean()

    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """Copy the network."""
        self._teach(self.model.state_dict())

    @property
    def steadier(self) -> str:
        """See `Learner`."""
        return f", or lfl_weight, which is {self._weight:g}"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The copy."""
        return dict(self._teacher.state_dict()) if self._teacher is not None else {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        if tensors:
            self._teach(tensors)

    def _teach(self, weights: Mapping[str, Tensor]) -> None:
        self._teacher = copy.deepcopy(self.model).requires_grad_(False).eval()
        self._teacher.load_state_dict(weights)
        if self.setting.mask == "all":
            head_of(self.model).requires_grad_(False)


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, what a module reads is put into the list."""
    read: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    try:
        yield read
    finally:
        handle.remove()
