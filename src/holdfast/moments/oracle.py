"""One example at a time by plain autograd: the slow truth, in any dtype, for any model."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from holdfast.moments.calls import Call, tensors_in
from holdfast.moments.company import Company
from holdfast.moments.gradients import (
    PHI,
    LengthsVaryError,
    OutputGradients,
    Phi,
    accumulator_dtype,
    pulled,
    refuses_grad,
    zeros,
)
from holdfast.moments.graph import is_reentrant
from holdfast.tensors import local, trainable_parameters, unwrap

_ROW_BYTES = 64 * 2**20


def oracle_sums(
    model: nn.Module, call: Call, at_outputs: OutputGradients, *, phi: Phi, names: Collection[str]
) -> dict[str, Tensor]:
    """Sums over examples and rows of phi(d s_kb / d theta), each gradient by a backward pass of its own.

    Args:
        model: any model.
        call: a batch of B examples.
        at_outputs: gradients of the scores at the outputs of this call.
        phi: what is summed.
        names: of the parameters that are measured.

    Returns:
        Name -> sum, of the parameter's shape.

    Raises:
        LengthsVaryError: the outputs for an example have another shape alone than in the batch.

    Cost: B + 1 forward and B * K backward passes; memory of one example.
    """
    totals = {name: total for name, total in zeros(model).items() if name in names}
    parameters = [parameter for name, parameter in trainable_parameters(model).items() if name in names]
    by_grad = True
    block = max(1, _ROW_BYTES // max(1, at_outputs.bytes_per_row))
    for row in range(0, at_outputs.num_rows if at_outputs.used else 0, block):
        rows = at_outputs.rows(row, row + block)
        for b in range(call.size):
            found = tensors_in(call.examples(b, b + 1)(unwrap(model)))
            outputs = [(found[place], gradients[:, b]) for place, gradients in zip(at_outputs.used, rows)]
            if any(output.shape != (1, *gradients.shape[1:]) for output, gradients in outputs):
                raise LengthsVaryError(at_outputs.shapes)
            outputs = [(output, gradients) for output, gradients in outputs if output.requires_grad]
            for k in range(len(rows[0]) if outputs else 0):
                ends, at = [output for output, _ in outputs], [gradients[k : k + 1] for _, gradients in outputs]
                by_grad = by_grad and not (b == k == 0 and is_reentrant(ends))
                try:
                    values = pulled(ends, at, parameters, by_grad=by_grad, retain=True)
                except RuntimeError as error:
                    if not (by_grad and refuses_grad(error)):
                        raise
                    by_grad = False
                    values = pulled(ends, at, parameters, by_grad=by_grad, retain=True)
                for sums, parameter, value in zip(totals.values(), parameters, values):
                    if value is not None:
                        sums += PHI[phi](value.to(accumulator_dtype(parameter)))
    return totals


def sums_in_company(
    model: nn.Module, call: Call, at_outputs: OutputGradients, *, phi: Phi, names: Collection[str], company: Company
) -> dict[str, Tensor]:
    """As `oracle_sums`, of a sharded model, over the examples of all processes; all of them come here.

    Each backward pass is of one example of one process, whose gradient `fully_shard` scatters to the shards.

    Args:
        model: a sharded model.
        call: a batch of B examples of this process.
        at_outputs: gradients of the scores at the outputs of this call; of K rows in every process.
        phi: what is summed.
        names: of the parameters that are measured.
        company: the processes.

    Returns:
        Name -> this process's shard of the sum.

    Raises:
        LengthsVaryError: in all processes, where the outputs for an example of one of them have another shape alone.

    Cost: B forward and B * K * (number of processes) backward passes in every process, B the largest of theirs.
    """
    parameters = trainable_parameters(model)
    totals = {name: total for name, total in zeros(model).items() if name in names}
    rows = at_outputs.rows(0, at_outputs.num_rows)
    for each in range(company.most(call.size)):
        b = min(each, call.size - 1)
        found = tensors_in(call.examples(b, b + 1)(unwrap(model)))
        ends = [found[place] for place in at_outputs.used]
        shapes = [(1, *gradients.shape[2:]) for gradients in rows]
        if company.any([tuple(end.shape) for end in ends] != shapes):
            company.rest()
            raise LengthsVaryError(at_outputs.shapes)
        for turn in range(company.size):
            share = float(turn == company.rank and each == b) * company.size  # `fully_shard` takes the mean
            for k in range(at_outputs.num_rows):
                at = [gradients[k, b : b + 1] * share for gradients in rows]
                values = pulled(ends, at, [parameters[name] for name in totals], by_grad=False, retain=True)
                for total, value in zip(totals.values(), values, strict=True):
                    if value is not None:
                        total += PHI[phi](local(value).to(total.dtype))
    return totals
