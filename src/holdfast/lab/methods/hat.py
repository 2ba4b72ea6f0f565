"""Hard attention to the task: every task opens its own units, and may not change what earlier tasks go through."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.files.typed import Within
from holdfast.lab.methods.gates import Gated, free
from holdfast.lab.methods.isolated import check_told
from holdfast.lab.methods.learner import Learner, Moment, Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.streams import Examples
from holdfast.lab.training import Losses, task_loss

_MOST_EXPONENT = 50.0
_LARGEST_EMBEDDING = 6.0


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """Of hard attention to the task.

    Attributes:
        hat_scale: s_max, how hard the gates are at test time.
        hat_sparsity: c, the price of opening units.
    """

    hat_scale: Annotated[float, Within(1, 1e6)] = 400.0
    hat_sparsity: Annotated[float, Within(0, 1e6)] = 0.75


@register_method(
    "hat",
    label="HAT",
    summary="opens other hidden units for every task, whose number it must be told",
    options=GateOptions,
    style={"color": COLOURS["gates"], "linestyle": "-", "marker": "p"},
    classes_only=True,
    told=True,
)
class HardAttention(Learner):
    """Gates a = sigmoid(s e) on the hidden units, with an embedding e of every task; see `holdfast.lab.methods.gates`.

    In every epoch of B steps the gates harden, and are fully hard at test time:

        s = 1/s_max + (s_max - 1/s_max) (b - 1)/(B - 1),   b = 1..B

    Gradients of weights are scaled by 1 - min(a_i, a_j), with a the most that a unit has been open in any earlier task;
    those of embeddings by s_max (cosh(s e) + 1) / (s (cosh(e) + 1)), which undoes the annealing; |e| is kept below 6.
    To leave room for later tasks the loss has a regulariser added, over all units of all layers:

        c sum a (1 - a_before) / sum (1 - a_before)

    s_max is `hat_scale`, c is `hat_sparsity`.

    Raises:
        OptionError: the scenario is not "task" with a head a task, or the network has layers that cannot be gated.

    Cost: the gates, a number a unit and task; one factor a weight.

    Source: Serra et al. 2018, arXiv 1801.01423. Departures: gradients are clipped, if at all, before they are scaled;
    the learning rate follows the run's schedule. Under Adam, which divides by the gradient's own size, scaled
    gradients of embeddings count less than under SGD.
    """

    def __init__(self, model: nn.Module, setting: Setting, options: GateOptions) -> None:
        check_told(setting, method="hat")
        self.gated = Gated(model, setting.num_tasks, seed=setting.seed)
        super().__init__(self.gated, setting)
        self._scale, self._sparsity = options.hat_scale, options.hat_sparsity
        self._taken = [torch.zeros_like(e) for e in self.gated.own(0)]
        self._optimizer: Optimizer | None = None

    def attach(self, optimizer: Optimizer) -> None:
        """Condition the gradients that this optimizer is about to use."""
        self.hook(optimizer, gradients=self._condition, after=self._bound)
        self._optimizer = optimizer

    def open_task(self, task: int, examples: Examples) -> None:
        """Put the task's gates in use."""
        self.gated.task = task
        optimizer = self._optimizer
        if (
            task
            and optimizer is not None
            and (optimizer.state or any(g["weight_decay"] for g in optimizer.param_groups))
        ):
            warnings.warn(
                "hat: weight decay, and momentum kept from the task before, move weights that earlier tasks use. "
                "Set weight_decay=0 and fresh_optimizer=True.",
                stacklevel=2,
            )

    def before_step(self, moment: Moment) -> None:
        """Harden the gates."""
        done = moment.epoch_step / max(1, moment.epoch_steps - 1)
        self.gated.scale = 1 / self._scale + (self._scale - 1 / self._scale) * done

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The task's mean loss, and the price of units that no task has opened yet."""
        own = task_loss(self.model, inputs, targets, columns)
        return own, self._sparsity * sparsity(self.gated.gates(), self._taken)

    @torch.no_grad()
    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """The units that are open now are taken."""
        self._taken = [torch.maximum(old, now) for old, now in zip(self._taken, self.gated.gates(self._scale))]

    @contextmanager
    def evaluating(self, task: int) -> Iterator[None]:
        """Under the hard gates of that task."""
        before = self.gated.task, self.gated.scale
        self.gated.task, self.gated.scale = task, self._scale
        try:
            yield
        finally:
            self.gated.task, self.gated.scale = before

    def report(self) -> str:
        """How much of each layer is taken by earlier tasks."""
        shares = ", ".join(f"{100 * float(taken.mean()):.0f}%" for taken in self._taken)
        return f"HAT: units taken by earlier tasks, layer by layer: {shares}"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The units that are taken, and the task at hand."""
        return {str(number): taken for number, taken in enumerate(self._taken)}, {"task": self.gated.task}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._taken = [tensors[str(number)].to(old.device) for number, old in enumerate(self._taken)]
        self.gated.task = notes["task"]

    @torch.no_grad()
    def _condition(self, optimizer: Optimizer) -> None:
        for parameter, share in free(self.gated, self._taken):
            if parameter.grad is not None:
                parameter.grad.mul_(share)
        scale = self.gated.scale
        for e in self.gated.own():
            if e.grad is not None:
                hardened = (scale * e).clamp(-_MOST_EXPONENT, _MOST_EXPONENT).cosh() + 1
                e.grad.mul_(self._scale / scale * hardened / (e.cosh() + 1))

    @torch.no_grad()
    def _bound(self, optimizer: Optimizer) -> None:
        for e in self.gated.own():
            e.clamp_(-_LARGEST_EMBEDDING, _LARGEST_EMBEDDING)


def sparsity(gates: list[Tensor], taken: list[Tensor]) -> Tensor:
    """The mean of the gates over the units that earlier tasks left free.

    sum a (1 - a_before) / sum (1 - a_before)
    """
    room = [1 - before for before in taken]
    used = torch.stack([(a * left).sum() for a, left in zip(gates, room)]).sum()
    return used / torch.stack([left.sum() for left in room]).sum().clamp(min=torch.finfo(used.dtype).tiny)
