"""Is it on, and does it work? What a keeper says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.curvature import shapes_of
from holdfast.memory import Retained
from holdfast.memory.stored import num_positive
from holdfast.tensors import TensorMap

BY_MODEL = "by the quadratic model"
"""What a rise is said to be foreseen by where nobody has measured what that is worth along training's ways."""


def counted(number: int, noun: str) -> str:
    """A number and its noun, such as "1 task" or "2 tasks"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def rise_unit(held: Retained) -> str:
    """What a predicted rise of these tasks is said in; see `Report`."""
    if held.scatter is not None:
        return "nats"
    return "importance units" if held.nats_per_unit is None else BY_MODEL


def protected_share(
    held: Retained, parameters: TensorMap, *, sum_of_shards: Callable[[Iterable[Tensor]], float]
) -> float:
    """The share of a model's trainable weights with an importance above zero, 0..1.

    Args:
        held: of all tasks so far.
        parameters: the trainable ones, by name.
        sum_of_shards: adds up what is held over all processes, where each holds its own shards and layers.
    """
    in_layers, layers = shapes_of(held.all_layers), [layer.diagonal() for layer in held.layers.values()]
    weights = sum(parameter.numel() for name, parameter in parameters.items() if name not in in_layers)
    weights += int(sum_of_shards(torch.tensor(layer.numel()) for layer in layers)) if in_layers else 0
    protected = sum_of_shards(num_positive(value) for name, value in held.importance.items() if name in parameters)
    protected += sum_of_shards((layer > 0).sum() for layer in layers) if in_layers else 0.0
    return protected / weights if weights else 0.0


@dataclass(frozen=True)
class Report:
    """A keeper's state in figures.

    Attributes:
        mechanism: "EWC" or "WVA".
        num_tasks: tasks closed with `retain`.
        num_steps: optimizer steps that were held back since the last task was closed.
        strength: the strength; under a budget the multiplier that stood in its place in the last step, 0 where nothing
            had to be taken back.
        protected: share of the model's trainable weights with an importance above zero, 0..1.
        pinned: share of the protected weights that the last measured step took back by more than half, 0..1: of the
            way to their anchors or, where there are none, as under WVA, of what the step added, so that they are
            slowed; None before a step was measured, and for pulls that are not implicit.
        pull_ratio: length of the pull over the length of the task's step, in the last measured step; likewise None
            before one.
        predicted_rise: what the old tasks' loss has risen by the quadratic model, in `rise_unit`.
        rise_unit: "nats" where that was calibrated along the ways that training goes (`calibrated`); "by the
            quadratic model" where the importance is in nats by definition alone, as Fisher information is;
            "importance units" where not even that is known.
        skills: of each that has probes, when it was last measured, in nats per target: what its rise has grown by in
            this lesson, its whole rise, and its budget, None for none.
        remarks: what deserves a look, such as parameters and statistics that nothing holds, or a budget that is not
            kept.
        scatter: of made-up lessons, the factor within which the real rise was as foreseen; else None.
        budget: in nats per target, in place of a strength; None under a strength.
        anchored: whether weights are pulled to anchors, and not slowed alone.
    """

    mechanism: str
    num_tasks: int
    num_steps: int
    strength: float | None
    protected: float
    pinned: float | None
    pull_ratio: float | None
    predicted_rise: float | None
    rise_unit: str
    skills: tuple[tuple[float, float, float | None], ...] = ()
    remarks: tuple[str, ...] = ()
    scatter: float | None = None
    budget: float | None = None
    anchored: bool = True

    def __str__(self) -> str:
        """One line, the one that is logged."""
        if self.num_tasks == 0:
            return f"{self.mechanism}: off, no task is retained yet"
        parts = [f"{self.mechanism}: {counted(self.num_tasks, 'task')} held"]
        parts.append(counted(self.num_steps, "step"))
        if self.budget is not None:
            parts.append(f"budget {self.budget:g} nats" + (f" (strength {self.strength:.4g})" if self.strength else ""))
        elif self.strength is not None:
            parts.append(f"strength {self.strength:.4g}")
        parts.append(f"{self.protected:.1%} of the weights protected")
        if self.pinned is not None:
            how = "pinned" if self.anchored else "slowed to less than half"
            parts.append(f"{self.pinned:.1%} of them {how}")
        if self.pull_ratio is not None:
            parts.append(f"pull / task step {self.pull_ratio:.3g}")
        if self.predicted_rise is not None:
            parts.append(f"predicted rise {self.predicted_rise:.4g} {self.rise_unit}")
        if self.scatter is not None:
            parts.append(f"within a factor {self.scatter:.2g}")
        for number, (increment, rise, budget) in enumerate(self.skills):
            bound = "" if budget is None else f" of {budget:g}"
            parts.append(f"skill {number} measured {increment:.3g}{bound} nats in this lesson ({rise:.3g} in all)")
        return ", ".join(parts) + "".join(f"; {remark}" for remark in self.remarks)
