"""What all routes to the sums share: the function phi, the ordinary gradient, and gradients at the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.errors import BatchError
from holdfast.moments.calls import Call, tensors_in, with_tensors
from holdfast.moments.company import Company
from holdfast.moments.graph import is_reentrant, leaves_of
from holdfast.tensors import TensorMap, local, trainable_parameters, unwrap

Scores = Callable[[Any], Tensor]
"""From the outputs for B examples to scores [K, B], differentiable; column b depends on example b alone."""

Phi = Literal["square", "abs", "signed"]
"""What is summed: g^2, |g|, or g itself, which must give the ordinary gradient and so checks a route."""

PHI: dict[Phi, Callable[[Tensor], Tensor]] = {"square": torch.square, "abs": torch.abs, "signed": torch.clone}
"""All three are multiplicative, phi(ab) = phi(a) phi(b): the closed form for Linear layers rests on it."""


class RouteDeclinedError(Exception):
    """A route cannot measure this model or batch; never seen by the user, another route is taken."""


class LengthsVaryError(Exception):
    """Outputs are as long as the longest example of a batch; never seen by the user, the examples are run alone.

    Args:
        shapes: of the outputs for the batch.
    """

    def __init__(self, shapes: Sequence[torch.Size]) -> None:
        super().__init__("the outputs of an example alone have another shape than in a batch")
        self.shapes = shapes


def accumulator_dtype(parameter: Tensor) -> torch.dtype:
    """float64 for float64 parameters, else float32: squares of gradients under half precision would underflow."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def zeros(model: nn.Module) -> dict[str, Tensor]:
    """Name -> zeros like every trainable parameter, of a sharded one like its shard, in the accumulators' dtype."""
    return {name: zero_like(parameter) for name, parameter in trainable_parameters(model).items()}


def zero_like(parameter: Tensor) -> Tensor:
    """Zeros like a parameter, of a sharded one like its shard, in the accumulators' dtype."""
    return torch.zeros_like(local(parameter), dtype=accumulator_dtype(parameter), requires_grad=False)


def gradient(model: nn.Module, call: Call, scores: Scores) -> dict[str, Tensor]:
    """Name -> d sum_kb s_kb / d theta by one ordinary backward pass; zeros where a parameter is not used.

    Of sharded parameters, whose processes all make this pass, this process's shard of the sum over all of them.
    """
    parameters = trainable_parameters(model)
    company = Company(model)
    for by_grad in (True, False) if company.shards is None else (False,):
        total = scores(call(unwrap(model))).sum()
        if not total.requires_grad:
            break
        by_grad = by_grad and not is_reentrant([total])
        try:
            found = pulled([total], [None], list(parameters.values()), by_grad=by_grad)
        except RuntimeError as error:
            if not (by_grad and refuses_grad(error)):
                raise
        else:
            wide: dict[str, Tensor] = {}
            for name, parameter in reversed(parameters.items()):
                value = _wide(found.pop(), parameter)  # each narrow gradient goes as its wide one comes
                # `fully_shard` takes the mean over processes
                wide[name] = value if company.size == 1 else value * company.size
            return {name: wide[name] for name in parameters}
    return zeros(model)


def pulled(
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    *,
    by_grad: bool = True,
    retain: bool = False,
) -> list[Tensor | None]:
    """What ordinary backward passes bring to the parameters; None where it is nothing.

    Args:
        outputs: where the pass begins.
        gradients: there; None for a scalar.
        parameters: where it ends.
        by_grad: by `torch.autograd.grad`; else by `backward`, which reentrant checkpoints insist on, each `.grad` being
            put back.
        retain: keep the graph.
    """
    if by_grad:
        found = torch.autograd.grad(outputs, parameters, gradients, allow_unused=True, retain_graph=retain)
        return list(found)
    before = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        torch.autograd.backward(outputs, gradients, retain_graph=retain)
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, value in zip(parameters, before):
            parameter.grad = value


def refuses_grad(error: RuntimeError) -> bool:
    """Whether this is what reentrant checkpoints say to `torch.autograd.grad`."""
    return "not compatible with .grad()" in str(error) or "torch.utils.checkpoint is incompatible" in str(error)


def _wide(value: Tensor | None, parameter: Tensor) -> Tensor:
    return zero_like(parameter) if value is None else local(value).to(accumulator_dtype(parameter))


def random_scores(size: int, outputs: object) -> Tensor:
    """[1, B]: a fixed random linear function of the outputs, with weights of its own for each example."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(size, dtype=torch.float32)
    for tensor in tensors_in(outputs):
        if tensor.is_floating_point() and tensor.ndim and len(tensor) == size:
            weights = torch.empty(tensor.shape, dtype=torch.float32).uniform_(-1, 1, generator=generator).to(tensor)
            total = total.to(tensor.device) + (weights * tensor).reshape(size, -1).sum(dim=1)
    return total.unsqueeze(0)


class OutputGradients:
    """Gradients of scores with respect to the outputs alone: what is pulled back through the model, example by example.

    The scores are taken once, so that a score that draws labels draws them once.

    Args:
        outputs: of the model, for B = size examples.
        size: B.
        scores: outputs -> [K, B].

    Attributes:
        used: places, among `tensors_in(outputs)`, of the tensors that the scores depend on; each [B, ...].
        num_rows: K.
        dtype: of the scores.
        shapes: of all tensors of the outputs.

    Raises:
        BatchError: the scores read a tensor whose first axis does not hold the examples.
    """

    def __init__(self, outputs: Any, size: int, scores: Scores) -> None:
        self.shapes = [tensor.shape for tensor in tensors_in(outputs)]
        leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in tensors_in(outputs)]
        places = [place for place, leaf in enumerate(leaves) if leaf.requires_grad]
        with torch.enable_grad():
            self._scores = scores(with_tensors(outputs, leaves))
        self.num_rows = len(self._scores)
        if len(places) > 1:
            reached = {id(leaf) for leaf in leaves_of([self._scores])}
            places = [place for place in places if id(leaves[place]) in reached]
        self.used = places if self._scores.requires_grad else []
        self._leaves = [leaves[place] for place in self.used]
        wrong = [list(leaf.shape) for leaf in self._leaves if leaf.ndim == 0 or len(leaf) != size]
        if wrong:
            raise BatchError(
                f"outputs: the loss reads a tensor of shape {wrong[0]} for a batch of {size} examples, expected "
                "the examples on its first axis. Return per-example outputs from the model, not means."
            )
        self.dtype = self._scores.dtype
        self.bytes_per_row = sum(leaf.nbytes for leaf in self._leaves)

    def row(self, k: int, *, last: bool = False) -> tuple[Tensor, ...]:
        """For each used output the gradient [B, ...] of row k; `last` frees what the scores keep."""
        return torch.autograd.grad(
            self._scores[k].sum(), self._leaves, allow_unused=True, materialize_grads=True, retain_graph=not last
        )

    def combined(self, weights: Tensor) -> tuple[Tensor, ...]:
        """For each used output the gradient [B, ...] of the sum of all scores times `weights` [K, B]."""
        return torch.autograd.grad(
            self._scores,
            self._leaves,
            weights.to(self._scores),
            allow_unused=True,
            materialize_grads=True,
            retain_graph=True,
        )

    def rows(self, start: int, stop: int) -> list[Tensor]:
        """For each used output [B, ...] the gradients [R, B, ...] of rows `start` to `stop` (exclusive)."""
        stop = min(stop, self.num_rows)
        which = torch.zeros(stop - start, *self._scores.shape, dtype=self._scores.dtype, device=self._scores.device)
        which[range(stop - start), range(start, stop)] = 1
        try:
            found = torch.autograd.grad(
                self._scores, self._leaves, which, retain_graph=True, is_grads_batched=True, materialize_grads=True
            )
        except RuntimeError:  # a score that vmap cannot differentiate
            return [torch.stack(columns) for columns in zip(*(self.row(k) for k in range(start, stop)))]
        return list(found)


def tolerance(model: nn.Module, company: Company | None = None) -> float:
    """The relative error that rounding explains: by the narrowest parameter, as for half precision under autocast."""
    tensors = [tensor for tensor in unwrap(model).parameters() if tensor.is_floating_point()]
    if company is not None and not company.is_alone:
        return max(_ROUNDING.get(dtype, 5e-2) for dtype in company.dtypes)
    if any(torch.is_autocast_enabled(device) for device in {tensor.device.type for tensor in tensors}):
        return 5e-2
    return max((_ROUNDING.get(tensor.dtype, 5e-2) for tensor in tensors), default=5e-3)


_ROUNDING = {torch.float64: 1e-6, torch.float32: 5e-3}


def mismatches(found: TensorMap, expected: TensorMap, *, rtol: float, company: Company) -> list[str]:
    """The names of the parameters whose gradient differs from the ordinary one beyond rounding.

    Of a sharded model both are this process's shards, and all processes of the company find the same.

    The floor, a share of the largest gradient, lets through parameters whose gradient is rounding noise, such as
    the key bias of an attention. Where the ordinary gradient is not finite nothing can be told.
    """
    norms = company.norms(expected.values())
    errors = company.norms(found[name] - value for name, value in expected.items())
    return beyond_rounding(dict(zip(expected, errors)), dict(zip(expected, norms)), rtol=rtol)


def beyond_rounding(errors: Mapping[str, float], norms: Mapping[str, float], *, rtol: float) -> list[str]:
    """The names of the errors that rounding does not explain, for gradients of these norms; see `mismatches`."""
    floor = 1e-5 * max((norm for norm in norms.values() if norm < float("inf")), default=0.0)
    return [name for name, error in errors.items() if error > rtol * norms[name] + floor]
