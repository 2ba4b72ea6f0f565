"""Calibrating an importance of any model: old inputs in another arrangement are learned under the hold."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from holdfast.calibration.factor import AnImportance, Factor, Lesson, lessons_factor
from holdfast.calibration.made_up import made_up
from holdfast.errors import EmptyDataError, OptionError
from holdfast.importance import probes_of
from holdfast.importance.probing import first_examples
from holdfast.likelihoods.batches import batch_size, batch_to, model_inputs, slice_batch
from holdfast.likelihoods.forms import check_is_many
from holdfast.likelihoods.likelihood import Categorical, Likelihood, num_targets, resolve_likelihood
from holdfast.likelihoods.similarity import Similarity
from holdfast.probes import Probes
from holdfast.replicas import Meeting
from holdfast.retention import EWC
from holdfast.retention.elastic import BUDGET
from holdfast.steps.descent import descend
from holdfast.tensors import trainable_parameters, unwrap

STEPS = 200
"""Of a lesson. Longer ones find larger factors: of an MLP on digits 9 after 50 steps and 19 after 200."""

NUM_EXAMPLES = 2048
"""Of the data: what is repeated often is learned by heart, and the factor grows."""


def calibrated(
    model: nn.Module,
    importance: AnImportance,
    data: Iterable[Any],
    *,
    probes: Iterable[Any] | Probes | None = None,
    loss: str | Likelihood | Similarity | Callable[[Any, Any], torch.Tensor] | None = None,
    budget: float = BUDGET,
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    lesson: Lesson | None = None,
    steps: int = STEPS,
    lessons: int = 3,
    rounds: int = 4,
    num_examples: int | None = NUM_EXAMPLES,
    seed: int = 0,
) -> AnImportance:
    """The importance in nats that hold where training goes: what a budget without probes needs.

    Made-up tasks are learned under `EWC(model, budget=budget)` with this importance: the old inputs in another
    arrangement, for the same answers (`holdfast.calibration.made_up`). The rise of the old loss, as divergence from the
    old answers (`Probes`), over 1/2 d^T K d is the factor; the largest of all lessons counts, and it is found again
    under itself until no rise is above 1.5 budgets. Of an importance whose unit is unknown (MAS, signal, SI) it begins
    with that of lessons that nothing holds.

    Args:
        model: at the end of the old task; given back bit for bit, also after an error.
        importance: of this model as it is, a diagonal or Kronecker factors.
        data: batches of the old task, in an order and of a size to train on.
        probes: batches of it that the model was not trained on, or their `Probes`, on which the rise is measured. None:
            those that the importance brings along. Else every second batch of the data, and the others are learned
            from: on examples that the network was trained on the rise is smaller, of an MLP on digits half.
        loss: as for `probes_of`.
        budget: nats per target, as the keeper's later: the factor is that of rises of this size.
        optimizer: makes the optimizer of a list of parameters, as the new task's will be; None for Adam at 1e-3.
        lesson: a made-up task of your own, in place of all: a function of (keeper, number) that attaches the keeper to
            an optimizer and trains the model for a while; it may put another head or loss on it.
        steps: optimizer steps of a lesson.
        lessons: made-up tasks, each from another seed.
        rounds: at most so often each is learned.
        num_examples: of the data, the first so many; None for all.
        seed: of the first task.

    Returns:
        The same values. `info.nats_per_unit` is the factor, `info.calibration` "made-up lessons",
        `info.calibrated_at` the budget, and `info.scatter` the factor within which each lesson's rise was as foreseen.
        As it was, with a warning, where no lesson raised the old loss; with a warning, too, where a lesson of the last
        round raised it by more than 1.5 budgets. Of a model wrapped in `DistributedDataParallel` every process learns
        lessons of its share of the data by itself, and `nats_per_unit` is the mean of what they find, `scatter` the
        largest.

    Raises:
        OptionError: a count or a budget out of its range; options of a lesson beside a lesson of your own; a loss that
            nothing can be learned by; too few examples.
        and what `probes_of` and `EWC.retain` raise.

    Cost: `rounds` times `lessons` lessons, mostly two rounds, of `steps` held steps each, and one round more where the
        unit is unknown; copies of the weights, of the examples and of the importance.
    """
    where = "calibrated"
    _check_counts(where, steps=steps, lessons=lessons, rounds=rounds)
    if lesson is not None and optimizer is not None:
        raise OptionError(f"{where}: optimizer= has no part in a lesson of your own. Leave one of them out.")
    check_is_many(data, where)
    learned = list(first_examples(data, num_examples))
    if not learned:
        raise EmptyDataError(f"{where}: the data held no example. Pass an iterable of non-empty batches.")
    probes = importance.probes if probes is None else probes
    if probes is None:
        learned, probes = _halves(learned, where=where)
    if not isinstance(probes, Probes):
        probes = probes_of(model, probes, loss=loss, num_examples=num_examples)
    taken = probes
    if lesson is None:
        likelihood = _likelihood(loss, probes, where=where)
        lesson = _Lesson(learned, likelihood, optimizer or _adam, steps, seed)
    meeting = Meeting(model, where=where)
    own = model if meeting.is_alone else unwrap(model)  # what replicas learn here each learns by itself
    measured = partial(lessons_factor, own, importance, lesson=lesson, budget=budget, lessons=lessons, rounds=rounds)
    found = meeting.together(lambda: measured(rise=lambda: taken.rise(own)))
    found = found if meeting.is_alone else _of_all(found, meeting)
    if found.nats_per_unit is None:
        warnings.warn(
            f"{where}: no lesson raised the old loss, so that the importance stays as it was. Give more steps, an "
            "optimizer with a larger learning rate, or a lesson of your own.",
            stacklevel=2,
        )
    elif found.why_not_settled:
        warnings.warn(
            f"{where}: {found.why_not_settled}. Give more rounds (now {rounds}), a larger budget, shorter lessons "
            "(steps=), or probes to the keeper, on which the rise is measured.",
            stacklevel=2,
        )
    return found.applied_to(importance)


def _of_all(found: Factor, meeting: Meeting) -> Factor:
    """The mean of the factors that replicas found, each on its share of the data, with the largest scatter and rise."""
    count, nats = meeting.total([float(found.nats_per_unit is not None), found.nats_per_unit or 0.0])
    scatter, largest, rounds = (meeting.largest(value) for value in (found.scatter, found.largest, found.rounds))
    mean = nats / count if count else None
    return replace(found, nats_per_unit=mean, scatter=scatter, largest=largest, rounds=int(rounds))


class _Lesson:
    """Learns the old inputs in another arrangement."""

    def __init__(
        self,
        batches: Sequence[Any],
        likelihood: Likelihood,
        optimizer: Callable[[list[nn.Parameter]], Optimizer],
        steps: int,
        seed: int,
    ) -> None:
        self._batches, self._likelihood, self._optimizer = batches, likelihood, optimizer
        self._steps, self._seed = steps, seed

    def __call__(self, keeper: EWC, number: int) -> None:
        seed = self._seed + number
        torch.manual_seed(seed)
        model, parameters = unwrap(keeper.model), list(trainable_parameters(keeper.model).values())
        optimizer = self._optimizer(parameters)
        keeper.attach(optimizer)
        model.train()

        def loss(content: Any) -> tuple[Tensor, None]:
            batch = batch_to(content, parameters[0].device)
            args, kwargs = model_inputs(batch)
            losses = self._likelihood.nll(model(*args, **kwargs), batch)
            return losses.sum() / max(1, num_targets(self._likelihood, batch)), None

        descend(optimizer, islice(cycle(made_up(self._batches, seed=seed)), self._steps), loss)


def _adam(parameters: list[nn.Parameter]) -> Optimizer:
    return Adam(parameters, lr=1e-3)


def _likelihood(loss: Any, probes: Probes, *, where: str) -> Likelihood:
    """What lessons are learned by: with the shift and the axis that the probes have shown."""
    if isinstance(probes.loss, Similarity):
        raise OptionError(
            f'{where}: loss="similarity" says how far embeddings have moved, and nothing can be learned by it. Pass '
            "lesson=, a function of (keeper, number) that trains the model on a made-up task."
        )
    return probes.loss if isinstance(probes.loss, Categorical) else resolve_likelihood(loss, where=where)


def _halves(batches: list[Any], *, where: str) -> tuple[list[Any], list[Any]]:
    """Batches to learn from and batches to look at, in turn; of a single one its halves."""
    if len(batches) == 1:
        size = batch_size(batches[0])
        batches = [slice_batch(batches[0], *part, lists=True) for part in ((0, size // 2), (size // 2, size))]
    if len(batches) < 2 or not batch_size(batches[0]):
        raise OptionError(f"{where}: the data held fewer than two examples; one half is learned from. Give more.")
    return batches[::2], batches[1::2]


def _check_counts(where: str, **counts: int) -> None:
    for name, value in counts.items():
        if not (isinstance(value, int) and value >= 1):
            raise OptionError(f"{where}: {name} is {value!r}; expected a whole number >= 1.")
