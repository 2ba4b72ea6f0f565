"""The training loop and its counterpart that measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.errors import EmptyDataError, NotFiniteError, OptionError
from holdfast.lab.streams import Examples
from holdfast.lab.training.augment import Augment
from holdfast.likelihoods.masks import predict
from holdfast.steps.descent import descend

BeforeStep = Callable[[int], None]

AfterStep = Callable[[Tensor, Tensor, Tensor | None], None]
"""Given the inputs, targets and columns of the step, as `task_loss` takes them."""

Losses = tuple[Tensor, Tensor | None]
"""The mean loss of a batch on the task at hand, and what is added to it for the sake of earlier tasks; scalars."""

Loss = Callable[[Tensor, Tensor, Tensor | None], Losses]
"""From inputs, targets and columns, as `task_loss` takes them."""


def task_loss(model: nn.Module, inputs: Tensor, targets: Tensor, columns: Tensor | None) -> Tensor:
    """The mean loss of a batch, in nats: cross-entropy of classes, half the squared distance to numbers.

    Args:
        model: from inputs [B, ...] to logits [B, C].
        inputs: of the examples.
        targets: int64 [B], in the numbering of the full output; or of a regression float [B, C].
        columns: bool [C, C], row c: the output columns that take part in the loss of an example of class c; None: all.
    """
    return logits_loss(model(inputs), targets, columns)


def logits_loss(logits: Tensor, targets: Tensor, columns: Tensor | None) -> Tensor:
    """The mean loss of logits [B, C], in nats; the rest as in `task_loss`."""
    if targets.is_floating_point():
        return 0.5 * (logits - targets).square().sum(1).mean()  # a Gaussian of variance 1, less its constant
    if columns is not None:
        logits = logits.masked_fill(~columns[targets], -math.inf)
    return F.cross_entropy(logits, targets)


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
    after_step: AfterStep | None = None,
    loss: Loss | None = None,
    clip: float | None = None,
    augment: Augment | None = None,
    steadier: str = "",
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
        after_step: called with the batch of the step, after it.
        loss: takes the place of `task_loss` on the model; its second value is added before the backward pass.
        clip: gradients are scaled down to this norm over all parameters; None: they are not.
        augment: what becomes of the inputs of each batch, by a source of chance that `seed` decides.
        steadier: what else than a lower learning rate helps where training diverges; see `divergence`.

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

    def losses_of(batch: tuple[Tensor, Tensor]) -> Losses:
        found = (task_loss(model, *batch, columns), None) if loss is None else loss(*batch, columns)
        if not isinstance(found, tuple) or len(found) != 2:
            raise OptionError(
                f"train_epoch: the method's loss is a {type(found).__name__}; expected two, that of the task and what "
                "is added to it, or None."
            )
        return found

    generator = torch.Generator().manual_seed(seed)
    batches = examples.batches(batch_size, generator=generator)  # which draws their order now
    if augment is not None:
        batches = ((augment(inputs, generator), targets) for inputs, targets in batches)
    losses = descend(
        optimizer,
        islice(batches, num_steps or len(examples)),
        losses_of,
        clip=clip,
        before_step=before_step,
        after_step=None if after_step is None else lambda batch: after_step(*batch, columns),
    )
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        rate = max(group["lr"] for group in optimizer.param_groups)
        raise divergence(mean, where="train_epoch", when=f"after {len(losses)} steps", lr=rate, steadier=steadier)
    return mean


def divergence(loss: float, *, where: str, when: str, lr: float, steadier: str = "") -> NotFiniteError:
    """The error that says that training has diverged, and what to do.

    Args:
        loss: the mean loss that is no finite number.
        where: for the message.
        when: likewise, such as "after 7 steps".
        lr: the learning rate at that time.
        steadier: what else helps, in words that follow "Lower the learning rate, which is 0.3".
    """
    return NotFiniteError(
        f"{where}: the training loss is {loss} {when}: training has diverged. Lower the learning rate, which is "
        f"{lr:g}{steadier}."
    )


@torch.no_grad()
def accuracy(model: nn.Module, examples: Examples, *, classes: Sequence[int] | None = None) -> float:
    """Share of the examples whose most probable class among `classes` is the target, 0..1.

    Of a regression the share of the targets' variance that is explained, and 0 where the mean would do better.
    """
    if len(examples) == 0:
        raise EmptyDataError("accuracy: there are no examples to measure on. Check the stream's split.")
    training = model.training
    model.eval()
    if examples.targets.is_floating_point():
        missed = torch.stack([(model(x) - y).square().sum() for x, y in examples.batches(2000)]).sum()
        model.train(training)
        return max(0.0, 1 - float(missed / (examples.targets - examples.targets.mean(0)).square().sum()))
    right = [(predict(model(x), classes) == y).sum() for x, y in examples.batches(2000)]
    model.train(training)
    return float(torch.stack(right).sum()) / len(examples)


def num_epochs(num_examples: int, batch_size: int, *, epochs: int, iterations: int | None) -> int:
    """How many epochs a task takes, the last perhaps cut short, under a number of epochs or of optimizer steps."""
    return epochs if iterations is None else math.ceil(iterations / math.ceil(num_examples / batch_size))
