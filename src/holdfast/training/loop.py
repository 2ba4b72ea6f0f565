"""The training loop and its counterpart that measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.errors import EmptyDataError, NotFiniteError
from holdfast.heads.masks import predict
from holdfast.streams import Examples

BeforeStep = Callable[[int], None]
AddedLoss = Callable[[], Tensor]


def train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    columns: Tensor | None = None,
    num_steps: int | None = None,
    before_step: BeforeStep | None = None,
    added_loss: AddedLoss | None = None,
) -> float:
    """Pass once over the examples in an order that `seed` decides, one optimizer step a batch.

    Nothing in it knows of earlier tasks: what holds them is attached to the optimizer.

    Args:
        model: from inputs [B, ...] to logits [B, C].
        optimizer: of its parameters.
        examples: inputs, and targets in the numbering of the full output.
        batch_size: examples a step.
        seed: decides the order of the examples, and dropout.
        columns: bool [C, C], row c: the output columns that take part in the loss of an example of class c; None: all.
        num_steps: stop after so many steps; None: go through all examples.
        before_step: called with the number of the step in this epoch, before it; sets learning rates.
        added_loss: what is added to the loss of each step, such as `keeper.penalty`.

    Returns:
        The mean of the task's loss over the steps, in nats.

    Raises:
        EmptyDataError: there are no examples.
        NotFiniteError: the loss is no longer a finite number.
    """
    if len(examples) == 0:
        raise EmptyDataError("train_epoch: the task has no training examples. Check the stream's split.")
    torch.manual_seed(seed)
    model.train()
    losses = []
    batches = examples.batches(batch_size, generator=torch.Generator().manual_seed(seed))
    for step, (inputs, targets) in zip(range(num_steps or len(examples)), batches, strict=False):
        if before_step is not None:
            before_step(step)
        optimizer.zero_grad()
        logits = model(inputs)
        if columns is not None:
            logits = logits.masked_fill(~columns[targets], -math.inf)
        loss = F.cross_entropy(logits, targets)
        losses.append(loss.detach())
        (loss if added_loss is None else loss + added_loss()).backward()
        optimizer.step()
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise NotFiniteError(
            f"train_epoch: the training loss is {mean} after {len(losses)} steps: training has diverged. "
            'Lower the learning rate, or use pull="implicit" if an explicit pull was chosen.'
        )
    return mean


@torch.no_grad()
def accuracy(model: nn.Module, examples: Examples, *, classes: Sequence[int] | None = None) -> float:
    """Share of the examples whose most probable class among `classes` is the target, 0..1."""
    if len(examples) == 0:
        raise EmptyDataError("accuracy: there are no examples to measure on. Check the stream's split.")
    training = model.training
    model.eval()
    right = [(predict(model(x), classes) == y).sum() for x, y in examples.batches(2000)]
    model.train(training)
    return float(torch.stack(right).sum()) / len(examples)


def num_epochs(num_examples: int, batch_size: int, *, epochs: int, iterations: int | None) -> int:
    """How many epochs a task takes, the last perhaps cut short, under a number of epochs or of optimizer steps."""
    return epochs if iterations is None else math.ceil(iterations / math.ceil(num_examples / batch_size))
