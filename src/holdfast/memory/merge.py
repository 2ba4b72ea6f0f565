"""What `retain` does to one weight: importance joined, anchor moved, piece by piece, in the forms they are held in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat

import torch
from torch import Tensor

from holdfast.curvature.rules import Accumulate, joined
from holdfast.memory.forms import Forms, write_anchor, write_importance
from holdfast.memory.stored import PIECE, AnyTensor, pieces, read


@dataclass(frozen=True)
class Closing:
    """One weight at the end of a task; at least one of its two importances is there.

    Attributes:
        held: its importance before, F; None if it had none.
        new: the task's, f, float32; None for zero.
        mean: its anchor before, m; None if it had none.
        theta: the weight now; None for a mechanism without anchors, and for a weight that is gone.
        reference: its anchor on disk, equal to `theta`; None for one in memory.
    """

    held: AnyTensor | None
    new: Tensor | None
    mean: AnyTensor | None = None
    theta: Tensor | None = None
    reference: AnyTensor | None = None


@dataclass
class Sums:
    """What merging finds on its way, zero-dimensional tensors.

    Attributes:
        before: of F.
        now: of f.
        costs: 1/2 sum F f/F' (m - theta)^2, what collapsing the anchors costs for good.
        rises: 1/2 sum F' (theta - anchor)^2, where collapsing or rounding has put the anchor beside theta.
        largest: entries of F' as it is held.
    """

    before: list[Tensor] = field(default_factory=list)
    now: list[Tensor] = field(default_factory=list)
    costs: list[Tensor] = field(default_factory=list)
    rises: list[Tensor] = field(default_factory=list)
    largest: list[Tensor] = field(default_factory=list)


class Merger:
    """Closes a task for one weight after the other.

    Args:
        rule: how importances join.
        num_tasks: that were retained before.
        share: what new importances are multiplied by.
        forms: that the result is held in.
    """

    def __init__(self, rule: Accumulate, *, num_tasks: int, share: float, forms: Forms) -> None:
        self.sums = Sums()
        self._rule: Accumulate = rule
        self._num_tasks, self._share, self._forms = num_tasks, share, forms
        self._generators: dict[torch.device, torch.Generator] = {}

    def merge(self, closing: Closing) -> tuple[AnyTensor, AnyTensor | None]:
        """F', and the anchor: m' under "per_task", else theta; None for a mechanism without anchors."""
        first = closing.held if closing.new is None else closing.new
        assert first is not None
        theta, old = closing.theta, closing.held
        device = first.device if theta is None else theta.device
        importance = self._forms.new_importance(first.shape, device)
        collapses = self._rule == "per_task" and theta is not None and old is not None
        anchor = self._new_anchor(closing, collapses=collapses)
        # clones and references are theta; a weight that is gone stays where it is held
        written = theta is not None and anchor is not None and (collapses or self._forms.anchors != "float32")
        written = written and closing.reference is None
        columns = (importance, old, closing.new, closing.mean, theta, anchor)
        for joint, before, new, mean, weight, moved in zip(*map(_pieces_or_none, columns)):
            f = torch.zeros(joint.shape, dtype=torch.float32, device=device) if new is None else _float32(new, device)
            f = f if self._share == 1 else f * self._share
            self.sums.now.append(f.sum())
            if before is None:
                write_importance(joint, f)
            else:
                before = _float32(before, device)
                self.sums.before.append(before.sum())
                total = joined(before, f, self._rule, num_tasks=self._num_tasks)
                write_importance(joint, total, self._noise(device))
                if collapses:
                    mean = read(mean, dtype=weight.dtype, device=device)
                    write_anchor(moved, self._collapsed(before, f, mean, weight))
            stands = _float32(joint, device)
            if stands.numel():
                self.sums.largest.append(stands.max())
            if written:
                if not collapses:
                    write_anchor(moved, weight)
                distance = weight - read(moved, dtype=weight.dtype, device=device)
                self.sums.rises.append(0.5 * (stands * distance.float().square()).sum())
        return self._forms.placed(importance), None if anchor is None else self._forms.placed(anchor)

    def _new_anchor(self, closing: Closing, *, collapses: bool) -> AnyTensor | None:
        if closing.theta is None or closing.reference is not None:
            return closing.mean if closing.theta is None else closing.reference
        if self._forms.anchors == "float32" and not collapses:
            return closing.theta.detach().clone()
        return self._forms.new_anchor(closing.theta)

    def _collapsed(self, held: Tensor, new: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
        """m' = m + f/F' (theta - m), theta where F' = 0; what that costs is noted."""
        total = held + new
        share = torch.where(total > 0, new / total, torch.ones_like(total))
        self.sums.costs.append(0.5 * (held * share * (mean.float() - theta.float()).square()).sum())
        return (mean + share.to(mean.dtype) * (theta - mean)).to(theta.dtype)

    def _noise(self, device: torch.device) -> torch.Generator:
        """Of rounding; the same for every keeper, and no one else's random numbers."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._num_tasks)
        return self._generators[device]


def _pieces_or_none(held: AnyTensor | None) -> Iterable:
    return repeat(None) if held is None else pieces(held, PIECE)


def _float32(held: AnyTensor, device: torch.device) -> Tensor:
    return read(held, dtype=torch.float32, device=device)
