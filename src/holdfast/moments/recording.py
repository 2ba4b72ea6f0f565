"""Calls of Linear and convolution layers, as they are recorded during a forward pass of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from holdfast.moments.layers import rows_of
from holdfast.moments.matrices import ConvolutionLayer, Layer
from holdfast.moments.transforms import transformed
from holdfast.moments.watching import Watching


@dataclass
class Use:
    """One call of a layer: its input, the place of its output in the graph, and how many positions all examples have.

    None of them if a transform hides them. `source` is the same for calls with the same input.
    """

    input: Tensor
    edge: GradientEdge | None
    num_rows: int
    hidden: bool = False
    source: tuple[Any, ...] = ()


@contextmanager
def recorded(layers: list[Layer], watching: Watching | None = None) -> Iterator[dict[str, list[Use]]]:
    """Collects each layer's input and the place of its output in the graph, before anything changes it in place."""
    uses: dict[str, list[Use]] = {layer.weight: [] for layer in layers}

    def recorder(layer: Layer) -> Callable[..., Tensor | None]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if watching is not None:
                watching.meet()
            if transformed():
                uses[layer.weight].append(Use(torch.empty(0, dtype=torch.float32), None, 0, hidden=True))
                return None
            edge = get_gradient_edge(output) if output.requires_grad else None
            x = args[0] if args else next(iter(kwargs.values()))
            num_rows, source = output.numel() // layer.matrix_shape[0], _source(x)
            uses[layer.weight].append(Use(rows_of(x.detach()), edge, num_rows, source=source))
            # a change in place of a view, as of a Linear layer's output for sequences, would leave its edge behind
            return output.clone() if output._is_view() else None

        return record

    handles = [layer.module.register_forward_hook(recorder(layer), with_kwargs=True, prepend=True) for layer in layers]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def patches_share(layers: list[Layer], uses: dict[str, list[Use]]) -> float:
    """Entries of the patches of all convolutions over those of the inputs and outputs of all layers."""
    patches = whole = 0
    for layer in layers:
        out, width = layer.matrix_shape
        for use in uses[layer.weight]:
            whole += use.input.numel() + use.num_rows * out
            patches += use.num_rows * width * isinstance(layer.module, ConvolutionLayer)
    return patches / whole if whole else 0.0


def _source(x: Tensor) -> tuple[Any, ...]:
    """The same for the same tensor, as long as what is recorded of it keeps its memory; no layer's may be changed."""
    return (object(),) if x.is_nested else (x.data_ptr(), x.shape, x.stride())
