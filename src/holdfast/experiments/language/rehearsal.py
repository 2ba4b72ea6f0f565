"""What a budget is really worth: a made-up task is learned under it, and the model is looked at again.

1/2 sum Omega d^2 is the rise of the old loss along a random direction. Training goes along no random direction: what a
new task does to one example it does to many, the products of different weights' gradients do not cancel, and the old
loss rises by a factor more. The rehearsal measures that factor, before any new task is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.errors import OptionError
from holdfast.experiments.language.batches import Example, LanguageBatch, collate
from holdfast.experiments.language.encoders import SentenceClassifier, SentenceEncoder, pooled
from holdfast.experiments.language.learning import Pace, learn, shuffled
from holdfast.experiments.language.models import LanguageModel
from holdfast.experiments.language.skills import likelihood_of
from holdfast.experiments.language.ticks import OnProgress, counted
from holdfast.likelihoods.batches import batch_to
from holdfast.likelihoods.categorical import IGNORED
from holdfast.likelihoods.likelihood import logits_of, num_targets
from holdfast.records import Importance
from holdfast.retention import EWC
from holdfast.tensors import all_parameters, copies

NUM_EXAMPLES = {"similarity": 1024, "classification": 1024, "causal-lm": 256}
"""Enough for 60 steps that repeat little, by task: half are learned in their made-up form, on the other half the old
loss rises. What is repeated is learned by heart, and the factor grows: of the sentence encoder 8,800 on 256 pairs,
5,800 on 1024. A causal model's examples are blocks of many tokens."""

REHEARSED = "rehearsed"
"""Of an importance's details: whether its factor to nats is that of a rehearsal."""

_NUM_CLASSES = 16
_BATCH = 16
_NEAR = 1.5


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal found.

    Attributes:
        nats_per_unit: by which the predicted rise is multiplied.
        predicted: rise of the last round by 1/2 sum Omega d^2, without the factor.
        measured: the rise in nats a target.
    """

    nats_per_unit: float
    predicted: float
    measured: float

    def applied_to(self, importance: Importance) -> Importance:
        """The importance, with the factor that was found."""
        details = {**importance.info.details, REHEARSED: True}
        return importance.with_info(nats_per_unit=self.nats_per_unit, details=details)


def rehearse(
    model: LanguageModel,
    importance: Importance,
    data: Sequence[Example],
    *,
    budget: float = 0.05,
    steps: int = 60,
    lr: float = 2e-4,
    rounds: int = 6,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Rehearsed:
    """Learn a made-up task under a budget, and compare the rise of the old loss with what was predicted.

    The made-up task of a causal model is its own text in another language, every token standing for another one; of a
    classifier or an encoder it is to tell in which of 16 random directions an embedding lies. The rise is that of the
    loss at the old model's own answers, whose second-order form is the Fisher information. The factor is the larger
    the smaller the step; so each round takes the budget over the factor found, until the rise is near the budget.

    Args:
        model: given back as it was, in evaluation mode, and so is the random state.
        importance: of `model.base`.
        data: at least 32 examples of the old skill.
        budget: nats a target; the factor is that of rises of this size.
        steps: optimizer steps a round.
        lr: of AdamW.
        rounds: at most so often; it ends when the rise is within a factor of 1.5 of the budget.
        seed: of the made-up task.
        on_progress: called after every step.

    Raises:
        OptionError: too few examples.

    Cost: `rounds` times `steps` steps on 16 examples, and a look at half of `data`; the memory of a held fine-tuning.
    """
    if len(data) < 2 * _BATCH:
        raise OptionError(
            f"rehearsal: {len(data)} examples of the old skill; expected at least {2 * _BATCH}. Give more of them."
        )
    learned, looked_at = data[: len(data) // 2], data[len(data) // 2 :]
    before = copies(all_parameters(model.base))
    generator = torch.Generator().manual_seed(seed)
    answers = [_answered(model, batch, generator) for batch in _batches(model, looked_at)]
    start = _loss(model, answers)
    factor, predicted, rise = 1.0, 0.0, 0.0
    device = next(model.base.parameters()).device
    with ExitStack() as stack:
        stack.callback(_give_back, model, before)
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        for number in range(1, rounds + 1):
            _give_back(model, before)
            pupil, task = _made_up(model, learned, seed)
            unit = importance.with_info(nats_per_unit=1.0)
            keeper = EWC(model.base, budget=budget / factor, log_every=0).retain(unit)
            stream = shuffled(pupil, task, size=_BATCH, seed=seed)
            told = f"rehearsal, round {number} of at most {rounds}"
            stream = counted(stream, on_progress, told, total=steps)
            learn(pupil, stream, Pace(steps, lr, 10 * lr), keeper=keeper)
            predicted, rise = keeper.predicted_rise(), _loss(model, answers) - start
            if rise > 0 and predicted > 0:
                factor = rise / predicted
            if rise <= _NEAR * budget:
                break
    return Rehearsed(factor, predicted, rise)


def _batches(model: LanguageModel, found: Sequence[Example]) -> list[LanguageBatch]:
    ordered = sorted(found, key=lambda example: max(map(len, example.tokens)))
    device = next(model.module.parameters()).device
    return [batch_to(collate(model, ordered[at : at + _BATCH]), device) for at in range(0, len(ordered), _BATCH)]


@torch.no_grad()
def _answered(model: LanguageModel, batch: LanguageBatch, generator: torch.Generator) -> LanguageBatch:
    """The batch with the model's own answers for targets: the mean of a Gaussian, probabilities, or drawn tokens."""
    model.module.eval()
    inputs, targets = batch
    outputs = logits_of(model.module(**inputs)).float()
    if model.task == "similarity":
        return inputs, outputs
    if model.task == "classification":
        return inputs, outputs.softmax(dim=-1)
    flat = outputs.softmax(dim=-1).flatten(0, -2).cpu()
    drawn = torch.multinomial(flat, 1, generator=generator).view(outputs.shape[:-1]).to(targets.device)
    shifted = torch.cat([targets[:, :1], drawn[:, :-1]], dim=1)  # position t predicts the label at t + 1
    return inputs, shifted.masked_fill(targets == IGNORED, IGNORED)


@torch.no_grad()
def _loss(model: LanguageModel, answers: Sequence[LanguageBatch]) -> float:
    model.module.eval()
    likelihood, total, count = likelihood_of(model.task), 0.0, 0
    for inputs, wanted in answers:
        outputs = model.module(**inputs)
        if model.task == "classification":
            losses = F.cross_entropy(logits_of(outputs).float(), wanted, reduction="none")
            count += len(wanted)
        else:
            losses = likelihood.nll(outputs, (inputs, wanted))
            count += num_targets(likelihood, (inputs, wanted))
        total += float(losses.double().sum())
    return total / count


def _made_up(model: LanguageModel, found: Sequence[Example], seed: int) -> tuple[LanguageModel, list[Example]]:
    """A model over the same base, and the made-up task for it."""
    generator = torch.Generator().manual_seed(seed)
    if model.task == "causal-lm":
        new = torch.randperm(model.base.get_input_embeddings().num_embeddings, generator=generator)  # type: ignore[operator]
        return model, [Example((new[torch.tensor(example.tokens[0])].tolist(),)) for example in found]
    if not isinstance(model.module, SentenceEncoder | SentenceClassifier):
        labels = torch.randint(len(model.labels), (len(found),), generator=generator).tolist()
        return model, [replace(example, target=label) for example, label in zip(found, labels)]
    texts = [Example((tokens,)) for example in found for tokens in example.tokens]
    torch.manual_seed(seed)
    labels = tuple(map(str, range(_NUM_CLASSES)))
    module = SentenceClassifier(model.base, labels).to(next(model.base.parameters()).device)
    pupil = replace(model, task="classification", module=module, labels=labels)
    embeddings = _embeddings(pupil, texts)
    directions = torch.randn(embeddings.shape[1], _NUM_CLASSES, generator=generator)
    classes = ((embeddings - embeddings.mean(dim=0)) @ directions).argmax(dim=1).tolist()
    return pupil, [replace(text, target=number) for text, number in zip(texts, classes)]


@torch.no_grad()
def _embeddings(pupil: LanguageModel, texts: Sequence[Example]) -> Tensor:
    found = []
    device = next(pupil.base.parameters()).device
    for at in range(0, len(texts), _BATCH):
        inputs, _ = batch_to(collate(pupil, texts[at : at + _BATCH]), device)
        found.append(pooled(pupil.base, inputs["input_ids"][:, 0], inputs["attention_mask"][:, 0]).float().cpu())
    return torch.cat(found)


@torch.no_grad()
def _give_back(model: LanguageModel, before: dict[str, Tensor]) -> None:
    model.module.eval()
    for name, parameter in all_parameters(model.base).items():
        parameter.copy_(before[name])
