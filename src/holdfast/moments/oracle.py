"""One example at a time by plain autograd: the slow truth, in any dtype, for any model."""

from __future__ import annotations

from torch import Tensor, nn

from holdfast.moments.calls import Call, tensors_in
from holdfast.moments.gradients import PHI, OutputGradients, Phi, Scores, gradients_of, zeros
from holdfast.tensors import trainable_parameters, unwrap

_ROW_BYTES = 64 * 2**20


def oracle_sums(model: nn.Module, call: Call, scores: Scores, *, phi: Phi) -> dict[str, Tensor]:
    """Sums over examples and rows of phi(d s_kb / d theta), each gradient by a backward pass of its own.

    Args:
        model: any model.
        call: a batch of B examples.
        scores: outputs -> [K, B]; called once.
        phi: what is summed.

    Returns:
        Name -> sum, of the parameter's shape.

    Cost: B + 1 forward and B * K backward passes; memory of one example.
    """
    at_outputs = OutputGradients(model, call, scores)
    totals = zeros(model)
    if not at_outputs.used:
        return totals
    parameters = list(trainable_parameters(model).values())
    block = max(1, _ROW_BYTES // at_outputs.bytes_per_row)
    for row in range(0, at_outputs.num_rows, block):
        rows = at_outputs.rows(row, row + block)
        for b in range(call.size):
            found = tensors_in(call.examples(b, b + 1)(unwrap(model)))
            outputs = [found[place] for place in at_outputs.used]
            for k in range(len(rows[0][b])):
                pairs = [
                    (output, gradients[b, k : k + 1])
                    for output, gradients in zip(outputs, rows)
                    if output.requires_grad
                ]
                total = sum((output * gradient).sum() for output, gradient in pairs)
                if isinstance(total, Tensor):
                    for sums, value in zip(totals.values(), gradients_of(total, parameters, retain=True)):
                        sums += PHI[phi](value)
    return totals
