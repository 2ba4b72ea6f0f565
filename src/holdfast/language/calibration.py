"""What a budget is really worth to a language model: a made-up task of its own kind is learned under it.

`holdfast.calibration` finds the factor; here are the tasks: a causal model's own text in another language, and for what
makes embeddings the question in which of 16 random directions one lies.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.calibration import Factor, lessons_factor
from holdfast.curvature.factored import AnyImportance
from holdfast.errors import OptionError
from holdfast.language.batches import Example, batches_by_length, collate
from holdfast.language.encoders import SentenceClassifier, SentenceEncoder, pooled
from holdfast.language.finetuning import FineTuneSettings, fine_tune
from holdfast.language.models import LanguageModel
from holdfast.language.processes import ALONE, Processes
from holdfast.language.skills import likelihood_of
from holdfast.language.ticks import OnProgress
from holdfast.likelihoods.batches import batch_to
from holdfast.probes import Probes
from holdfast.retention import EWC

NUM_EXAMPLES = {"similarity": 1024, "classification": 1024, "causal-lm": 256}
"""Enough for 60 steps that repeat little, by task: half are learned in their made-up form, on the other half the old
loss rises. What is repeated is learned by heart, and the factor grows: of the sentence encoder 8,800 on 256 pairs,
5,800 on 1024. A causal model's examples are blocks of many tokens."""

_NUM_CLASSES = 16
_BATCH = 16


def calibrate(
    model: LanguageModel,
    importance: AnyImportance,
    data: Sequence[Example],
    *,
    budget: float = 0.05,
    steps: int = 60,
    lr: float = 2e-4,
    rounds: int = 6,
    seed: int = 0,
    probes: Probes | None = None,
    on_progress: OnProgress | None = None,
    processes: Processes = ALONE,
) -> Factor:
    """Learn a made-up task under a budget, and compare the rise of the old loss with what was predicted.

    The made-up task of a causal model is its own text in another language, every token standing for another one; of a
    classifier or an encoder it is to tell in which of 16 random directions an embedding lies. The rise is the
    divergence from the old model's answers. The factor is the larger the smaller the step; so each round takes the
    budget over the factor found, until the rise is near the budget.

    Args:
        model: given back as it was, in evaluation mode, and so is the random state.
        importance: of `model.base`.
        data: at least 32 examples of the old skill; with probes 16.
        budget: nats a target; the factor is that of rises of this size.
        steps: optimizer steps a round.
        lr: of AdamW.
        rounds: at most so often, once more where the importance is in no nats; it ends when the rise is within a
            factor of 1.5 of the budget.
        seed: of the made-up task.
        probes: on which the old loss rises, of `model.module`; None: on half of `data`, and the other half is learned.
        on_progress: called after every step.
        processes: that learn together; each looks at all of the probes.

    Raises:
        OptionError: too few examples.

    Cost: `rounds` times `steps` steps on 16 examples, and a look at the probes; the memory of a held fine-tuning.
    """
    least = 2 * _BATCH if probes is None else _BATCH
    if len(data) < least:
        raise OptionError(
            f"calibration: {len(data)} examples of the old skill; expected at least {least}. Give more of them."
        )
    learned = data
    if probes is None:
        learned, looked_at = data[: len(data) // 2], data[len(data) // 2 :]
        likelihood: Any = likelihood_of(model.task)  # the library's own, which compare answers too
        probes = Probes.taken(model.module, batches_by_length(model, looked_at, _BATCH), likelihood)
    taken = probes
    begun, most = count(1), rounds + (importance.info.nats_per_unit is None)  # the first is then held by nothing

    def lesson(keeper: EWC, number: int) -> None:
        pupil, task = _made_up(model, learned, seed)
        told = f"calibration, round {next(begun)} of at most {most}"
        step = None if on_progress is None else partial(on_progress, told)
        settings = FineTuneSettings(steps=steps, lr=lr, batch_size=_BATCH, seed=seed)
        with TemporaryDirectory() as folder:
            fine_tune(pupil, task, settings, folder=Path(folder), keeper=keeper, on_step=step, processes=processes)

    def rise() -> float:
        return processes.of_first(lambda: ({}, taken.rise(model.module)))[1]

    with _draws_kept():
        return lessons_factor(model.base, importance, rise=rise, lesson=lesson, budget=budget, lessons=1, rounds=rounds)


@contextmanager
def _draws_kept() -> Iterator[None]:
    """Gives back the random states that the Trainer seeds, but for torch's, which `lessons_factor` gives back."""
    kept = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])


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
    pupil = replace(model, task="classification", module=module, labels=labels, new_head=True)
    embeddings = _embeddings(pupil, texts)
    directions = torch.randn(embeddings.shape[1], _NUM_CLASSES, generator=generator, dtype=torch.float32)
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
