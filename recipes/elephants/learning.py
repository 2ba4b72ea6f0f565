"""A plain training loop for language models, with what may stand beside the new data: a keeper, or a rehearsal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from holdfast.errors import EmptyDataError, FileFormatError, NotFiniteError
from holdfast.files import read_state, write_state
from holdfast.files.optimizers import load_optimizer_state, optimizer_state
from holdfast.language.batches import Example, LanguageBatch, collate
from holdfast.language.models import LanguageModel
from holdfast.language.skills import likelihood_of
from holdfast.likelihoods.batches import batch_to
from holdfast.likelihoods.likelihood import num_targets
from holdfast.replay import Rehearsal
from holdfast.retention import EWC, WVA
from holdfast.tensors import all_parameters, copies, prefixed, under

_WINDOW = 16
"""So many batches are made of texts in the order of their length, against padding."""

_SAVED_EVERY = 100
"""Steps from one checkpoint to the next."""


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
    stream: Iterator[LanguageBatch],
    pace: Pace,
    *,
    keeper: EWC | WVA | None = None,
    rehearsal: Rehearsal | None = None,
    judge: Callable[[], float] | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> int:
    """Train with AdamW without decay, gradients clipped to length 1.

    Args:
        model: changed in place; its dropout is on.
        stream: endless.
        pace: steps and rates.
        keeper: attached meanwhile.
        rehearsal: likewise; its gradients are not among those that are clipped.
        judge: the loss by which it is stopped early: asked ten times, and the weights with the least are put back at
            the end. None: the last ones stay.
        checkpoint: file that is written every 100 steps of plain training, from which the same call goes on, to the
            same bits on the CPU; removed at the end. None: none.
        on_step: called every 50 steps with (step, loss).

    Returns:
        The step at which the weights are.

    Raises:
        NotFiniteError: the loss is not finite any more.
        FileFormatError: the checkpoint is damaged.
    """
    optimizer = AdamW(_groups(model, pace), weight_decay=0.0, fused=True)
    warm = max(1, pace.steps // 20)
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / warm, (pace.steps - step) / (pace.steps - warm + 1)))
    best = None if judge is None else _Best(model, judge, every=max(1, pace.steps // 10))
    if keeper is not None:
        keeper.attach(optimizer)
    if rehearsal is not None:
        rehearsal.autocast = torch.bfloat16 if pace.precision == "bfloat16" else None
        rehearsal.attach(optimizer)
    begin = 0
    if checkpoint is not None and checkpoint.exists():
        begin = schedule.last_epoch = _load(checkpoint, model, optimizer, pace)
        for _ in range(begin):
            next(stream)
    try:
        model.module.train()
        for step in range(begin, pace.steps):
            loss = _step(model, optimizer, next(stream), pace)
            if not math.isfinite(loss):
                raise NotFiniteError(
                    f"step {step}: the loss is {loss}: training has diverged. Lower the learning rate."
                )
            schedule.step()
            if best is not None:
                best.after(step + 1)
            if checkpoint is not None and (step + 1) % _SAVED_EVERY == 0:
                _save(checkpoint, model, optimizer, pace, step + 1)
            if on_step is not None and step % 50 == 0:
                on_step(step, loss)
    finally:
        model.module.eval()
        for attached in (keeper, rehearsal):
            if attached is not None:
                attached.detach()
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return pace.steps if best is None else best.put_back()


class _Best:
    """The weights with the least loss so far."""

    def __init__(self, model: LanguageModel, judge: Callable[[], float], *, every: int) -> None:
        self._weights, self._judge, self._every = all_parameters(model.module), judge, every
        self._found: tuple[float, int, dict[str, Tensor]] = (math.inf, 0, {})

    def after(self, step: int) -> None:
        if step % self._every == 0:
            loss = self._judge()
            if loss < self._found[0]:
                self._found = (loss, step, copies(self._weights))

    @torch.no_grad()
    def put_back(self) -> int:
        """The step that the weights are of."""
        _, step, kept = self._found
        for name, value in kept.items():
            self._weights[name].copy_(value)
        return step


def mean_loss(outputs: object, batch: LanguageBatch, model: LanguageModel) -> Tensor:
    """Mean over the targets, in nats: of a causal language model over tokens, else over examples."""
    likelihood = likelihood_of(model.task)
    return likelihood.nll(outputs, batch).sum() / num_targets(likelihood, batch)


def shuffled(model: LanguageModel, examples: Sequence[Example], *, size: int, seed: int) -> Iterator[LanguageBatch]:
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


def _save(path: Path, model: LanguageModel, optimizer: AdamW, pace: Pace, done: int) -> None:
    of_optimizer, notes = optimizer_state(optimizer)
    tensors = prefixed("model", model.module.state_dict()) | prefixed("optimizer", of_optimizer)
    write_state(path, {**tensors, "random": torch.get_rng_state()}, {**notes, "pace": asdict(pace), "done": done})


def _load(path: Path, model: LanguageModel, optimizer: AdamW, pace: Pace) -> int:
    """Go on from a checkpoint; the number of steps done."""
    tensors, notes = read_state(path)
    try:
        if notes["pace"] != asdict(pace):
            raise ValueError(f"it is at another pace, {notes['pace']}")
        model.module.load_state_dict(under("model", tensors))
        load_optimizer_state(optimizer, under("optimizer", tensors), notes)
        torch.set_rng_state(tensors["random"])
        return int(notes["done"])
    except (KeyError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise FileFormatError(f"{path} does not fit this training ({why}). Delete it to start again.") from error


def _step(model: LanguageModel, optimizer: AdamW, batch: LanguageBatch, pace: Pace) -> float:
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
