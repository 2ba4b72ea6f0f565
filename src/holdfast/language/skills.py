"""How well a language model does: perplexity, accuracy, or the rank correlation of similarities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import EmptyDataError
from holdfast.language.batches import LanguageBatch
from holdfast.language.models import LanguageModel, LanguageTask
from holdfast.language.processes import ALONE, Processes
from holdfast.likelihoods.batches import batch_to
from holdfast.likelihoods.likelihood import Categorical, Gaussian, Likelihood, logits_of
from holdfast.likelihoods.likelihood import num_targets as targets_in
from holdfast.probes.evaluating import evaluating
from holdfast.tensors import spearman

SIMILARITY_VARIANCE = 0.04
"""Of a similarity in 0..1 around the cosine: people disagree by about 0.2, one point of the benchmark's five."""

MEASURES: dict[LanguageTask, str] = {"causal-lm": "perplexity", "classification": "accuracy", "similarity": "Spearman"}


@dataclass(frozen=True)
class MeasuredSkill:
    """What was found.

    Attributes:
        measure: "perplexity" (the smaller the better), "accuracy" (0..1) or "Spearman" (-1..1).
        value: of the measure.
        loss: mean negative log-likelihood of a target in nats: of a causal language model a token that is predicted,
            else an example.
        num_examples: on so many.
        num_targets: likewise.
        losses: of each example in nats, float64 in the order of the data; empty where they are not known.
    """

    measure: str
    value: float
    loss: float
    num_examples: int
    num_targets: int
    losses: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32), repr=False, compare=False)

    @property
    def figures(self) -> dict[str, str | float | int]:
        """All but the examples' own losses, as JSON values."""
        return {name: value for name, value in vars(self).items() if name != "losses"}

    @property
    def text(self) -> str:
        """The value for people."""
        return f"{self.value:.2f}" if self.measure == "perplexity" else f"{self.value:.4f}"


def likelihood_of(task: LanguageTask) -> Likelihood:
    """The likelihood whose nats are those of the task: of a similarity a Gaussian around the cosine."""
    if task == "similarity":
        return Gaussian(variance=SIMILARITY_VARIANCE)
    return Categorical(causal=task == "causal-lm", class_axis=-1)


def evaluate(model: LanguageModel, data: Iterable[LanguageBatch], *, processes: Processes = ALONE) -> MeasuredSkill:
    """Measure the skill; the model is in evaluation mode meanwhile.

    Args:
        model: to be measured.
        data: batches, the same in every process.
        processes: of which each measures every so many-th batch; all get what one process would find.

    Raises:
        EmptyDataError: there is no example.
        LostProcessError: another process is gone.
    """
    own: dict[int, _OfBatch] = {}
    with evaluating(model.module) as module:
        for number, batch in enumerate(data):
            if number % processes.count == processes.rank:
                own[number] = _of_batch(model, module, batch)
    found = _of_all(own, processes)
    if not found:
        raise EmptyDataError("evaluate: the data held no example.")
    num_examples, num_targets = (sum(getattr(each, name) for each in found) for name in ("num_examples", "num_targets"))
    total = 0.0
    for each in found:
        total += float(each.losses.sum())
    loss = total / num_targets
    if model.task == "causal-lm":
        value = math.exp(min(loss, 700.0))
    elif model.task == "classification":
        value = sum(each.num_right for each in found) / num_examples
    else:
        value = spearman(torch.cat([each.answers for each in found]), torch.cat([each.targets for each in found]))
    losses = torch.cat([each.losses for each in found])
    return MeasuredSkill(MEASURES[model.task], value, loss, num_examples, num_targets, losses)


@dataclass(frozen=True)
class _OfBatch:
    """What a batch shows: losses [B] float64, similarities and those that were wanted; the right of a classifier."""

    losses: Tensor
    answers: Tensor
    targets: Tensor
    num_examples: int
    num_targets: int
    num_right: int


_TENSORS = ("losses", "answers", "targets")
_NUMBERS = ("num_examples", "num_targets", "num_right")


def _of_batch(model: LanguageModel, module: Any, batch: LanguageBatch) -> _OfBatch:
    likelihood = likelihood_of(model.task)
    inputs, wanted = batch_to(batch, next(module.parameters()).device)
    outputs = module(**inputs)
    losses = likelihood.nll(outputs, (inputs, wanted)).double().cpu()
    logits, none = logits_of(outputs), torch.zeros(0, dtype=torch.float32)
    compares = model.task == "similarity"
    return _OfBatch(
        losses,
        logits.float().cpu() if compares else none,
        wanted.cpu() if compares else none,
        len(wanted),
        targets_in(likelihood, batch),
        int((logits.argmax(dim=-1) == wanted).sum()) if model.task == "classification" else 0,
    )


def _of_all(own: Mapping[int, _OfBatch], processes: Processes) -> list[_OfBatch]:
    """What the batches of all processes show, in the order of the batches."""
    if processes.count == 1:
        return list(own.values())
    tensors = {
        f"{n}/{name}": getattr(each, name) for n, each in own.items() for name in ("losses", "answers", "targets")
    }
    told = processes.told({str(n): [getattr(each, name) for name in _NUMBERS] for n, each in own.items()}, tensors)
    found: dict[int, _OfBatch] = {}
    for shown, notes in told:
        for n, numbers in notes.items():
            losses, answers, targets = (shown[f"{n}/{name}"] for name in _TENSORS)
            found[int(n)] = _OfBatch(losses, answers, targets, *numbers)
    return [found[n] for n in sorted(found)]
