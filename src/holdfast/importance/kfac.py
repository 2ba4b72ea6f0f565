"""The Kronecker-factored Fisher information: how sharply the likelihood bends along all weights of a layer together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch import Tensor, nn

from holdfast.choices import check_choice, check_count, check_share
from holdfast.curvature.factored import FactoredImportance
from holdfast.errors import OptionError
from holdfast.importance.alone import alone
from holdfast.importance.factor_means import factored_importance
from holdfast.importance.fisher import FisherScores, check_top_k
from holdfast.importance.gathering import gathered_batches, pieces
from holdfast.importance.loss import MeasuredLoss
from holdfast.importance.measure import Batch, DataPass
from holdfast.likelihoods.likelihood import Likelihood, resolve_likelihood
from holdfast.moments.company import Company
from holdfast.moments.factors import SharingRule
from holdfast.moments.kronecker import KroneckerSums
from holdfast.moments.per_example import CHUNK_BYTES
from holdfast.moments.state import measuring
from holdfast.moments.sums import MomentSums
from holdfast.tensors import trainable_parameters, unwrap

KfacKind = Literal["exact", "sampled", "empirical"]
FactorRule = Literal["auto", "matched", "expand", "reduce"]


def kfac(
    model: nn.Module,
    data: Iterable[Any],
    *,
    kind: KfacKind = "exact",
    factors: FactorRule = "auto",
    damping: float = 0.0,
    share_inputs: bool = False,
    max_size: int | None = None,
    block_size: int | None = None,
    loss: str | Likelihood | Callable[[Any, Any], Tensor] | None = None,
    num_draws: int = 1,
    top_k: int | None = None,
    num_examples: int | None = None,
    seed: int = 0,
    progress: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> FactoredImportance:
    """Kronecker-factored Fisher information of a model on data.

    Weight and bias of a layer are one matrix W [out, in + 1], its inputs a with an appended 1, and their block of the
    Fisher is approximated by A (x) G, from a and the gradients g_c = d log p(c|x) / d(W a) behind. Curvature between
    layers is left out. An example has T positions: 1 for a Linear layer on [B, in], the sequence's length on
    [B, T, in], and the output pixels of a convolution, where a_t is the patch under pixel t. `factors` says how they
    make A and G; sums over c are weighted by p(c|x):

        matched    A = E sum_c M_c^T M_c              G = E sum_c M_c M_c^T / tr A,  M_c = sum_t g_ct a_t^T
        expand     A = E sum_t a_t a_t^T              G = E sum_c 1/T sum_t g_ct g_ct^T
        reduce     A = E a a^T, a = 1/T sum_t a_t     G = E sum_c g_c g_c^T, g_c = sum_t g_ct

    The first E of each product A (x) G divides a sum over examples by their number N, the other by the number of
    targets (see `fisher`), so that the products are means over targets; of "matched" it is A's. One target an example,
    as with class labels, is the case above.

    M_c is the gradient of W for one example, so that "matched" has the partial traces of the Fisher's block, and its
    diagonal the sums that `fisher` has over each layer, each of its rows and each of its columns. It is exact
    wherever some Kronecker product is. "expand" (with KFC's place for 1/T) is exact in deep linear networks whose
    squared loss sums over positions, "reduce" in those that average their outputs over positions first; elsewhere
    either may be off by a factor, "reduce" by any, as for the keys of an attention, whose gradients sum to zero over
    positions. For T = 1 both are K-FAC. For one example without positions all three are the Fisher itself.

    Factored are layers that are exactly `nn.Linear`, transformers' `Conv1D` (that of GPT-2: a Linear with its weight
    transposed), or `nn.Conv1d/2d/3d` with groups=1, called once in a forward pass, with a weight of their own.
    Everything else (norms, embeddings, attention's in_proj, raw and tied parameters, layers called twice, grouped and
    transposed convolutions) has the diagonal that `fisher` gives. Each layer is checked on the first batch: where the
    sum of g a^T is not the gradient, as for a weight that a function uses besides its layer, it has the diagonal as
    well, and a warning names it.

    Args:
        model: any module. Left exactly as it was: mode, gradients, buffers, hooks, random state. Of one that is wrapped
            in `DistributedDataParallel` every process calls this with its share of the data, and gets the factors of
            all of them.
        data: an iterable of batches, `(inputs, targets)` or a mapping; each read once.
        kind: "exact" takes all labels c with their probability; "sampled" draws `num_draws` labels for each x from the
            model; "empirical" takes the label in the data.
        factors: "matched", "expand" or "reduce", for all layers; "auto" is "matched" for layers that have several
            positions to an example in the batch in which they are first met, and K-FAC ("expand") for the others.
        damping: e >= 0; each layer's factors become A + e tr(A)/n I and G + e tr(G)/out I. The data span few
            directions, and along all others A (x) G is zero, though the old loss does rise there. An elastic pull lets
            learning escape into them: with undamped factors the rise fell until a strength of 2e3 and was larger again
            beyond. 0.01 holds them too. Damping is part of the importance: several tasks' adds up as the rest does.
        share_inputs: whether layers that read the same input, such as the queries, keys and values of an attention, are
            to be held along one basis of it, which saves n^2 numbers a layer. Layers with the same A do so in any case.
            Those with "matched" ones have each its own, and their curvature along what they learned next was then off
            by a factor of 1.3 to 1.5 instead of 1.2 on small transformers.
        max_size: N, of a factor, which takes the square of its side in memory. A longer side, such as that of the
            output layer of a language model, is cut into the fewest equal blocks of neighbouring inputs or outputs,
            at most `block_size` each, and its factor is the block-diagonal of A or G: products of two inputs, or of
            gradients at two outputs, in different blocks are left out. The diagonal and the trace stay, and memory
            falls to n^2 over the number of blocks, as does the work of a pull. On small networks the curvature along
            what was learned next was off by a factor of 1.1 to 1.7 with whole factors, of 1.1 to 2.5 in blocks of 8,
            and of 1.9 to 6.6 in blocks of one, which is the diagonal of A (x) G (docs/strength.md). None: any.
        block_size: of the blocks of sides longer than `max_size`, which it may not exceed; 0: layers that have such
            sides get the diagonal. None: `max_size`.
        loss: "categorical" (default), "gaussian", "bernoulli", "similarity" (of embeddings, without targets), a
            `Likelihood`, or a function of (outputs, batch) that returns one negative log-likelihood per example, shape
            [B], in nats (for "empirical" only). See `fisher`.
        num_draws: labels drawn for each example, with `kind="sampled"`.
        top_k: with `kind="exact"` and a categorical loss: only so many labels, the most probable, are taken exactly,
            and one draw stands for the others (see `fisher`). Unbiased, in top_k + 1 backward passes.
        num_examples: measure on the first so many examples; None for all.
        seed: of the draws, as for `fisher`.
        progress: show a progress bar.
        chunk_bytes: memory for the patches of convolutions, and for per-example gradients where these are needed.

    A model under `fully_shard` is measured by all processes, each on its share of the data. Each layer's factors go to
    the process that owns it (`holdfast.curvature.owners`), and no process has all.

    Returns:
        Factors by the name of each layer's weight, and the diagonal of the rest, in nats per target and weight squared:
        the mean loss over targets rises by about 1/2 d^T F d nats. Its diagonal estimates that of `fisher`, and is it
        for one example without positions. `info.details` holds `factors`, for "auto" the weights that have "matched"
        ones, and `damping` where there is any.

    Raises:
        LossShapeError: the loss returns a mean, or anything else than [B].
        CoupledExamplesError: the model mixes its examples, or a `loss` function does.
        EmptyDataError, BatchError: the data cannot be used, have no target, or labels contradict what the first
            batch said about the shift (see `Categorical`).
        NotFiniteError: a loss or a gradient is NaN or infinite.
        UnsupportedLayerError: a layer is called once in the first batch, and more often in another.
        OptionError: a `loss` function with "exact" or "sampled"; num_draws < 1; top_k < 1, or with another loss;
            damping < 0 or not finite; block_size above max_size.
        UnknownNameError: no such kind, rule or loss.

    Cost: for C classes one forward and C backward passes without weight gradients (with top_k: top_k + 1; "sampled":
    `num_draws`; "empirical": one), and half of a product of n^2 for each input and of m^2 for each class and output of
    a layer of n inputs and m outputs. "reduce" takes 1/T of these products; "matched" up to about twice as many, and
    those for A for each class too: on a small GPT, ViT and ConvNet 0.7 to 1.2 times the time of "expand" with
    "sampled", 1.5 to 1.7 times with "exact" and ten classes. Both run a few examples together and alone, once, to see
    which positions are whose, and all examples one at a time where that cannot be seen. Models with other parameters
    are passed through once more, for these. Memory n^2 + m^2 a layer; beside it twice that of a training pass of the
    same batch at most, on the networks of `benchmarks/kfac_memory.py`. A batch whose patches would take more than its
    activations goes through in pieces, unless the loss is a function. Of a sharded model each process has the factors
    of its own layers, and `chunk_bytes` more and one factor that it has yet to give; n^2 + m^2 numbers a layer are
    reduced whenever these are full.

    Source: Martens & Grosse 2015 (arXiv 1503.05671); convolutions: Grosse & Martens 2016 (arXiv 1602.01407); "expand"
    and "reduce": Eschenhagen et al. 2023 (arXiv 2311.00636); the moments of "matched": Ren & Goldfarb 2021 (arXiv
    2106.02925), with the scale of Morwani et al. 2024 (arXiv 2406.17748), who show that it is one step of the power
    iteration toward the nearest Kronecker product; for continual learning: Ritter et al. 2018 (arXiv 1805.07810).
    Departures: labels are exact where these sample them, damping is none by default and else a share of each factor's
    mean eigenvalue, and all factors are means over the whole data instead of running means.
    """
    where = "kfac"
    check_choice("kind of kfac", kind, get_args(KfacKind))
    check_choice("rule for the factors of kfac", factors, get_args(FactorRule))
    likelihood = resolve_likelihood(loss, where=where)
    check_top_k(top_k, kind=kind, likelihood=likelihood, where=where)
    measured = MeasuredLoss(likelihood, model, where=where)
    check_count("num_draws", num_draws, where=where)
    check_count("max_size", max_size, where=where, none="any")
    check_count("seed", seed, where=where, least=0)
    check_count("block_size", block_size, where=where, least=0, none="max_size")
    if block_size is not None and block_size > (max_size or block_size):
        raise OptionError(
            f"{where}: block_size={block_size} is above max_size={max_size}, beyond which factors are made in blocks; "
            "expected at most that. Lower it, or leave it out."
        )
    if block_size is not None and max_size is None:
        warnings.warn(f"{where}: block_size={block_size} has no effect without max_size.", stacklevel=2)
    check_share("damping", damping, where=where, example=0.01)
    if num_draws > 1 and kind != "sampled":
        warnings.warn(
            f'{where}: num_draws={num_draws} has no effect with kind="{kind}"; it belongs to kind="sampled".',
            stacklevel=2,
        )
    data_pass = DataPass(
        model,
        data,
        where=where,
        num_examples=num_examples,
        progress=progress,
        loss=measured,
        check=Company(model).is_alone,
    )
    with measuring(model), data_pass.meeting:
        rule: SharingRule | None = None if factors == "auto" else factors
        sums = KroneckerSums(
            model, where=where, chunk_bytes=chunk_bytes, rule=rule, max_size=max_size, block_size=block_size
        )
        scores = [FisherScores(measured, kind, num_draws, top_k, seed) for _ in range(2)]
        rest = _added(sums, model, data_pass, measured, *scores, chunk_bytes=chunk_bytes)
        diagonal = data_pass.importance(
            {name: total / data_pass.num_targets for name, total in rest.totals.items()},
            kind=f"kfac-{kind}",
            loss=measured.name,
            unit="nats/weight^2",
            nats_per_unit=1.0,
            join=False,
            details={
                "factors": factors,
                **_matched(sums, factors),
                **({"damping": float(damping)} if damping else {}),
                **({"num_draws": num_draws, "seed": seed} if kind == "sampled" else {}),
                **({} if top_k is None else {"top_k": top_k, "seed": seed}),
            },
        )
        found = factored_importance(
            sums, diagonal, num_targets=data_pass.num_targets, share_inputs=share_inputs, damping=damping
        )
        return data_pass.joined(found)


def _added(
    sums: KroneckerSums,
    model: nn.Module,
    data_pass: DataPass,
    loss: MeasuredLoss,
    rows: FisherScores,
    again: FisherScores,
    *,
    chunk_bytes: int,
) -> MomentSums:
    """Add all of the data, and give the sums of what has no factors; nothing of the data is held behind it."""
    rest: MomentSums | None = None
    batches = gathered_batches(data_pass, lambda: sums.room if loss.is_own else 0)
    for batch, counts in _pieces(sums.company.in_step(batches), sums, loss):
        own = alone(rows, batch)
        sums.add(batch.call, lambda outputs, batch=batch: rows(outputs, batch), alone=own, counts=counts)
        with _frozen(model, [name for layer in sums.layers for name in layer.names(layer.weight)]):
            if rest is None:
                _warn_of(sums, model)
                rest = MomentSums(model, phi="square", where="kfac", chunk_bytes=chunk_bytes)
            if rest.totals:
                scores = lambda outputs, batch=batch: again(outputs, batch)  # noqa: E731
                rest.add(batch.call, scores, alone=alone(again, batch), counts=counts)
    assert rest is not None
    sums.finish()
    data_pass.join()
    return rest


def _pieces(
    batches: Iterable[tuple[Batch, bool]], sums: KroneckerSums, loss: MeasuredLoss
) -> Iterator[tuple[Batch, bool]]:
    """What goes through the model at once, and whether it counts; a function of the caller's sees whole batches."""
    for batch, counts in batches:
        found = list(pieces(batch, sums.at_once(batch.call) if loss.is_own else batch.call.size))
        for number in range(sums.company.most(len(found))):
            yield found[min(number, len(found) - 1)], counts and number < len(found)


def _matched(sums: KroneckerSums, factors: FactorRule) -> dict[str, str]:
    """Of "auto" the weights whose factors are matched, in the order of the model."""
    weights = [layer.weight for layer in sums.layers if sums.rules.get(layer.weight) == "matched"]
    return {"matched": ", ".join(weights)} if factors == "auto" and weights else {}


@contextmanager
def _frozen(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Inside, these parameters count as frozen."""
    parameters = trainable_parameters(model)
    chosen = [parameters[name] for name in names]
    for parameter in chosen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(True)


def _warn_of(sums: KroneckerSums, model: nn.Module) -> None:
    if sums.declined:
        named = "; ".join(f"{name!r}: {reason}" for name, reason in sums.declined.items())
        warnings.warn(
            f"kfac: in {type(unwrap(model)).__name__} these have the diagonal instead of factors: {named}.",
            stacklevel=4,
        )
