"""The closed form for networks whose trainable parameters all belong to Linear layers without a sequence axis.

The gradient of one example for a weight is an outer product, G_b A_b^T with A [B, in] the layer's input and G [B, out]
the gradient at its output. So sum_b phi(G_b A_b^T) = phi(G)^T phi(A) for phi = square and abs: one product of the cost
of the ordinary weight gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from holdfast.moments.calls import Call
from holdfast.moments.gradients import PHI, Phi, RouteDeclinedError, Scores, accumulator_dtype
from holdfast.tensors import trainable_parameters, unwrap

Uses = dict[nn.Linear, list[tuple[Tensor, GradientEdge | None]]]


def linear_sums(model: nn.Module, call: Call, scores: Scores, *, phi: Phi) -> dict[str, Tensor]:
    """Sums over examples and rows of phi(d s_kb / d theta), from inputs and output gradients of each Linear layer.

    Over the K rows of the scores only phi(G) [B, out] is summed; the product is taken once a layer.

    Args:
        model: all trainable parameters in `nn.Linear` modules.
        call: a batch of B examples.
        scores: outputs -> [K, B].
        phi: what is summed.

    Returns:
        Name -> sum, of the parameter's shape; zeros for layers that were not called.

    Raises:
        RouteDeclinedError: a trainable parameter has another home or two of them; a layer was called twice, or with an
            input that is not [B, in].

    Cost: one forward, K backward passes without weight gradients, one product a layer.
    """
    layers = _linear_layers(model)
    with _recorded(layers) as uses:
        outputs = call(unwrap(model))
    for layer, calls in uses.items():
        shapes = [tuple(x.shape) for x, _ in calls]
        if len(calls) > 1 or any(shape != (call.size, layer.in_features) for shape in shapes):
            raise RouteDeclinedError(
                f"a Linear layer was called with inputs of shapes {shapes} for {call.size} examples"
            )
    called = {layer: calls[0] for layer, calls in uses.items() if calls and calls[0][1] is not None}
    edges = [edge for _, edge in called.values() if edge is not None]
    rows = scores(outputs)
    spread: list[Tensor | None] = [None] * len(edges)
    for k, row in enumerate(rows if rows.requires_grad and edges else ()):
        found = torch.autograd.grad(row.sum(), edges, allow_unused=True, retain_graph=k + 1 < len(rows))
        for place, G in enumerate(found):
            if G is not None:
                term = PHI[phi](_wide(G))
                before = spread[place]
                spread[place] = term if before is None else before.add_(term)
    sums: dict[Tensor | None, Tensor] = {}
    for (layer, (A, _)), G in zip(called.items(), spread):
        if G is not None:
            with torch.autocast(G.device.type, enabled=False):
                sums |= {layer.weight: G.T @ PHI[phi](_wide(A.detach())), layer.bias: G.sum(dim=0)}
    named = trainable_parameters(model).items()
    return {name: sums[p] if p in sums else torch.zeros_like(p, dtype=accumulator_dtype(p)) for name, p in named}


def _linear_layers(model: nn.Module) -> list[nn.Linear]:
    """The plain Linear layers of a model, if every trainable parameter lives in exactly one of them."""
    homes: dict[int, list[nn.Module]] = {}
    for module in unwrap(model).modules():
        for parameter in module.parameters(recurse=False):
            homes.setdefault(id(parameter), []).append(module)
    for name, parameter in trainable_parameters(model).items():
        home = homes[id(parameter)]
        if len(home) > 1 or type(home[0]) is not nn.Linear:
            raise RouteDeclinedError(f"{name!r} belongs to {' and '.join(type(module).__name__ for module in home)}")
    trainable = {id(parameter) for parameter in trainable_parameters(model).values()}
    return [
        module
        for module in unwrap(model).modules()
        if type(module) is nn.Linear and trainable & {id(p) for p in module.parameters(recurse=False)}
    ]


@contextmanager
def _recorded(layers: list[nn.Linear]) -> Iterator[Uses]:
    """Collects each layer's input and the place of its output in the graph, before anything changes it in place."""
    uses: Uses = {layer: [] for layer in layers}

    def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        x = args[0] if args else kwargs["input"]
        edge = get_gradient_edge(output) if output.requires_grad else None
        uses[layer].append((x, edge))  # pyright: ignore[reportArgumentType]

    handles = [layer.register_forward_hook(record, with_kwargs=True, prepend=True) for layer in layers]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(accumulator_dtype(tensor))
