"""One step of an attached optimizer, as a mechanism sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.curvature.exchange import Exchange
from holdfast.memory import Retained
from holdfast.retention.meter import Meter
from holdfast.retention.parts import Block, Part
from holdfast.retention.plan import LayerPart, Plan
from holdfast.steps import CopiedIncrement, Increment, Metric, UserMetric, can_recompute, step_increments, step_metrics
from holdfast.tensors import all_parameters, local


@dataclass
class Step:
    """What is held of the weights that one optimizer's step moves.

    Of a sharded model these are this process's shards. `blocks` cuts them into pieces that fit a processor's cache,
    brings weights of half precision to float32 and back, and reads what is held in fewer bits.

    Attributes:
        optimizer: whose step it is.
        held: of all tasks so far: importances, anchors, layers.
        number: of the optimizer's steps since the last task was closed, counted from 0.
        since: how many steps there are since `after` was last called, with this one.
        memory: the mechanism's own, for this optimizer; kept from step to step, not saved.
        exchange: the processes that hold a sharded model together.
        meter: what is to be told of a measured step; None for the others.
        pulls: of the last step, by a layer's weight: where the next one starts.
    """

    optimizer: Optimizer
    held: Retained
    number: int
    since: int
    memory: dict[str, Any]
    exchange: Exchange
    meter: Meter | None
    pulls: dict[str, Tensor]
    plan: Plan
    snapshots: dict[nn.Parameter, Tensor] = field(default_factory=dict)

    def sum_of(self, values: Iterable[Tensor]) -> float:
        """The sum of zero-dimensional tensors that stand for these weights, over all processes of a sharded model."""
        return self.exchange.sum_of(values)

    @property
    def is_measured(self) -> bool:
        """Whether `measure` is to be called: the steps that `log_every` chooses."""
        return self.meter is not None

    def measure(
        self,
        increments: Sequence[Tensor],
        pulls: Sequence[Tensor],
        shares: Sequence[Tensor],
        importance: Sequence[Tensor],
    ) -> None:
        """Tell what a measured step did to some weights.

        Args:
            increments: what the optimizer's step added to each of them.
            pulls: what the mechanism added.
            shares: of its increment or distance, taken back: 0..1, of the importance's shape; empty where they are
                not known, and none of these weights is counted as pinned or not.
            importance: of each.
        """
        if self.meter is not None:
            self.meter.add(increments, pulls, shares, importance)

    def blocks(
        self,
        *,
        metric: bool = False,
        user_metric: UserMetric | None = None,
        increments: bool = False,
        changes: bool = True,
    ) -> Iterator[Block]:
        """Every held weight that the step moves, in exactly one block; for `after`.

        A block is to be done with when the next is asked for: its memory is used again, and what was done to weights of
        half precision is rounded then.

        Args:
            metric: whether blocks know the metric of the optimizer's step.
            user_metric: in place of the known one.
            increments: whether they know what the step added (`Mechanism.needs_increments`, or a measured step).
            changes: whether the weights are changed; False reads them as they are, sooner.
        """
        for part in self.parts():
            metrics = self._metrics(part, user_metric) if metric else []
            found = self._increments(part) if increments else []
            for block in part.blocks(metrics=metrics, increments=found):
                if not changes:
                    yield block
                    continue
                wide = block.wide()
                yield wide
                block.round_back(wide)

    def tensors(self) -> Iterator[Block]:
        """The same weights in whole tensors, with their gradients; for `gradients`."""
        for part in self.parts():
            yield part.whole()

    def parts(self) -> Iterator[Part]:
        """The same by parameter group, as they are held."""
        return self.plan.parts(self.optimizer, self.held)

    def layers(self) -> Iterator[LayerPart]:
        """The layers, held as a whole, that the step moves; of a sharded model those of all processes, in shards.

        Raises:
            StateError: the optimizer moves a part of a layer alone.
        """
        return self.plan.stepped_layers(self.optimizer, self.held)

    def resting(self) -> dict[str, Tensor]:
        """The model's parameters, by name, that this step does not move."""
        moved = {id(p) for part in (*self.parts(), *self.layers()) for p in part.parameters}
        return {name: p for name, p in all_parameters(self.plan.model).items() if id(p) not in moved}

    def keep_weights(self, *, layers: bool) -> None:
        """Copy the weights whose increments cannot be recomputed after the step; with `layers` those in layers too."""
        self.snapshots = {
            parameter: local(parameter.detach()).clone()
            for part in self.plan.all_parts(self.optimizer, self.held)
            for parameter in part.parameters
            if not can_recompute(self.optimizer, part.group, parameter)
        }
        if layers:
            moved = (p for layer in self.plan.layers(self.optimizer, self.held) for p in layer.parameters)
            self.snapshots |= {parameter: local(parameter.detach()).clone() for parameter in moved}

    def moved(self, part: LayerPart) -> list[Tensor]:
        """What the optimizer's own step added to a layer's parameters, in a measured step, before any pull."""
        columns = zip(part.parameters, part.weights, part.anchors, strict=True)
        return [w.to(a.dtype) - self.snapshots[p].to(a.dtype) for p, w, a in columns]

    def _metrics(self, part: Part, user_metric: UserMetric | None) -> list[Metric]:
        return step_metrics(self.optimizer, part.group, part.parameters, user_metric=user_metric)

    def _increments(self, part: Part) -> list[Increment | CopiedIncrement]:
        """What the optimizer's own step added, to be computed before anything else changes the weights."""
        known = [parameter for parameter in part.parameters if parameter not in self.snapshots]
        described: Iterator[Increment] = iter(())
        if known:
            described = iter(step_increments(self.optimizer, part.group, known, gradients=self.plan.gradients))
        return [CopiedIncrement(self.snapshots[p]) if p in self.snapshots else next(described) for p in part.parameters]
