"""Memory aware synapses: how strongly the outputs react to each weight. No labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn

from holdfast.choices import check_choice
from holdfast.errors import OptionError
from holdfast.importance.layerwise import Others
from holdfast.importance.local_mas import local_sums
from holdfast.importance.measure import DataPass
from holdfast.importance.summing import add_all
from holdfast.likelihoods.outputs import logits_of
from holdfast.moments.company import Company
from holdfast.moments.gradients import Scores, gradient, zeros
from holdfast.moments.per_example import CHUNK_BYTES
from holdfast.moments.state import measuring
from holdfast.moments.study import check_apart
from holdfast.moments.sums import MomentSums
from holdfast.records import Importance
from holdfast.tensors import placed, trainable_parameters

MasOutput = Literal["logits", "softmax"]


def mas(
    model: nn.Module,
    data: Iterable[Any],
    *,
    output: MasOutput = "logits",
    classes: Sequence[int] | None = None,
    batched: bool = False,
    local: bool = False,
    others: Others = "error",
    num_examples: int | None = None,
    progress: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Importance:
    """Mean absolute sensitivity of the squared length of the model's output to each weight.

    default: Omega_i = E_x |d ||f(x)||^2 / d theta_i|
    batched: Omega_i = |d E_x ||f(x)||^2 / d theta_i|, the mean over the whole set before the absolute value, whatever
             the batches
    local:   Omega_ij = E_x |d ||y_l(x)||^2 / d w_ij| within each Linear or convolution layer l alone, its input held
             fixed, y_l its output after the activation: for ReLU E |2 y_i x_j|, the Hebbian product of target and
             source activity

    Args:
        model: any module; left exactly as it was. Of several processes as for `fisher`.
        data: an iterable of batches, `(inputs, targets)` or a mapping; each read once. Targets are not used.
        output: f is the logits (as `logits_of` finds them in the outputs), or their softmax over the last axis.
        batched: see above.
        local: see above. The activation is the elementwise function that consumes the layer's output (relu, leaky_relu,
            gelu, tanh, sigmoid, silu, elu, softplus, ..., as function, module or in place); none: the plain output. The
            products are summed over positions of a sequence or image before the absolute value. Each use of a shared
            layer counts for itself.
        others: with `local`, parameters used by anything but these layers: "error", or "zero" for no importance, which
            leaves them unprotected.
        classes: output columns that count, such as those of one task's head; None for all.
        num_examples: measure on the first so many examples; None for all.
        progress: show a progress bar.
        chunk_bytes: memory for per-example gradients, where these are needed.

    Returns:
        Name -> float32 of the parameter's shape, >= 0, in squared output units per weight unit. Independent of the
        batching. A mean over examples, each of which counts as one target. What a unit is worth in nats is unknown
        until it is `calibrated`.

    Raises:
        UnsupportedLayerError: with `local=True, others="error"`; every such parameter is listed.
        CoupledExamplesError, EmptyDataError, BatchError, NotFiniteError: as for `fisher`.
        OptionError: `local` together with `batched` or `classes`.

    Cost: one forward and one per-example backward pass; batched: an ordinary one; local: a forward pass and one weight
    gradient an example and layer.

    Source: Aljundi et al. 2018 (arXiv 1711.09601), equations 3 to 5. Departures: per example by default, as written
    there, where programs take batches; their local form is for ReLU alone and without the factor 2.
    """
    where = "mas"
    check_choice("output of mas", output, get_args(MasOutput))
    check_choice("value of others", others, get_args(Others))
    if local and batched:
        raise OptionError(
            "mas: local=True goes with batched=False only: the local form is a mean of absolute values. Drop one."
        )
    if local and classes is not None:
        raise OptionError("mas: classes go with local=False only: the local form takes every layer's output. Drop one.")
    if local and output != "logits":
        warnings.warn(
            "mas: output has no effect with local=True, where every layer's own output is taken.", stacklevel=2
        )
    if not local and others != "error":
        warnings.warn("mas: others has no effect without local=True: all parameters are measured.", stacklevel=2)
    data_pass = DataPass(
        model,
        data,
        where=where,
        num_examples=num_examples,
        progress=progress,
        check=False,
    )

    def scores(outputs: Any) -> Tensor:
        """[1, B]: ||f(x)||^2."""
        f = logits_of(outputs)
        f = f if classes is None else f[..., list(classes)]
        f = f.softmax(dim=-1) if output == "softmax" else f
        return f.reshape(len(f), -1).square().sum(dim=1).unsqueeze(0)

    with measuring(model), data_pass.meeting:
        if local:
            totals = local_sums(model, data_pass, others=others, chunk_bytes=chunk_bytes)
        elif batched:
            totals = _batched_sums(model, data_pass, scores)
        else:
            sums = MomentSums(model, phi="abs", where=where, chunk_bytes=chunk_bytes)
            add_all(sums, data_pass, lambda outputs, _: scores(outputs))
            totals = sums.totals
        return data_pass.importance(
            {name: total.abs_().div_(data_pass.seen) for name, total in totals.items()},
            kind="mas-local" if local else "mas-batched" if batched else "mas",
            unit="output^2/weight",
            details={"others": others} if local else {"output": output},
        )


def _batched_sums(model: nn.Module, data_pass: DataPass, scores: Scores) -> dict[str, Tensor]:
    """Name -> the gradient of the sum of all scores, laid out as the parameter is."""
    parameters, company = trainable_parameters(model), Company(model)
    totals, met = zeros(model), False
    for batch, counts in company.in_step(data_pass):
        if not met:
            check_apart(model, batch.call, where="mas", company=company)
        met = True
        own = scores if counts else lambda outputs: scores(outputs) * 0
        for name, value in gradient(model, batch.call, own).items():
            totals[name] += value
    data_pass.join()
    data_pass.add_up(totals)
    return {name: placed(total, parameters[name]) for name, total in totals.items()}
