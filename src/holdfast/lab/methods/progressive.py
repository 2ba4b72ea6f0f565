"""Progressive networks: a new column for every task, which reads what the frozen columns before it see."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.lab.methods.gates import chain_of
from holdfast.lab.methods.isolated import check_told
from holdfast.lab.methods.learner import Learner, Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.streams import Examples

_LATERAL = 0.1
"""What earlier columns are multiplied by at first."""


class Lateral(nn.Module):
    """What a layer of a column reads of the columns before it: U relu(V [alpha_j h_j]).

    Args:
        layer: the column's own.
        num_before: how many columns there are before it.

    Source: Rusu et al. 2016, arXiv 1606.04671, equation 2; V is a 1x1 convolution where the layer is one.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, num_before: int) -> None:
        super().__init__()
        self.scales = nn.Parameter(layer.weight.new_full((num_before,), _LATERAL).detach())
        width = layer.weight.shape[1]
        out = copy.deepcopy(layer)
        out.register_parameter("bias", None)
        nn.init.zeros_(out.weight)  # a column begins as if it were alone
        if isinstance(layer, nn.Conv2d):
            into: nn.Module = nn.Conv2d(num_before * width, width, 1, device=layer.weight.device)
        else:
            into = nn.Linear(num_before * width, width, device=layer.weight.device)
        self.into, self.out = into, out

    def forward(self, before: list[Tensor]) -> Tensor:
        """Hidden states of the columns before, each [B, n, ...] -> what is added to the layer's outputs."""
        scaled = torch.cat([scale * hidden for scale, hidden in zip(self.scales, before, strict=True)], dim=1)
        return self.out(torch.relu(self.into(scaled)))


class ProgressiveColumns(nn.Module):
    """A chain of layers for each task, every layer but the first with what the earlier columns have at its place.

    Args:
        net: the first column; the others begin from the same weights.
        num_tasks: how many columns there will be.
        seed: of the lateral connections; the global random state is left alone.

    Attributes:
        task: the column that answers.
    """

    def __init__(self, net: nn.Module, num_tasks: int, *, seed: int) -> None:
        super().__init__()
        first = chain_of(net, method="progressive")
        self.columns = nn.ModuleList([first, *(copy.deepcopy(first) for _ in range(num_tasks - 1))])
        self.task = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.laterals = nn.ModuleList(
                nn.ModuleDict({str(place): Lateral(layer, column) for place, layer in _layers(first)[1:]})
                for column in range(1, num_tasks)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [B, ...] -> outputs [B, C] of the column of `task`; those before it are not trained."""
        hidden = [inputs] * (self.task + 1)
        for place in range(len(self.columns[0])):  # pyright: ignore[reportArgumentType]
            with torch.no_grad():
                before = [self._at(column, place, hidden) for column in range(self.task)]
            hidden = [*before, self._at(self.task, place, hidden)]
        return hidden[-1]

    def _at(self, column: int, place: int, hidden: list[Tensor]) -> Tensor:
        module: nn.Module = self.columns[column][place]  # pyright: ignore[reportIndexIssue]
        own = module(hidden[column])
        laterals: Any = self.laterals[column - 1] if column else {}
        return own + laterals[str(place)](hidden[:column]) if str(place) in laterals else own


def _layers(chain: nn.Sequential) -> list[tuple[int, Any]]:
    return [(place, module) for place, module in enumerate(chain) if isinstance(module, nn.Linear | nn.Conv2d)]


@register_method(
    "progressive",
    label="progressive",
    summary="adds a column of layers for every task, whose number it must be told",
    style={"color": COLOURS["isolation"], "linestyle": "--", "marker": "^"},
    classes_only=True,
    told=True,
)
class Progressive(Learner):
    """A column of layers for each task; those of earlier tasks are read and never changed: nothing is forgotten.

    Raises:
        OptionError: the scenario is not "task" with a head a task, or the network is no chain of layers.

    Cost: the weights of the network for each task, and of lateral connections as many again for each task before it:
    they grow with the square of the number of tasks. Testing on task k takes k columns.

    Source: Rusu et al. 2016, arXiv 1606.04671. Departures: all columns begin from the same weights, and are there from
    the beginning, so that memory is that of all tasks.
    """

    def __init__(self, model: nn.Module, setting: Setting) -> None:
        check_told(setting, method="progressive")
        self.net = ProgressiveColumns(model, setting.num_tasks, seed=setting.seed)
        super().__init__(self.net, setting)

    def open_task(self, task: int, examples: Examples) -> None:
        """Train the task's column."""
        self.net.task = task

    @contextmanager
    def evaluating(self, task: int) -> Iterator[None]:
        """By that task's column."""
        before, self.net.task = self.net.task, task
        try:
            yield
        finally:
            self.net.task = before

    def report(self) -> str:
        """How many weights there are."""
        column = sum(weight.numel() for weight in self.net.columns[0].parameters())
        total = sum(weight.numel() for weight in self.net.parameters())
        return f"progressive: {total:,} weights, {total / column:.1f} times those of a column"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The task at hand."""
        return {}, {"task": self.net.task}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.net.task = notes["task"]
