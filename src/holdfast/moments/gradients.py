"""What all routes to the sums share: the function phi, the ordinary gradient, and gradients at the outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.errors import BatchError
from holdfast.moments.calls import Call, tensors_in, with_tensors
from holdfast.tensors import TensorMap, trainable_parameters, unwrap

Scores = Callable[[Any], Tensor]
"""From the outputs for B examples to scores [K, B], differentiable; column b depends on example b alone."""

Phi = Literal["square", "abs", "signed"]
"""What is summed: g^2, |g|, or g itself, which must give the ordinary gradient and so checks a route."""

PHI: dict[Phi, Callable[[Tensor], Tensor]] = {"square": torch.square, "abs": torch.abs, "signed": torch.clone}
"""All three are multiplicative, phi(ab) = phi(a) phi(b): the closed form for Linear layers rests on it."""


class RouteDeclinedError(Exception):
    """A route cannot measure this model or batch; never seen by the user, another route is taken."""


def accumulator_dtype(parameter: Tensor) -> torch.dtype:
    """float64 for float64 parameters, else float32: squares of gradients under half precision would underflow."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def zeros(model: nn.Module) -> dict[str, Tensor]:
    """Name -> zeros of the shape and on the device of every trainable parameter, in the accumulators' dtype."""
    named = trainable_parameters(model).items()
    return {name: torch.zeros_like(p, dtype=accumulator_dtype(p), requires_grad=False) for name, p in named}


def gradient(model: nn.Module, call: Call, scores: Scores) -> dict[str, Tensor]:
    """Name -> d sum_kb s_kb / d theta by one ordinary backward pass; zeros where a parameter is not used."""
    parameters = trainable_parameters(model)
    total = scores(call(unwrap(model))).sum()
    if not total.requires_grad:
        return zeros(model)
    return dict(zip(parameters, gradients_of(total, list(parameters.values()))))


def gradients_of(total: Tensor, parameters: list[nn.Parameter], *, retain: bool = False) -> list[Tensor]:
    """Gradient d total / d theta in the accumulators' dtype; zeros where a parameter is not used."""
    found = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True, retain_graph=retain)
    return [value.to(accumulator_dtype(parameter)) for value, parameter in zip(found, parameters)]


class OutputGradients:
    """Gradients of scores with respect to the outputs alone: what is pulled back through the model, example by example.

    The model is run once on the whole batch without a graph, and the scores are taken once, so that a score that
    draws labels draws them once.

    Attributes:
        used: places, among `tensors_in(outputs)`, of the tensors that the scores depend on; each [B, ...].
        num_rows: K.

    Raises:
        BatchError: the scores read a tensor whose first axis does not hold the examples.
    """

    def __init__(self, model: nn.Module, call: Call, scores: Scores) -> None:
        with torch.no_grad():
            outputs = call(unwrap(model))
        leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in tensors_in(outputs)]
        places = [place for place, leaf in enumerate(leaves) if leaf.requires_grad]
        self._scores = scores(with_tensors(outputs, leaves))
        self.num_rows = len(self._scores)
        self.used: list[int] = []
        if self._scores.requires_grad:
            inputs = [leaves[place] for place in places]
            found = torch.autograd.grad(self._scores.sum(), inputs, allow_unused=True, retain_graph=True)
            self.used = [place for place, value in zip(places, found) if value is not None]
        self._leaves = [leaves[place] for place in self.used]
        wrong = [list(leaf.shape) for leaf in self._leaves if leaf.ndim == 0 or len(leaf) != call.size]
        if wrong:
            raise BatchError(
                f"outputs: the loss reads a tensor of shape {wrong[0]} for a batch of {call.size} examples, expected "
                "the examples on its first axis. Return per-example outputs from the model, not means."
            )
        self.bytes_per_row = sum(leaf.nbytes for leaf in self._leaves)

    def rows(self, start: int, stop: int) -> list[Tensor]:
        """For each used output [B, ...] the gradients [B, R, ...] of rows `start` to `stop` (exclusive)."""
        rows = [
            torch.autograd.grad(
                self._scores[k].sum(),
                self._leaves,
                allow_unused=True,
                materialize_grads=True,
                retain_graph=True,
            )
            for k in range(start, min(stop, self.num_rows))
        ]
        return [torch.stack(columns, dim=1) for columns in zip(*rows)]


def tolerance(model: nn.Module) -> float:
    """The relative error that rounding explains: by the narrowest parameter, as for half precision under autocast."""
    tensors = [tensor for tensor in unwrap(model).parameters() if tensor.is_floating_point()]
    if any(torch.is_autocast_enabled(device) for device in {tensor.device.type for tensor in tensors}):
        return 5e-2
    return max(({torch.float64: 1e-6, torch.float32: 5e-3}.get(tensor.dtype, 5e-2) for tensor in tensors), default=5e-3)


def mismatch(found: TensorMap, expected: TensorMap, *, rtol: float) -> str | None:
    """The name of the first parameter whose gradient differs from the ordinary one beyond rounding; None if all agree.

    The floor, a share of the largest gradient, lets through parameters whose gradient is rounding noise, such as
    the key bias of an attention. Where the ordinary gradient is not finite nothing can be told.
    """
    norms = {name: float(value.norm()) for name, value in expected.items()}
    floor = 1e-5 * max((norm for norm in norms.values() if norm < float("inf")), default=0.0)
    for name, norm in norms.items():
        error = float((found[name] - expected[name]).norm())
        if error > rtol * norm + floor:
            return name
    return None
