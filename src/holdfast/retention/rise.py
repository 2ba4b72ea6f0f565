"""The predicted rise of the old tasks' loss: 1/2 sum Omega (theta - anchor)^2, of weights and of whole layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from holdfast.memory import HeldLayer
from holdfast.memory.stored import HeldMap, read, side_by_side
from holdfast.tensors import TensorMap, local, sum_of, wide_dtype


@torch.no_grad()
def weights_rise(
    weights: TensorMap,
    importance: HeldMap,
    anchors: HeldMap,
    *,
    sum_of: Callable[[Iterable[Tensor]], float] = sum_of,
) -> float:
    """Of the weights that have an importance; in its unit, >= 0. `sum_of` adds up the terms of all processes."""
    return 0.5 * sum_of(
        (omega * (part - anchor).float().square()).sum()
        for name, weight in weights.items()
        if name in importance
        for part, omega, anchor in side_by_side(local(weight), importance[name], anchors[name])
    )


@torch.no_grad()
def layers_rise(weights: TensorMap, layers: Mapping[str, HeldLayer], anchors: HeldMap) -> float:
    """Of the layers whose parameters are all among the weights; in their unit, >= 0."""
    whole = {name: layer for name, layer in layers.items() if all(n in weights for n in layer.names(name))}
    return sum_of(layer_rise(name, layer, weights, anchors) for name, layer in whole.items())


def layer_rise(name: str, layer: HeldLayer, weights: TensorMap, anchors: HeldMap) -> Tensor:
    """Of a layer held by Kronecker factors, by the name of its weight; zero-dimensional, with its gradient."""
    device, dtype = weights[name].device, wide_dtype(weights[name])
    distances = [weights[n].to(dtype) - read(anchors[n], dtype=dtype, device=device) for n in layer.names(name)]
    return layer.to(device, dtype).rise(layer.join(*distances))
