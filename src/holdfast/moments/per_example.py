"""Per-example gradients of any model that `torch.func` can trace, in chunks of bounded memory."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from holdfast.moments.calls import Call, tensors_in
from holdfast.moments.gradients import (
    PHI,
    OutputGradients,
    Phi,
    RouteDeclinedError,
    accumulator_dtype,
    zeros,
)
from holdfast.tensors import trainable_parameters, unwrap

CHUNK_BYTES = 256 * 2**20
"""Bound on the per-example gradients, and on the gradients at the outputs, held at once."""

_COPIES = 4  # the gradient of a row, phi of it, their running sum, and a temporary


def per_example_sums(
    model: nn.Module,
    call: Call,
    at_outputs: OutputGradients,
    *,
    phi: Phi,
    names: Collection[str],
    chunk_bytes: int = CHUNK_BYTES,
) -> dict[str, Tensor]:
    """Sums over examples and rows of phi(d s_kb / d theta), by `vmap` over examples of the pull-back of the outputs.

    Args:
        model: any model that `torch.func` can trace; tied weights count once.
        call: a batch of B examples.
        at_outputs: gradients of the scores at the outputs of this call.
        phi: what is summed.
        names: of the parameters that are measured.
        chunk_bytes: as many examples go together as fit in this many bytes.

    Returns:
        Name -> sum, of the parameter's shape.

    Raises:
        RouteDeclinedError: `torch.func` cannot trace the model; the message says why.

    Cost: one forward and K backward passes, slowed by the per-example gradients being written out; `chunk_bytes` of
    memory whatever K is. For large K the forward pass is repeated every few rows.
    """
    totals = {name: total for name, total in zeros(model).items() if name in names}
    if not at_outputs.used:
        return totals
    weights = sum(total.nbytes for total in totals.values())
    chunk = max(1, chunk_bytes // (_COPIES * weights))
    block = max(1, chunk_bytes // (_COPIES * at_outputs.bytes_per_row))
    pulled = _Pullback(model, names, at_outputs.used, phi)
    for row in range(0, at_outputs.num_rows, block):
        rows = at_outputs.rows(row, row + block)
        for start in range(0, call.size, chunk):
            some = [gradient[:, start : start + chunk].movedim(1, 0) for gradient in rows]
            try:
                sums = pulled(call.examples(start, start + chunk), some)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever vmap, or the model inside it, finds to say
                raise RouteDeclinedError(f"{type(error).__name__}: {str(error).strip()[:300]}") from error
            for name, value in sums.items():
                totals[name] += value.sum(dim=0)
    return totals


class _Pullback:
    """For each example of a call sum_r phi(J^T v_r), J the Jacobian of the used outputs: name -> [B, *shape]."""

    def __init__(self, model: nn.Module, names: Collection[str], used: list[int], phi: Phi) -> None:
        self._model = unwrap(model)
        raw = {id(parameter): name for name, parameter in self._model.named_parameters()}
        parameters = {name: p for name, p in trainable_parameters(model).items() if name in names}
        self._names = {raw[id(parameter)]: name for name, parameter in parameters.items()}
        self._parameters = {raw[id(parameter)]: parameter.detach() for parameter in parameters.values()}
        self._used, self._phi = used, PHI[phi]

    def __call__(self, call: Call, rows: list[Tensor]) -> dict[str, Tensor]:
        leaves, form = tree_flatten((call.args, call.kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        def one(example: list[Tensor], gradients: list[Tensor]) -> dict[str, Tensor]:
            fresh = (tensor.unsqueeze(0) for tensor in example)
            args, kwargs = tree_unflatten([next(fresh) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form)
            return self._one(args, kwargs, gradients)

        # no_grad: the pull-back of vjp keeps no graph of its own; MATH: fused attention has no rule for vmap
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            sums = vmap(one, randomness="different")(tensors, rows)
        return {self._names[name]: value for name, value in sums.items()}

    def _one(self, args: tuple[Any, ...], kwargs: dict[str, Any], gradients: list[Tensor]) -> dict[str, Tensor]:
        def forward(parameters: dict[str, Tensor]) -> tuple[Tensor, ...]:
            found = tensors_in(functional_call(self._model, parameters, args, kwargs))
            return tuple(found[place] for place in self._used)

        _, pull, *_ = vjp(forward, self._parameters)
        totals: dict[str, Tensor] = {}
        for r in range(len(gradients[0])):
            (found,) = pull(tuple(gradient[r].unsqueeze(0) for gradient in gradients))
            terms = {name: self._phi(value.to(accumulator_dtype(value))) for name, value in found.items()}
            totals = {name: totals[name] + term for name, term in terms.items()} if totals else terms
        return totals
