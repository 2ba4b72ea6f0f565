"""The loop of plain training: one optimizer step a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

AnyBatch = TypeVar("AnyBatch")


def descend(
    optimizer: Optimizer,
    batches: Iterable[AnyBatch],
    loss: Callable[[AnyBatch], tuple[Tensor, Tensor | None]],
    *,
    clip: float | None = None,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[AnyBatch], None] | None = None,
) -> list[Tensor]:
    """Take one optimizer step on each batch.

    Args:
        optimizer: of what is trained.
        batches: what the steps are taken on, in order; whatever `loss` takes.
        loss: from a batch to the loss of the task at hand, and what is added to it before the backward pass or None;
            scalars.
        clip: gradients are scaled down to this norm over all parameters of the optimizer; None: they are not.
        before_step: called with the number of the step, from 0, before its loss.
        after_step: called with the batch of the step, after it.

    Returns:
        The loss of the task at each step, without what was added; scalars without gradient.
    """
    losses = []
    for step, batch in enumerate(batches):
        if before_step is not None:
            before_step(step)
        optimizer.zero_grad()
        own, added = loss(batch)
        losses.append(own.detach())
        (own if added is None else own + added).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([each for group in optimizer.param_groups for each in group["params"]], clip)
        optimizer.step()
        if after_step is not None:
            after_step(batch)
    return losses
