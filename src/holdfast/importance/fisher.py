"""The diagonal Fisher information: how sharply the likelihood of the old data bends along each weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from holdfast.choices import check_choice, check_count
from holdfast.errors import NotFiniteError, OptionError
from holdfast.importance.loss import MeasuredLoss
from holdfast.importance.measure import Batch, DataPass
from holdfast.importance.summing import add_all
from holdfast.likelihoods.draws import Draws
from holdfast.likelihoods.likelihood import Categorical, Likelihood, check_per_example, resolve_likelihood
from holdfast.moments.calls import tensors_in
from holdfast.moments.company import Company
from holdfast.moments.gradients import Scores, gradient, zeros
from holdfast.moments.per_example import CHUNK_BYTES
from holdfast.moments.state import measuring
from holdfast.moments.study import check_apart
from holdfast.moments.sums import MomentSums, Per
from holdfast.records import Importance
from holdfast.tensors import placed, trainable_parameters

FisherKind = Literal["exact", "sampled", "empirical", "batched"]


def fisher(
    model: nn.Module,
    data: Iterable[Any],
    *,
    kind: FisherKind = "exact",
    loss: str | Likelihood | Callable[[Any, Any], Tensor] | None = None,
    num_draws: int = 1,
    top_k: int | None = None,
    per: Per = "sequence",
    num_examples: int | None = None,
    seed: int = 0,
    progress: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Importance:
    """Diagonal Fisher information of a model on data.

    exact:     F_i = E_x sum_c p(c|x) (d log p(c|x) / d theta_i)^2
    sampled:   the same with labels c drawn from the model, `num_draws` for each x
    empirical: F_i = E_x (d log p(y|x) / d theta_i)^2, y the label in the data
    batched:   F_i = E_batches (d L / d theta_i)^2, L the mean loss over the targets of a batch

    E_x is the sum over the examples, over the number of targets (`info.num_targets`), so that F is the curvature of the
    mean loss over targets, which people train with: 1/N sum_x over N examples of one target each; of a sequence log p
    is the sum over its labels, and each of those counts. Labels of -100 do not. Under "gaussian", "bernoulli" and an
    own function an example is one target, its loss summed over outputs; an own `Likelihood` may count them, see
    `holdfast.likelihoods.CountsTargets`.

    All but `batched` square the gradient of each example before the mean, and do not depend on how the data are
    batched. `batched` is smaller by about the batch size B (by exactly B in expectation where gradients have zero
    mean), and is here only for comparison with programs that compute it. Of a sharded model a batch is what all
    processes have in a step, as in training.

    Args:
        model: any module. Left exactly as it was: mode, gradients, buffers, hooks, random state. Of one that several
            processes train, wrapped in `DistributedDataParallel` or under `fully_shard`, each calls this with its share
            of the data, and gets the importance on all of them.
        data: an iterable of batches, `(inputs, targets)` or a mapping; each read once.
        kind: see above.
        loss: "categorical" (default), "gaussian", "bernoulli", "similarity" (of embeddings, without targets), a
            `Likelihood`, or a function of (outputs, batch) that returns one negative log-likelihood per example, shape
            [B], in nats (for "empirical" and "batched" only). Such a function is called on parts of a batch too, to see
            that it gives an example alone what it gives it in company. Whether the targets of sequences are shifted, as
            those of causal language models are, is decided once (see `Categorical`) and stands in `info.details`.
        num_draws: labels drawn for each example, with `kind="sampled"`.
        top_k: with `kind="exact"` and a categorical loss of many classes: only so many, the most probable, are taken
            exactly, and one draw stands for the others. Unbiased, in top_k + 1 backward passes. On 1,197 digits of ten
            classes and a trained network 3 passes are off by 1.7%, 3 plain draws by 8%.
        per: "sequence", or "token" for a cheap approximation on models of sequences: in Linear layers, embeddings and
            norms over the last axis the gradient of every position is squared on its own, as if positions did not work
            together on an example's gradient. Other parameters are measured per sequence all the same. On a small GPT
            trained on periodic text it differs from the exact one by 28% (empirical) in norm.
        num_examples: measure on the first so many examples; None for all.
        seed: of the draws. What is drawn for an example is decided by the seed and the example's number in the data,
            whatever the batches; of several processes the i-th example of process r of w has number w i + r.
        progress: show a progress bar.
        chunk_bytes: memory for per-example gradients, where these are needed.

    Returns:
        Name -> float32 of the parameter's shape, >= 0, for all trainable parameters, in nats per target and weight
        squared: the mean loss over targets rises by 1/2 sum F d^2 nats. (`batched`: nats^2 per weight^2, of unknown
        size in nats.)

    Raises:
        LossShapeError: the loss returns a mean, or anything else than [B].
        CoupledExamplesError: the model mixes its examples, or a `loss` function does.
        EmptyDataError, BatchError: the data cannot be used, have no target, or labels contradict what the first
            batch said about the shift (see `Categorical`).
        NotFiniteError: a loss or a gradient is NaN or infinite.
        OptionError: a `loss` function with "exact" or "sampled"; num_draws < 1; top_k < 1, or with another loss.
        UnknownNameError: no such kind or loss.
        UnsupportedLayerError: a parameter is complex, or of another dtype that importances have no meaning for.

    Cost: one forward pass and, for C classes, exact: C - 1 backward passes (Linear layers without positions: one weight
    gradient for all of them); with top_k: top_k + 1; sampled: `num_draws`; empirical and batched: one. A parameter that
    is used in an unknown way costs a slower pass for itself.

    Source: Kirkpatrick et al. 2017 (arXiv 1612.00796); the four kinds: van de Ven 2025 (arXiv 2502.11756). Departures:
    exact is the default, where the former leave the kind open; the mean is over targets, and sums over the positions of
    a sequence are taken inside the likelihood.
    """
    where = "fisher"
    check_choice("kind of fisher", kind, get_args(FisherKind))
    likelihood = resolve_likelihood(loss, where=where)
    check_count("num_draws", num_draws, where=where)
    check_count("seed", seed, where=where, least=0)
    if num_draws > 1 and kind != "sampled":
        warnings.warn(
            f'{where}: num_draws={num_draws} has no effect with kind="{kind}"; it belongs to kind="sampled".',
            stacklevel=2,
        )
    check_choice("unit of fisher", per, get_args(Per))
    check_top_k(top_k, kind=kind, likelihood=likelihood, where=where)
    if per == "token" and kind == "batched":
        warnings.warn(f'{where}: per="token" has no effect with kind="batched".', stacklevel=2)
    measured = MeasuredLoss(likelihood, model, where=where)
    data_pass = DataPass(
        model,
        data,
        where=where,
        num_examples=num_examples,
        progress=progress,
        loss=measured,
        check=False,
    )
    details = {"num_draws": num_draws, "seed": seed} if kind == "sampled" else {}
    details |= {} if top_k is None else {"top_k": top_k, "seed": seed}
    details |= {} if per == "sequence" else {"per": per}
    with measuring(model), data_pass.meeting:
        if kind == "batched":
            values = _squared_batch_gradients(model, data_pass, measured, where=where)
        else:
            rows = FisherScores(measured, kind, num_draws, top_k, seed)
            sums = MomentSums(model, phi="square", where=where, chunk_bytes=chunk_bytes, per=per)
            add_all(sums, data_pass, rows, join=measured.is_own)
            values = {name: total.div_(data_pass.num_targets) for name, total in sums.totals.items()}
        return data_pass.importance(
            values,
            kind=f"fisher-{kind}",
            loss=measured.name,
            unit="nats^2/weight^2" if kind == "batched" else "nats/weight^2",
            nats_per_unit=None if kind == "batched" else 1.0,
            details=details,
        )


def check_top_k(top_k: int | None, *, kind: str, likelihood: Likelihood, where: str) -> None:
    """Raise `OptionError` unless so many labels can be taken exactly."""
    check_count("top_k", top_k, where=where, none="all labels")
    if top_k is not None and (kind != "exact" or not isinstance(likelihood, Categorical)):
        raise OptionError(
            f'{where}: top_k={top_k} with kind="{kind}" and loss="{likelihood.name}", which belongs to '
            'kind="exact" and loss="categorical". Leave it out.'
        )


class FisherScores:
    """Scores [K, B] whose squared gradients, summed over K, are one example's term of the Fisher."""

    def __init__(self, loss: MeasuredLoss, kind: FisherKind, num_draws: int, top_k: int | None, seed: int) -> None:
        self._loss, self._kind, self._seed = loss, kind, seed
        self._num_draws, self._top_k = num_draws, top_k

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """[K, B]: K scores for each example."""
        if self._kind == "exact" and self._top_k is None:
            return self._loss.exact_scores(outputs, batch.content)
        if self._kind == "empirical":
            return per_example_nll(self._loss, outputs, batch).unsqueeze(0)
        found = tensors_in(outputs)
        # no draw can be made from NaN, and on a GPU the attempt is fatal; a sum is quicker than a look at each
        if any(tensor.sum().isnan() and tensor.isnan().any() for tensor in found):
            raise NotFiniteError(
                "fisher: the model's outputs hold NaN, so no labels can be drawn from them. "
                "Look for NaN in the model's weights or the data, or an overflow under half precision."
            )
        draws = Draws(batch.numbers, self._seed)
        if self._top_k is not None:
            return self._loss.top_scores(outputs, batch.content, top_k=self._top_k, draws=draws)
        streams = [draws.other(k) for k in range(self._num_draws)]
        drawn = [self._loss.sampled(outputs, batch.content, draws=stream) for stream in streams]
        return torch.stack(drawn) / self._num_draws**0.5


def per_example_nll(likelihood: Likelihood, outputs: Any, batch: Batch) -> Tensor:
    """[B]: the negative log-likelihood at the data's targets, in nats, checked to be one per example."""
    return check_per_example(likelihood.nll(outputs, batch.content), batch.call.size, "loss")


def _squared_batch_gradients(
    model: nn.Module, data_pass: DataPass, loss: MeasuredLoss, *, where: str
) -> dict[str, Tensor]:
    parameters, company = trainable_parameters(model), Company(model)
    totals, num_batches = zeros(model), 0
    for batch, counts in company.in_step(data_pass):
        if num_batches == 0:
            check_apart(model, batch.call, where=where, company=company)
        count = max(1, company.total(loss.num_targets(batch.content) if counts else 0))
        found = gradient(model, batch.call, _mean_nll(loss, batch, count if counts else None))
        for name, value in found.items():
            totals[name] += value.square()
        num_batches += 1
    data_pass.join()
    num_batches = data_pass.add_up(totals, num_batches)
    return {name: placed(total / num_batches, parameters[name]) for name, total in totals.items()}


def _mean_nll(loss: MeasuredLoss, batch: Batch, count: int | None) -> Scores:
    """Outputs -> [B], whose sum is a batch's part of the mean over so many targets; none of it without a count."""

    def scores(outputs: Any) -> Tensor:
        found = per_example_nll(loss, outputs, batch)
        return found * 0 if count is None else found / count

    return scores
