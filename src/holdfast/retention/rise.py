"""The predicted rise of the old tasks' loss: 1/2 sum Omega (theta - anchor)^2, of weights and of whole layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from holdfast.curvature import Curvature
from holdfast.curvature.exchange import ALONE, Exchange
from holdfast.memory import Retained
from holdfast.memory.stored import AnyTensorMap, read, side_by_side
from holdfast.tensors import TensorMap, local, sum_of, wide_dtype


@torch.no_grad()
def weights_rise(
    weights: TensorMap,
    importance: AnyTensorMap,
    anchors: AnyTensorMap,
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
def layers_rise(weights: TensorMap, held: Retained, anchors: AnyTensorMap, *, exchange: Exchange = ALONE) -> float:
    """Of the layers whose parameters are all among the weights; in their unit, >= 0. Every process gets the same."""
    names = {name: list(layer.shapes(name)) for name, layer in held.all_layers.items()}
    whole = {name: layer for name, layer in held.all_layers.items() if all(n in weights for n in names[name])}

    def ask(name: str) -> tuple[list[Tensor], list[Tensor]]:
        dtype = wide_dtype(weights[name])
        now = [local(weights[n].detach()).to(dtype) for n in names[name]]
        return now, [read(anchors[n], dtype=dtype, device=value.device) for n, value in zip(names[name], now)]

    asked = exchange.gathered(whole, ask)
    return exchange.sum_of(layer.to(now[0].device, now[0].dtype).rise(now, there) for _, layer, (now, there) in asked)


def layer_rise(name: str, layer: Curvature, weights: TensorMap, anchors: AnyTensorMap) -> Tensor:
    """Of a layer that is held as a whole, by the name of its weight; zero-dimensional, with its gradient."""
    device, dtype, names = weights[name].device, wide_dtype(weights[name]), layer.shapes(name)
    there = [read(anchors[n], dtype=dtype, device=device) for n in names]
    return layer.to(device, dtype).rise([weights[n].to(dtype) for n in names], there)
