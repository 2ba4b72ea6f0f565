"""Taking probes: examples of the old task with the network's answers, on which a rise of its loss is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.choices import check_count
from holdfast.errors import EmptyDataError, OptionError
from holdfast.importance.loss import MeasuredLoss
from holdfast.likelihoods.batches import batch_copied, batch_size, batch_to, model_inputs, slice_batch
from holdfast.likelihoods.forms import check_is_many, check_taken
from holdfast.likelihoods.likelihood import (
    AtTargets,
    Comparable,
    Gaussian,
    Likelihood,
    num_targets,
    resolve_likelihood,
)
from holdfast.likelihoods.outputs import logits_of
from holdfast.moments.company import Company
from holdfast.probes import Probes
from holdfast.probes.evaluating import evaluating
from holdfast.probes.probes import Probe

FEWEST, MANY_TARGETS, MOST = 128, 4096, 512
"""Examples that a rise is measured on by default: as many as hold so many targets, within these bounds. Few examples
carry most of a rise: on 128 images it was once read as a third of what it was on all."""


def probes_of(
    model: nn.Module,
    data: Iterable[Any],
    *,
    loss: str | Likelihood | Callable[[Any, Any], Tensor] | None = None,
    num_examples: int | Literal["auto"] | None = "auto",
) -> Probes:
    """Take probes of a model as it is now: examples and what it answers.

    A keeper measures on them how much of the skill is lost, and steers by it: `keeper.retain(importance,
    probes=probes)`, or `hf.measure(model, data, probes=held_out)`, which calls this.

    Args:
        model: left as it was.
        data: batches as the estimators take them, best of examples that the network was not trained on: on those that
            it was, answers are surer and move less, so that the rise looks smaller than it is.
        loss: as for `fisher`: "categorical" (default), "gaussian", "bernoulli", a likelihood, a function of (outputs,
            batch) that gives a loss for each example; "similarity" is for sentence encoders. By the name "gaussian"
            the variance is that of the residuals on these examples.
        num_examples: the first so many; None for all. "auto": 512, or fewer where these have many targets, such as the
            tokens of texts: then batches that hold 128 examples and 4,096 targets.

    Raises:
        BatchError: outputs and targets do not fit the loss, or the data are one batch in place of many.
        EmptyDataError: there is no example.
        NotFiniteError: an answer is NaN.
        OptionError: `num_examples` is less than 1, or "gaussian" finds no residual at all.

    Of a sharded model all processes come here, each with its share of the data; each keeps so many examples of its own,
    the variance of "gaussian" is that of all, and every later measurement is the mean of theirs.

    Cost: two forward passes over the probes, three for the name "gaussian". Copies of inputs and
    answers stay in memory.
    """
    where = "probes_of"
    is_auto = num_examples == "auto"
    limit = MOST if num_examples == "auto" else num_examples
    check_count("num_examples", limit, where=where, none="all")
    check_is_many(data, where)
    company = Company(model)
    with company.failing_together():
        batches = list(first_examples(data, limit))
        if not batches:
            raise EmptyDataError(f"{where}: the data held no example. Pass an iterable of non-empty batches.")
        check_taken(model, batches[0], where=where)
    comparable = _comparable(loss, model, batches, where=where, company=company)
    enough = _enough(batches, comparable) if is_auto else batches
    if company.is_alone:
        return Probes.taken(model, enough, comparable)
    return _taken_together(model, list(enough), comparable, company)


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


def _enough(batches: Iterable[Any], loss: Comparable) -> Iterator[Any]:
    """The first batches, until they hold as many examples and targets as a rise wants."""
    examples = targets = 0
    for batch in batches:
        if examples >= FEWEST and targets >= MANY_TARGETS:
            return
        yield batch
        examples, targets = examples + batch_size(batch), targets + num_targets(loss, batch)


def _taken_together(model: nn.Module, batches: list[Any], loss: Comparable, company: Company) -> Probes:
    """Probes of equally many batches in each process, of which those that only keep company do not count."""
    own: list[Probe] = []
    for batch, counts in company.in_step(batches):
        with company.failing_together():
            if counts and num_targets(loss, batch):
                own.extend(Probes.taken(model, [batch], loss).batches)
            else:
                list(_outputs(model, [batch]))
        company.rest()
    with company.failing_together():
        if not own:
            Probes.taken(model, [], loss)  # which says that there is no target
    more = company.most(len(own)) - len(own)
    return Probes(loss, (*own, *[replace(own[-1], num_targets=0)] * more))


def _comparable(loss: Any, model: nn.Module, batches: list[Any], *, where: str, company: Company) -> Comparable:
    likelihood = resolve_likelihood(loss, where=where)
    measured = MeasuredLoss(likelihood, model, where=where)
    for batch, outputs in _outputs(model, (batch for batch, _ in company.in_step(batches))):
        measured.decide(batch)
        likelihood = measured.decided(batch, outputs)
    company.rest()
    if loss == "gaussian":
        return Gaussian(variance=_residual_variance(model, batches, where=where, company=company))
    if hasattr(likelihood, "divergence"):
        return likelihood  # pyright: ignore[reportReturnType]
    return AtTargets(likelihood)


def _residual_variance(model: nn.Module, batches: list[Any], *, where: str, company: Company) -> float:
    counted = list(company.in_step(batches))
    asked = list(zip(_outputs(model, (batch for batch, _ in counted)), (counts for _, counts in counted)))
    company.rest()
    pairs = [pair for pair, counts in asked if counts]
    halves = sum(float(Gaussian().nll(outputs, batch).sum(dtype=torch.float64)) for batch, outputs in pairs)
    numbers = sum(logits_of(outputs).numel() for _, outputs in pairs)
    halves, numbers = (sum(of_all) for of_all in zip(*company.each([halves, numbers])))
    found = 2 * halves / numbers
    if not found > 0:
        raise OptionError(
            f"{where}: the residuals of these examples have a variance of {found}, so that no error is worth a nat. "
            "Pass loss=Gaussian(variance=...), in squared units of the targets."
        )
    return found


def _outputs(model: nn.Module, batches: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    with evaluating(model) as bare:
        for content in batches:
            batch = batch_to(content, next(bare.parameters()).device)
            args, kwargs = model_inputs(batch)
            yield batch, bare(*args, **kwargs)
