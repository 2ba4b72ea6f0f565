"""Deep Generative Replay: a scholar is a generator that draws inputs, and a solver that answers them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.likelihoods.masks import Mask, active_classes
from holdfast.replay.generators import Generator, drawn_classes, is_conditional

ReplaySource = Literal["generative", "exact", "noise", "none"]
"""Where replayed inputs come from: a generator, the real data of earlier tasks, evenly random pixels, or nowhere. All
but the first are the controls of Shin et al. 2017."""


@dataclass(frozen=True)
class ReplayHead:
    """Output columns that answer replayed inputs together.

    Attributes:
        answers: the columns that the old solver knows, among which its answer is.
        columns: those over which the new solver's softmax is taken.
    """

    answers: tuple[int, ...]
    columns: tuple[int, ...]


def replay_heads(mask: Mask, task_classes: Sequence[Sequence[int]], t: int) -> tuple[ReplayHead, ...]:
    """The heads that are rehearsed while task t is learned (t > 0).

    With one head a task each earlier task's head answers every replayed input, since nothing says of which task it is;
    else one head has the columns of all earlier tasks, and the softmax those that the task's own loss has.

    Args:
        mask: the output columns that take part in a task's loss.
        task_classes: the classes of every task.
        t: number of the task at hand.

    Raises:
        UnknownNameError: there is no such mask.
    """
    if mask == "task":
        return tuple(ReplayHead(own, own) for own in dict.fromkeys(tuple(classes) for classes in task_classes[:t]))
    known = active_classes("seen", task_classes, t - 1)
    every = active_classes("seen", task_classes, len(task_classes) - 1)
    assert known is not None
    assert every is not None
    return (ReplayHead(known, active_classes(mask, task_classes, t) or every),)


@dataclass(frozen=True, eq=False)
class Replay:
    """Replayed inputs and the old solver's answers to them.

    Attributes:
        inputs: [B, ...].
        logits: [B, C] of the old solver.
        classes: int64 [B]: the class asked for of a conditional generator, else the old solver's answer.
        asked: whether the class was asked for.
    """

    inputs: Tensor
    logits: Tensor
    classes: Tensor
    asked: bool


@dataclass(frozen=True)
class Scholar:
    """What is known of the tasks so far: a frozen generator and a frozen solver.

    Attributes:
        solver: from inputs to logits [B, C].
        generator: of their inputs; None where replayed inputs come from elsewhere.
    """

    solver: nn.Module
    generator: Generator | None = None

    @torch.no_grad()
    def replay(self, n: int, heads: Sequence[ReplayHead], *, generator: torch.Generator | None = None) -> Replay:
        """Draw n inputs and answer them. Of a conditional generator each known class is asked for alike often."""
        assert self.generator is not None
        known = sorted({column for head in heads for column in head.answers})
        if not is_conditional(self.generator):
            return self.answer(self.generator.sample(n, generator=generator), heads)
        device = next(self.solver.parameters()).device
        asked = drawn_classes(n, known, device=device, generator=generator)
        inputs = self.generator.sample(n, classes=asked, generator=generator)
        return Replay(inputs, self.solver(inputs), asked, asked=True)

    @torch.no_grad()
    def answer(self, inputs: Tensor, heads: Sequence[ReplayHead]) -> Replay:
        """Answer given inputs."""
        logits = self.solver(inputs)
        known = torch.tensor(sorted({column for head in heads for column in head.answers}), device=logits.device)
        return Replay(inputs, logits, known[logits[:, known].argmax(1)], asked=False)


def replay_loss(
    logits: Tensor, replay: Replay, heads: Sequence[ReplayHead], *, temperature: float | None = None
) -> Tensor:
    """The mean loss of a solver on replayed inputs, over heads and inputs; a scalar, in nats.

    Hard answers, the old solver's most probable class y: CE(softmax(logits), y). Distilled ones, at temperature T:

        -T^2 sum_c softmax(old / T)_c log softmax(logits / T)_c,

    the old softmax over the columns that the old solver knows, the new one over all that are at stake. Where the class
    was asked for of a conditional generator, a hard answer is that class, and only its own head is rehearsed.

    Args:
        logits: [B, C] of the solver in training, on `replay.inputs`.
        replay: the inputs and the old solver's answers.
        heads: as `replay_heads` gives them.
        temperature: T of distilled answers; None: hard ones.

    Source: Shin et al. 2017 (arXiv 1705.08690); heads and distillation as van de Ven & Tolias 2019 (1904.07734).
    """
    losses = []
    for head in heads:
        old, new = replay.logits[:, list(head.answers)], logits[:, list(head.columns)]
        if temperature is not None:
            places = [head.columns.index(column) for column in head.answers]
            told = (new / temperature).log_softmax(1)[:, places]
            losses.append(-(temperature**2) * ((old / temperature).softmax(1) * told).sum(1).mean())
        elif not replay.asked:
            answers = torch.tensor(head.answers, device=old.device)[old.argmax(1)]
            losses.append(F.cross_entropy(_only(logits, head.columns), answers))
    if not losses:
        losses = [F.cross_entropy(_of_own_head(logits, replay.classes, heads), replay.classes)]
    return torch.stack(losses).mean()


def mixed(
    new: tuple[Tensor, Tensor], replayed: tuple[Tensor, Tensor] | None, *, new_share: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One weighted batch of new and replayed examples: inputs, classes, and weights of sum 1.

    The new ones have the weight `new_share` together, the replayed ones the rest: the mean loss under these weights is
    new_share * (mean over the new) + (1 - new_share) * (mean over the replayed).
    """
    if replayed is None:
        return *new, None
    count, more = len(new[0]), len(replayed[0])
    weights = new[0].new_full((count + more,), new_share / count)
    weights[count:] = (1 - new_share) / more
    return torch.cat([new[0], replayed[0]]), torch.cat([new[1], replayed[1]]), weights


def _only(logits: Tensor, columns: Sequence[int]) -> Tensor:
    """The logits, minus infinity in all other columns."""
    outside = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    outside[list(columns)] = False
    return logits.masked_fill(outside, -math.inf)


def _of_own_head(logits: Tensor, classes: Tensor, heads: Sequence[ReplayHead]) -> Tensor:
    """The logits, minus infinity in the columns of other heads than the one that each class belongs to."""
    width = logits.shape[1]
    table = torch.ones(width, width, dtype=torch.bool, device=logits.device)
    for head in heads:
        for own in head.answers:
            table[own, list(head.columns)] = False
    return logits.masked_fill(table[classes], -math.inf)
