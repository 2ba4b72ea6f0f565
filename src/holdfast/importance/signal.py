"""Signal importance: how much passes through each weight. No gradients, no labels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, get_args

from torch import nn

from holdfast.choices import check_choice
from holdfast.importance.gathering import gathered_batches
from holdfast.importance.layerwise import Others, check_watchable, watched_forward
from holdfast.importance.measure import DataPass
from holdfast.importance.signal_sums import UNIT, BiasSignal, SignalSums
from holdfast.moments.calls import Call
from holdfast.moments.company import Company
from holdfast.moments.places import Places
from holdfast.moments.state import measuring
from holdfast.moments.study import TOGETHER_BYTES
from holdfast.moments.watching import Watching
from holdfast.records import Importance

_TOGETHER_BYTES = TOGETHER_BYTES // 2
"""Activations of the examples that go together: half of what is best where a backward pass follows."""


def signal(
    model: nn.Module,
    data: Iterable[Any],
    *,
    bias: BiasSignal = "output",
    others: Others = "error",
    num_examples: int | None = None,
    progress: bool = False,
) -> Importance:
    """Mean absolute signal through each weight of the Linear and convolution layers.

    weight: Omega_ij = E |w_ij x_j| = |w_ij| E |x_j|, over examples and positions of a sequence; for a convolution over
            examples and output positions, x being the input under that tap of the kernel, zero in the padding
    bias:   Omega_i = E |z_i|, z the layer's output, or E |y_i|, y = activation(z)

    Args:
        model: any module; left exactly as it was. Of several processes as for `fisher`.
        data: an iterable of batches, `(inputs, targets)` or a mapping; each read once. Targets are not used.
        bias: "output" (default: it needs no knowledge of what follows the layer) or "activation" (the authors' choice):
            y is what the elementwise function that consumes z makes of it (relu, leaky_relu, gelu, tanh, sigmoid, silu,
            elu, softplus, ..., as function, module or in place), the softmax of z where z is an output of the model,
            else z itself.
        others: parameters used by anything but these layers (norms, embeddings, attention's packed projections,
            transposed convolutions, raw parameters): "error", or "zero" for no importance, which leaves them
            unprotected.
        num_examples: measure on the first so many examples; None for all.
        progress: show a progress bar.

    Returns:
        Name -> float32 of the parameter's shape, >= 0, in units of the layers' outputs. Independent of the batching.
        Examples count as targets; what a unit is worth in nats is unknown until it is `calibrated`. A weight used by
        several layers gets the mean over its uses; one never used, zero.

    Raises:
        UnsupportedLayerError: with `others="error"`; every such parameter is listed.
        CoupledExamplesError, EmptyDataError, BatchError, NotFiniteError, OptionError: as for `fisher`.

    Cost: one forward pass, and for a convolution a second one of one channel a group with its backward pass. Where the
    data decide how many rows a layer has, as in padding to the longest example, one forward pass an example.

    Source: Kutalev and Lapina 2021 (arXiv 2109.10021). Departures: sequences and convolutions; z in place of y for
    biases by default.
    """
    check_choice("bias of signal", bias, get_args(BiasSignal))
    check_choice("value of others", others, get_args(Others))
    check_watchable(model, where="signal")
    data_pass = DataPass(
        model,
        data,
        where="signal",
        num_examples=num_examples,
        progress=progress,
        check=False,
    )
    company = Company(model)
    sums, places = SignalSums(model, bias), Places(model, any_order=True, where="signal")
    graph = False
    with measuring(model), data_pass.meeting:
        for batch, counts in company.in_step(gathered_batches(data_pass, lambda: places.room(_TOGETHER_BYTES))):
            first = data_pass.seen == batch.call.size
            run = partial(watched_forward, model, activations=bias == "activation", others=others, where="signal")
            run = partial(run, company=company)

            def forward(call: Call, watching: Watching | None = None) -> tuple[SignalSums, bool]:
                found = SignalSums(model, bias)
                meet = None if watching is None else watching.meet
                return found, run(call, found.add, first=first, graph=graph, meet=meet)  # noqa: B023

            (found, graph), known = places.run(batch.call, partial(forward, batch.call))
            # where padding would count, or other layers are used
            for each in range(0 if known else company.most(batch.call.size)):
                b = min(each, batch.call.size - 1)
                one = forward(batch.call.examples(b, b + 1))[0]
                if counts and each == b:
                    sums.merge(one)
            if known and counts:
                sums.merge(found)
        data_pass.join()
        sums.join(company)
        return data_pass.importance(sums.values(), kind="signal", unit=UNIT, details={"bias": bias, "others": others})
