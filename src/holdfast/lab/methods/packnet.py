"""PackNet: each task keeps the largest of the weights that were free, and leaves the rest to later ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from holdfast.analytic.features import head_of
from holdfast.files.typed import Within
from holdfast.lab.methods.isolated import check_told
from holdfast.lab.methods.learner import Learner, Moment, Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.streams import Examples
from holdfast.tensors import copies, prefixed, under


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Of PackNet.

    Attributes:
        pack_prune: share of the free weights that a task leaves to later ones; None: so much that all tasks get alike.
        pack_retrain: share of a task's steps that are taken once the others are pruned.
    """

    pack_prune: Annotated[float, Within(0, 1)] | None = None
    pack_retrain: Annotated[float, Within(0, 1)] = 0.33


@register_method(
    "packnet",
    label="PackNet",
    summary="prunes after each task, and trains what is free on the next, whose number it must be told",
    options=PackOptions,
    style={"color": COLOURS["isolation"], "linestyle": "-", "marker": "s"},
    classes_only=True,
    told=True,
)
class PackNet(Learner):
    """Weights of Linear and convolution layers belong to the task that kept them; nothing of it is ever changed.

    A task trains the free weights beside those of earlier tasks, which are used and stay as they are. After
    1 - `pack_retrain` of its steps the smallest of the free weights, a share p in each layer, are set to 0, and the
    rest are trained on; these are the task's. At test time a task is answered by the weights of tasks up to it.

    p is `pack_prune`; None leaves every task as many weights: 1 - 1/(T - t) after t of T tasks, and 0 in the last.

    Biases, norms and everything else are trained in the first task alone. Of the last layer, which is never pruned,
    each task has the rows of its classes.

    Raises:
        OptionError: the scenario is not "task" with a head a task.

    Cost: a byte a weight for its owner, and a copy of the weights while a task is trained. The network does not grow;
    it fills up.

    Source: Mallya & Lazebnik 2018, arXiv 1711.05769: p = 0.5 to 0.75, and half as many epochs after as before pruning.
    """

    def __init__(self, model: nn.Module, setting: Setting, options: PackOptions) -> None:
        check_told(setting, method="packnet")
        super().__init__(model, setting)
        self._prune, self._retrain = options.pack_prune, options.pack_retrain
        self._head = {id(parameter) for parameter in head_of(model).parameters()}
        self._packed = {
            f"{name}.weight": module.weight
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and id(module.weight) not in self._head
        }
        self._owner = {name: torch.zeros_like(w, dtype=torch.int8) for name, w in self._packed.items()}
        self._closed, self._pruned = 0, False
        self._kept: dict[str, Tensor] = {}

    def attach(self, optimizer: Optimizer) -> None:
        """Keep this optimizer's steps off what belongs to other tasks."""
        self.hook(optimizer, gradients=lambda _: self._quieten(), after=lambda _: self._restore())

    def open_task(self, task: int, examples: Examples) -> None:
        """Remember what may not change."""
        self._remember()

    def before_step(self, moment: Moment) -> None:
        """Prune when it is time; statistics of batch norm are those of the first task."""
        if self._closed:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        if not self._pruned and moment.step >= (1 - self._retrain) * moment.num_steps:
            self._leave_room()

    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """What the task trained is its own."""
        if not self._pruned:
            self._leave_room()
        self._closed, self._pruned = task + 1, False

    @contextmanager
    def evaluating(self, task: int) -> Iterator[None]:
        """With the weights of tasks up to that one, of those that are closed."""
        if task >= self._closed:
            yield
            return
        before = copies(self._packed)
        try:
            self._put({name: w.where(self._mine(name, task), 0.0) for name, w in before.items()})
            yield
        finally:
            self._put(before)

    def report(self) -> str:
        """How much is free."""
        free = sum(int((owner == 0).sum()) for owner in self._owner.values())
        total = sum(owner.numel() for owner in self._owner.values())
        return f"PackNet: {100 * free / max(1, total):.0f}% of {total:,} weights are free"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Whose each weight is."""
        return prefixed("owner", self._owner), {"closed": self._closed, "pruned": self._pruned}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        found = under("owner", tensors)
        self._owner = {name: found[name].to(owner.device) for name, owner in self._owner.items()}
        self._closed, self._pruned = notes["closed"], notes["pruned"]
        self._remember()

    def _mine(self, name: str, task: int) -> Tensor:
        """Which weights a task is answered by."""
        owner = self._owner[name]
        return (owner > 0) & (owner <= task + 1)

    def _open(self, name: str) -> Tensor:
        """Which weights are trained now: the free ones, and once these are pruned those that are left."""
        owner = self._owner[name]
        return owner == (self._closed + 1 if self._pruned else 0)

    @torch.no_grad()
    def _leave_room(self) -> None:
        """Give the largest of the free weights to the task at hand, and set the others to 0."""
        left = self.setting.num_tasks - self._closed
        share = self._prune if self._prune is not None else 1 - 1 / left
        for name, weight in self._packed.items():
            free = self._open(name)
            count = int(free.sum())
            keep = count if left == 1 else round((1 - share) * count)
            sizes = weight.abs().where(free, -1.0).flatten()
            chosen = torch.zeros_like(sizes, dtype=torch.bool)
            chosen[sizes.topk(keep).indices] = True
            mine = chosen.view_as(free)
            self._owner[name] = self._owner[name].where(~mine, self._closed + 1)
            weight.copy_(weight.where(mine | ~free, 0.0))
        self._pruned = True
        self._remember()

    def _remember(self) -> None:
        self._kept = copies(dict(self.model.named_parameters()))

    def _frozen(self) -> Iterator[tuple[str, nn.Parameter, Tensor | None]]:
        """Name, parameter and which of its entries may not change; None: none of them."""
        own = self.setting.task_classes[min(self._closed, self.setting.num_tasks - 1)]
        for name, parameter in self.model.named_parameters():
            if name in self._packed:
                yield name, parameter, ~self._open(name)
            elif id(parameter) in self._head:
                rows = torch.ones_like(parameter, dtype=torch.bool)
                rows[list(own)] = False
                yield name, parameter, rows
            elif self._closed:
                yield name, parameter, None

    @torch.no_grad()
    def _quieten(self) -> None:
        for _, parameter, entries in self._frozen():
            if parameter.grad is not None:
                parameter.grad.zero_() if entries is None else parameter.grad.masked_fill_(entries, 0.0)

    @torch.no_grad()
    def _restore(self) -> None:
        for name, parameter, entries in self._frozen():
            kept = self._kept[name]
            parameter.copy_(kept if entries is None else kept.where(entries, parameter))

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in self._packed.items():
            weight.copy_(weights[name])
