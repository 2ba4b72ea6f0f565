"""The one door to the moments: sums over examples of phi(gradient), by the fastest route that proves itself right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from holdfast.errors import LossShapeError, NotFiniteError
from holdfast.moments.calls import Call, tensors_in
from holdfast.moments.gradients import Phi, RouteDeclinedError, Scores, gradient, mismatch, tolerance, zeros
from holdfast.moments.linear import linear_sums
from holdfast.moments.oracle import oracle_sums
from holdfast.moments.per_example import CHUNK_BYTES, per_example_sums
from holdfast.tensors import unwrap

Route = Callable[..., dict[str, Tensor]]


class MomentSums:
    """Name -> sum over examples b and rows k of phi(d s_kb / d theta), for all trainable parameters, batch after batch.

    The routes, from the fastest: the closed form for Linear layers, `torch.func` per-example gradients, one example at
    a time. The first that can measure the model is checked on the first batch: for a random linear function of the
    outputs the signed sum of its per-example gradients, each example with a random weight, must be the ordinary
    gradient of every parameter. So a weight used by a function besides its layer, or a subclass with another forward,
    is never silently wrong.

    Args:
        model: in evaluation mode (see `measuring`); its outputs for an example must not depend on the others.
        phi: "square" or "abs".
        where: the estimator, for messages.
        chunk_bytes: bound on the memory of per-example gradients.

    Attributes:
        totals: name -> sum so far; >= 0, of the parameter's shape and device, float64 for float64 parameters, else
            float32. Zeros for a parameter that no forward pass has used.
        num_examples: examples seen.
    """

    def __init__(self, model: nn.Module, *, phi: Phi, where: str, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._model, self._phi, self._where = model, phi, where
        per_example = partial(per_example_sums, chunk_bytes=chunk_bytes)
        self._routes: list[Route] = [linear_sums, per_example, oracle_sums]
        self._proven = False
        self.totals = zeros(model)
        self.num_examples = 0

    @property
    def route(self) -> str:
        """The route now taken: "linear_sums", "per_example_sums" or "oracle_sums"."""
        route = self._routes[0]
        return route.func.__name__ if isinstance(route, partial) else route.__name__

    def add(self, call: Call, scores: Scores) -> None:
        """Add a batch.

        Args:
            call: B examples.
            scores: outputs -> [K, B]; K scores an example.

        Raises:
            LossShapeError: the scores are not [K, B].
            NotFiniteError: a score is NaN or infinite.
        """
        checked = partial(_checked, scores, call.size, self._where)
        while True:
            try:
                if not self._proven and len(self._routes) > 1:
                    self._prove(call)
                sums = self._routes[0](self._model, call, checked, phi=self._phi)
                break
            except RouteDeclinedError as reason:
                self._next_route(str(reason))
        torch._foreach_add_(list(self.totals.values()), [sums[name] for name in self.totals])
        self.num_examples += call.size

    def _prove(self, call: Call) -> None:
        scores = partial(_random_scores, call.size)
        found = self._routes[0](self._model, call, scores, phi="signed")
        wrong = mismatch(found, gradient(self._model, call, scores), rtol=tolerance(self._model))
        if wrong:
            raise RouteDeclinedError(f"its per-example gradients do not add up to the gradient of {wrong!r}")
        self._proven = True

    def _next_route(self, reason: str) -> None:
        del self._routes[0]
        self._proven = False
        if len(self._routes) == 1:
            warnings.warn(
                f"{self._where}: {type(unwrap(self._model)).__name__} is measured one example at a time, right but "
                f"slow: torch.func cannot differentiate it example by example ({reason}). Lower num_examples if it "
                "takes too long.",
                stacklevel=4,
            )


def _checked(scores: Scores, size: int, where: str, outputs: object) -> Tensor:
    rows = scores(outputs)
    if rows.ndim != 2 or rows.shape[1] != size:
        raise LossShapeError(
            f"{where}: found scores of shape {list(rows.shape)} for {size} examples, expected [K, {size}]: "
            "one column an example."
        )
    bad = ~torch.isfinite(rows.detach()).all(dim=0)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise NotFiniteError(
            f"{where}: the loss is not finite for {int(bad.sum())} of {size} examples of a batch, the first being "
            f"number {first} of it. Look for NaN in the model's weights or the data, or an overflow under half "
            "precision."
        )
    return rows


def _random_scores(size: int, outputs: object) -> Tensor:
    """[1, B]: a fixed random linear function of the outputs, with weights of its own for each example."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(size)
    for tensor in tensors_in(outputs):
        if tensor.is_floating_point() and tensor.ndim and len(tensor) == size:
            weights = torch.randn(tensor.shape, generator=generator).to(tensor)
            total = total.to(tensor.device) + (weights * tensor).reshape(size, -1).sum(dim=1)
    return total.unsqueeze(0)
