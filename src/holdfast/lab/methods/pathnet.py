"""PathNet: a tournament of paths through layers of modules; the winner's modules are kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.analytic.features import head_of
from holdfast.errors import OptionError
from holdfast.files.typed import Within
from holdfast.lab.methods.gates import chain_of
from holdfast.lab.methods.isolated import OtherRows, check_told
from holdfast.lab.methods.learner import Learner, Moment, Setting
from holdfast.lab.methods.registry import COLOURS, register_method
from holdfast.lab.streams import Examples
from holdfast.lab.training import Losses, task_loss

_CONTESTED = 0.75
"""Of a task's steps, in which paths compete; in the others the best is trained."""

_FURTHEST = 2
"""A gene moves by up to so many modules."""


@dataclass(frozen=True, kw_only=True)
class PathNetOptions:
    """Of PathNet.

    Attributes:
        path_modules: M, modules a layer.
        path_active: N, the most that are active in a layer.
        path_population: genotypes.
        path_generations: tournaments of two a task.
    """

    path_modules: Annotated[int, Within(1, 1000)] = 8
    path_active: Annotated[int, Within(1, 1000)] = 3
    path_population: Annotated[int, Within(2, 10**6)] = 16
    path_generations: Annotated[int, Within(1, 10**6)] = 30

    def __post_init__(self) -> None:
        if self.path_active > self.path_modules:
            raise OptionError(
                f"path_active is {self.path_active}; expected at most path_modules, which is {self.path_modules}."
            )


class Paths(nn.Module):
    """A chain whose hidden layers are M modules each, of which a path sums the active ones.

    Args:
        net: the chain; a hidden layer of H units becomes M modules of H / sqrt(M), so that a layer between two such has
            as many weights as before.
        num_modules: M.
        seed: of the weights; the global random state is left alone.

    Attributes:
        path: [layers, N], the active modules; those named twice count once.
    """

    def __init__(self, net: nn.Module, num_modules: int, *, seed: int) -> None:
        super().__init__()
        chain = chain_of(net, method="pathnet")
        weighted = [module for module in chain if isinstance(module, nn.Linear | nn.Conv2d)]
        shrunk = [max(1, round(len(layer.weight) / num_modules**0.5)) for layer in weighted[:-1]]
        widths = [weighted[0].weight.shape[1], *shrunk, len(weighted[-1].weight)]
        device = weighted[0].weight.device
        self.stages = nn.ModuleList()
        number = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in chain:
                if not isinstance(module, nn.Linear | nn.Conv2d):
                    self.stages.append(copy.deepcopy(module))
                    continue
                # behind a Flatten every channel is a run of neighbouring inputs
                run = module.weight.shape[1] // (len(weighted[number - 1].weight) if number else module.weight.shape[1])
                before, after = widths[number] * run, widths[number + 1]
                count = 1 if number == len(weighted) - 1 else num_modules
                self.stages.append(nn.ModuleList(_resized(module, before, after) for _ in range(count)))
                number += 1
        self.to(device)
        self.path = torch.zeros(number - 1, 1, dtype=torch.long)

    @property
    def layers(self) -> list[nn.ModuleList]:
        """The modules of each hidden layer."""
        return [stage for stage in self.stages if isinstance(stage, nn.ModuleList)][:-1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [B, ...] -> outputs [B, C] along `path`."""
        hidden, number = inputs, 0
        for stage in self.stages:
            if not isinstance(stage, nn.ModuleList):
                hidden = stage(hidden)
            elif len(stage) == 1 and number == len(self.path):
                hidden = stage[0](hidden)
            else:
                active = self.path[number].unique().tolist()
                hidden = torch.stack([torch.relu(stage[place](hidden)) for place in active]).sum(0)
                number += 1
        return hidden


def _resized(layer: nn.Linear | nn.Conv2d, before: int, after: int) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.Linear(before, after)
    how: Any = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return nn.Conv2d(before, after, layer.kernel_size, **how)  # pyright: ignore[reportArgumentType]


@register_method(
    "pathnet",
    label="PathNet",
    summary="lets paths through layers of modules compete, and keeps the winner's, whose task it must be told",
    options=PathNetOptions,
    style={"color": COLOURS["isolation"], "linestyle": ":", "marker": "X"},
    classes_only=True,
    told=True,
)
class PathNet(Learner):
    """Genotypes name up to N modules a layer. Two of them are trained by turns, and the worse is overwritten.

    In each of `path_generations` tournaments a task, two genotypes drawn at random are trained for as many steps, one
    after the other; the one of the larger mean loss becomes a copy of the other, whose genes each move with probability
    1/(L N) by up to 2 modules. After three quarters of the task's steps the winner of the last tournament alone is
    trained. Then its modules are frozen, and all that no task has kept begin anew.

    Raises:
        OptionError: the scenario is not "task" with a head a task, or the network is no chain of layers.

    Cost: between hidden layers as many weights as the network had, and sqrt(M) times as many in its first layer, which
    do not grow. A step goes through up to N modules a layer.

    Source: Fernando et al. 2017, arXiv 1701.08734. Departures: fitness is the mean loss, not accuracy; the last layer
    is one, of which a task has the rows of its classes; the last quarter of the steps.
    """

    def __init__(self, model: nn.Module, setting: Setting, options: PathNetOptions) -> None:
        check_told(setting, method="pathnet")
        self.net = Paths(model, options.path_modules, seed=setting.seed)
        super().__init__(self.net, setting)
        self._options = options
        self._populate(0)
        self._pair = torch.tensor([0, 1])
        self._fitness = torch.zeros(2, dtype=torch.float64)
        self._paths: list[Tensor] = []
        self._rows = self._others(0)
        self.net.path = self._genes[0]

    def attach(self, optimizer: Optimizer) -> None:
        """Keep this optimizer's steps off the rows of other tasks."""
        self.hook(optimizer, after=lambda _: self._rows.restore())

    def open_task(self, task: int, examples: Examples) -> None:
        """A new population."""
        self._rows = self._others(task)
        self._populate(task)

    def before_step(self, moment: Moment) -> None:
        """Choose whose turn it is, and judge a tournament that has ended."""
        contested = max(2, int(_CONTESTED * moment.num_steps))
        each = max(1, contested // (2 * self._options.path_generations))
        turn = moment.step // each if moment.step < contested else contested
        if turn == self._turn:
            return
        if self._turn >= 0 and (turn % 2 == 0 or turn == contested):
            self._judge()
        if turn == contested:
            self.net.path = self._genes[self._pair[0]]
        elif turn % 2 == 0:
            self._pair, self._fitness = torch.randperm(len(self._genes))[:2], torch.zeros(2, dtype=torch.float64)
        if turn != contested:
            self.net.path = self._genes[self._pair[turn % 2]]
        self._turn = turn

    def loss(self, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Losses:
        """The task's mean loss, which is the fitness, too."""
        own = task_loss(self.model, inputs, targets, columns)
        self._fitness[self._turn % 2] += float(own.detach())
        return own, None

    def close_task(self, examples: Examples, *, classes: tuple[int, ...] | None, task: int) -> None:
        """Freeze the winner's modules, and let the others that no task has begin anew."""
        self._paths.append(self.net.path.clone())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.setting.seed + task + 1)
            for number, layer in enumerate(self.net.layers):
                taken = {place for path in self._paths for place in path[number].tolist()}
                for place, module in enumerate(layer):
                    if place not in taken:
                        module.reset_parameters()  # pyright: ignore[reportCallIssue]
        self._freeze()

    @contextmanager
    def evaluating(self, task: int) -> Iterator[None]:
        """Along that task's path, of those that are closed."""
        before = self.net.path
        if task < len(self._paths):
            self.net.path = self._paths[task]
        try:
            yield
        finally:
            self.net.path = before

    def report(self) -> str:
        """How many modules are taken."""
        modules = [module for layer in self.net.layers for module in layer]
        frozen = sum(not next(module.parameters()).requires_grad for module in modules)
        return f"PathNet: {frozen} of {len(modules)} modules are taken"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Population, tournament and paths."""
        tensors = {"genes": self._genes, "pair": self._pair, "fitness": self._fitness, "path": self.net.path}
        tensors |= {f"paths/{number}": path for number, path in enumerate(self._paths)}
        return {name: tensor.clone() for name, tensor in tensors.items()}, {"turn": self._turn}

    def load_state(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        found = {name: tensor.cpu() for name, tensor in tensors.items()}
        self._genes, self._pair, self._fitness = (found[name] for name in ("genes", "pair", "fitness"))
        self._paths = [found[f"paths/{number}"] for number in range(sum(name.startswith("paths/") for name in found))]
        self.net.path, self._turn = found["path"], notes["turn"]
        self._rows = self._others(min(len(self._paths), self.setting.num_tasks - 1))
        self._freeze()

    def _populate(self, task: int) -> None:
        options = self._options
        shape = (options.path_population, len(self.net.layers), options.path_active)
        generator = torch.Generator().manual_seed(1000 * self.setting.seed + task)
        self._genes, self._turn = torch.randint(options.path_modules, shape, generator=generator), -1

    def _others(self, task: int) -> OtherRows:
        return OtherRows(head_of(self.net), self.setting.task_classes[task])

    def _judge(self) -> None:
        """Overwrite the loser by a mutation of the winner, who comes first."""
        if self._fitness[1] < self._fitness[0]:
            self._pair = self._pair.flip(0)
        winner = self._genes[self._pair[0]]
        moves = torch.randint(-_FURTHEST, _FURTHEST + 1, winner.shape)
        mutated = torch.rand(winner.shape) < 1 / winner.numel()
        self._genes[self._pair[1]] = (winner + moves * mutated) % self._options.path_modules

    def _freeze(self) -> None:
        for number, layer in enumerate(self.net.layers):
            taken = {place for path in self._paths for place in path[number].tolist()}
            for place, module in enumerate(layer):
                module.requires_grad_(place not in taken)
