"""A plain training loop for language models, with what may stand beside the new data: a keeper, or old data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from holdfast.errors import EmptyDataError, NotFiniteError
from holdfast.experiments.language.batches import Batch, Example, collate
from holdfast.experiments.language.models import LanguageModel
from holdfast.experiments.language.skills import likelihood_of
from holdfast.heads.batches import batch_to
from holdfast.heads.categorical import IGNORED
from holdfast.retention import EWC, WVA

_WINDOW = 16
"""So many batches are made of texts in the order of their length, against padding."""


@dataclass(frozen=True)
class Old:
    """Old data that are mixed in.

    Attributes:
        model: over the same base, for the old task.
        stream: endless.
        share: of the batches that are old ones, 0..1.
    """

    model: LanguageModel
    stream: Iterator[Batch]
    share: float


@dataclass(frozen=True)
class Pace:
    """How it is learned.

    Attributes:
        steps: optimizer steps on new data.
        lr: largest learning rate; warms up over a twentieth of the steps, and falls to zero linearly.
        head_lr: of a new head; None: as `lr`.
        batch_size: examples a step.
        precision: "bfloat16" for autocast, with weights and optimizer in full.
    """

    steps: int
    lr: float
    head_lr: float | None = None
    batch_size: int = 32
    precision: Literal["float32", "bfloat16"] = "float32"


def learn(
    model: LanguageModel,
    stream: Iterator[Batch],
    pace: Pace,
    *,
    keeper: EWC | WVA | None = None,
    old: Old | None = None,
    watch: Callable[[int, float], None] | None = None,
) -> None:
    """Train with AdamW without decay, gradients clipped to length 1.

    Args:
        model: changed in place; its dropout is on.
        stream: endless.
        pace: steps and rates.
        keeper: attached meanwhile.
        old: mixed in, one batch after every so many new ones.
        watch: told of every 50th step and its loss.

    Raises:
        NotFiniteError: the loss is not finite any more.
    """
    optimizer = AdamW(_groups(model, pace), weight_decay=0.0, fused=True)
    warm = max(1, pace.steps // 20)
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / warm, (pace.steps - step) / (pace.steps - warm + 1)))
    if keeper is not None:
        keeper.attach(optimizer)
    every = round(1 / old.share) if old is not None and old.share > 0 else 0
    try:
        model.module.train()
        for step in range(pace.steps):
            loss = _step(model, optimizer, next(stream), pace)
            if not math.isfinite(loss):
                raise NotFiniteError(
                    f"step {step}: the loss is {loss}: training has diverged. Lower the learning rate."
                )
            if old is not None and every and step % every == every // 2:
                _step(old.model, optimizer, next(old.stream), pace)
            schedule.step()
            if watch is not None and step % 50 == 0:
                watch(step, loss)
    finally:
        model.module.eval()
        if keeper is not None:
            keeper.detach()


def mean_loss(outputs: object, batch: Batch, model: LanguageModel) -> Tensor:
    """Mean over the targets, in nats: of a causal language model over tokens, else over examples."""
    targets = batch[1]
    count = int((targets[:, 1:] != IGNORED).sum()) if model.task == "causal-lm" else len(targets)
    return likelihood_of(model.task).nll(outputs, batch).sum() / count


def shuffled(model: LanguageModel, examples: Sequence[Example], *, size: int, seed: int) -> Iterator[Batch]:
    """Batches in a new order each epoch, without end; texts of like length stand together.

    Raises:
        EmptyDataError: there is no example.
    """
    if not examples:
        raise EmptyDataError("training: the data held no example.")
    size = min(size, len(examples))
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, len(order) - size + 1, size * _WINDOW):
            window = sorted(order[start : start + size * _WINDOW], key=lambda number: len(examples[number].tokens[0]))
            blocks = [window[at : at + size] for at in range(0, len(window) - size + 1, size)]
            for place in torch.randperm(len(blocks), generator=generator).tolist():
                yield collate(model, [examples[number] for number in blocks[place]])


def _groups(model: LanguageModel, pace: Pace) -> list[dict[str, object]]:
    base = {id(parameter) for parameter in model.base.parameters()}
    trained = [p for p in model.module.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if id(p) in base], "lr": pace.lr}]
    groups += [{"params": [p for p in trained if id(p) not in base], "lr": pace.head_lr or pace.lr}]
    return [group for group in groups if group["params"]]


def _step(model: LanguageModel, optimizer: AdamW, batch: Batch, pace: Pace) -> float:
    device = next(model.module.parameters()).device
    inputs, targets = batch_to(batch, device)
    model.module.train()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=pace.precision == "bfloat16"):
        loss = mean_loss(model.module(**inputs), (inputs, targets), model)
    loss.backward()
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(held, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())
