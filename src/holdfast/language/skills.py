"""How well a language model does: perplexity, accuracy, or the rank correlation of similarities."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from holdfast.errors import EmptyDataError
from holdfast.language.batches import LanguageBatch
from holdfast.language.models import LanguageModel, LanguageTask
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


def evaluate(model: LanguageModel, data: Iterable[LanguageBatch]) -> MeasuredSkill:
    """Measure the skill; the model is in evaluation mode meanwhile.

    Raises:
        EmptyDataError: there is no example.
    """
    likelihood, device = likelihood_of(model.task), next(model.module.parameters()).device
    total, num_examples, num_targets, num_right = 0.0, 0, 0, 0
    losses, answers, targets = [], [], []
    with evaluating(model.module) as module:
        for batch in data:
            inputs, wanted = batch_to(batch, device)
            num_targets += targets_in(likelihood, batch)
            outputs = module(**inputs)
            losses.append(likelihood.nll(outputs, (inputs, wanted)).double().cpu())
            total += float(losses[-1].sum())
            num_examples += len(wanted)
            logits = logits_of(outputs)
            if model.task == "classification":
                num_right += int((logits.argmax(dim=-1) == wanted).sum())
            elif model.task == "similarity":
                answers.append(logits.float().cpu())
                targets.append(wanted.cpu())
    if num_examples == 0:
        raise EmptyDataError("evaluate: the data held no example.")
    loss = total / num_targets
    if model.task == "causal-lm":
        value = math.exp(min(loss, 700.0))
    elif model.task == "classification":
        value = num_right / num_examples
    else:
        value = spearman(torch.cat(answers), torch.cat(targets))
    return MeasuredSkill(MEASURES[model.task], value, loss, num_examples, num_targets, torch.cat(losses))
