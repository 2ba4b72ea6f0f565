"""First-order Taylor importance: how much the loss would change if a weight were removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from holdfast.importance.fisher import per_example_nll
from holdfast.importance.loss import MeasuredLoss
from holdfast.importance.measure import Batch, DataPass
from holdfast.importance.summing import add_all
from holdfast.likelihoods.likelihood import Likelihood, resolve_likelihood
from holdfast.moments.per_example import CHUNK_BYTES
from holdfast.moments.state import measuring
from holdfast.moments.sums import MomentSums
from holdfast.records import Importance
from holdfast.tensors import trainable_parameters


def taylor(
    model: nn.Module,
    data: Iterable[Any],
    *,
    loss: str | Likelihood | Callable[[Any, Any], Tensor] | None = None,
    num_examples: int | None = None,
    progress: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Importance:
    """Mean absolute first-order effect of setting a weight to zero.

    Omega_i = E_(x,y) |theta_i d L(x, y) / d theta_i|, L the negative log-likelihood at the data's label; E the sum over
    examples, over the number of targets (see `fisher`).

    Args:
        model: any module; left exactly as it was. Of several processes as for `fisher`.
        data: an iterable of batches, `(inputs, targets)` or a mapping; each read once.
        loss: "categorical" (default), "gaussian", "bernoulli", a `Likelihood`, or a function of (outputs, batch) that
            returns one negative log-likelihood per example, shape [B], in nats.
        num_examples: measure on the first so many examples; None for all.
        progress: show a progress bar.
        chunk_bytes: memory for per-example gradients, where these are needed.

    Returns:
        Name -> float32 of the parameter's shape, >= 0, in nats per target; zero for a weight that is zero. Independent
        of the batching.

    Raises:
        LossShapeError, CoupledExamplesError, EmptyDataError, BatchError, NotFiniteError, OptionError: as for `fisher`.

    Cost: one forward and one per-example backward pass.

    Source: Molchanov et al. 2017 (arXiv 1611.06440). Departure: for each weight, where they take feature maps and pool
    over positions, and not normalised by layer.
    """
    measured = MeasuredLoss(resolve_likelihood(loss, where="taylor"), model, where="taylor")
    data_pass = DataPass(
        model,
        data,
        where="taylor",
        num_examples=num_examples,
        progress=progress,
        loss=measured,
        check=False,
    )

    def scores(outputs: Any, batch: Batch) -> Tensor:
        return per_example_nll(measured, outputs, batch).unsqueeze(0)

    with measuring(model), data_pass.meeting:
        sums = MomentSums(model, phi="abs", where="taylor", chunk_bytes=chunk_bytes)
        add_all(sums, data_pass, scores, join=measured.is_own)
        weights = trainable_parameters(model)
        values = {
            name: total.mul_(weights[name].detach().abs()).div_(data_pass.num_targets)
            for name, total in sums.totals.items()
        }
        return data_pass.importance(values, kind="taylor", loss=measured.name, unit="nats")
