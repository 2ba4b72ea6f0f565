"""Taking probes: examples of the old task with the network's answers, on which a rise of its loss is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import EmptyDataError, OptionError
from holdfast.importance.loss import MeasuredLoss
from holdfast.importance.measure import check_is_many
from holdfast.likelihoods.batches import batch_copied, batch_size, batch_to, model_inputs, slice_batch
from holdfast.likelihoods.likelihood import AtTargets, Comparable, Gaussian, Likelihood, resolve_likelihood
from holdfast.likelihoods.outputs import logits_of
from holdfast.probes import Probes, Similarity
from holdfast.probes.evaluating import evaluating

NUM_PROBES = 128
"""Examples that a rise is measured on: it is then known to about a third of itself."""


def probes_of(
    model: nn.Module,
    data: Iterable[Any],
    *,
    loss: str | Likelihood | Similarity | Callable[[Any, Any], Tensor] | None = None,
    num_examples: int | None = NUM_PROBES,
) -> Probes:
    """Take probes of a model as it is now: examples and what it answers.

    A keeper measures on them how much of the skill is lost, and steers by it: `keeper.retain(importance,
    probes=probes)`, or `hf.measure(model, data, probes=held_out)`, which calls this.

    Args:
        model: left as it was.
        data: batches as the estimators take them, best of examples that the network was not trained on: on those that
            it was, answers are surer and move less, so that the rise looks smaller than it is.
        loss: as for `fisher`: "categorical" (default), "gaussian", "bernoulli", a likelihood, a function of (outputs,
            batch) that gives a loss for each example; also "similarity", for sentence encoders. By the name "gaussian"
            the variance is that of the residuals on these examples.
        num_examples: the first so many; None for all.

    Raises:
        BatchError: outputs and targets do not fit the loss, or the data are one batch in place of many.
        EmptyDataError: there is no example.
        NotFiniteError: an answer is NaN.
        OptionError: `num_examples` is less than 1, or "gaussian" finds no residual at all.

    Cost: two forward passes over the probes, three for the name "gaussian", one for "similarity". Copies of inputs and
    answers stay in memory.
    """
    where = "probes_of"
    if num_examples is not None and num_examples < 1:
        raise OptionError(f"{where}: num_examples={num_examples}, expected a whole number >= 1, or None for all.")
    check_is_many(data, where)
    batches = list(first_examples(data, num_examples))
    if not batches:
        raise EmptyDataError(f"{where}: the data held no example. Pass an iterable of non-empty batches.")
    return Probes.taken(model, batches, _comparable(loss, model, batches, where=where))


def first_examples(data: Iterable[Any], limit: int | None) -> Iterator[Any]:
    """Copies of the batches up to so many examples, empty ones left out; all of them for None."""
    seen = 0
    for batch in data:
        size = batch_size(batch)
        if limit is not None and seen + size > limit:
            batch = slice_batch(batch, 0, limit - seen, lists=True)
            size = limit - seen
        if size:
            yield batch_copied(batch)  # the data may use their memory again
        seen += size
        if seen == limit:
            return


def _comparable(loss: Any, model: nn.Module, batches: list[Any], *, where: str) -> Comparable:
    if loss == "similarity":
        return Similarity()
    if isinstance(loss, Similarity):
        return loss
    likelihood = resolve_likelihood(loss, where=where)
    measured = MeasuredLoss(likelihood, model, where=where)
    for batch, outputs in _outputs(model, batches):
        measured.decide(batch)
        likelihood = measured.decided(batch, outputs)
    if loss == "gaussian":
        return Gaussian(variance=_residual_variance(model, batches, where=where))
    if hasattr(likelihood, "divergence"):
        return likelihood  # pyright: ignore[reportReturnType]
    return AtTargets(likelihood)


def _residual_variance(model: nn.Module, batches: list[Any], *, where: str) -> float:
    asked = list(_outputs(model, batches))
    halves = sum(float(Gaussian().nll(outputs, batch).sum(dtype=torch.float64)) for batch, outputs in asked)
    found = 2 * halves / sum(logits_of(outputs).numel() for _, outputs in asked)
    if not found > 0:
        raise OptionError(
            f"{where}: the residuals of these examples have a variance of {found}, so that no error is worth a nat. "
            "Pass loss=Gaussian(variance=...), in squared units of the targets."
        )
    return found


def _outputs(model: nn.Module, batches: list[Any]) -> Iterator[tuple[Any, Any]]:
    with evaluating(model) as bare:
        for content in batches:
            batch = batch_to(content, next(bare.parameters()).device)
            args, kwargs = model_inputs(batch)
            yield batch, bare(*args, **kwargs)
