"""EWC's pull as textbooks have it: added to the gradients, or to the loss as a penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.errors import OptionError
from holdfast.memory import Retained
from holdfast.memory.stored import side_by_side
from holdfast.retention.rise import layer_rise
from holdfast.retention.step import Step
from holdfast.tensors import TensorMap, local


def add_to_gradients(step: Step, strength: float) -> None:
    """Add strength * K (theta - anchor) to every gradient, in place; against it where an optimizer maximizes.

    Raises:
        OptionError: a gradient is sparse.
    """
    for part in step.parts():
        if any(gradient.is_sparse for gradient in part.gradients):
            raise OptionError(
                'EWC: pull="gradient" adds to every entry of a gradient, and there are sparse ones. '
                'Use pull="implicit".'
            )
        block = part.whole()
        pulls = torch._foreach_sub(block.weights, block.anchors)
        pulls = torch._foreach_mul(pulls, block.importance)
        torch._foreach_mul_(pulls, -strength if part.group.get("maximize") else strength)
        step.measure(block.gradients, pulls, [], [])
        for gradient, pull in zip(block.gradients, pulls, strict=True):
            gradient.add_(pull)
    layers = {layer.name: layer for layer in step.layers()}
    gradients = step.exchange.each(
        {name: layer.curvature for name, layer in layers.items()},
        lambda name: (layers[name].values(), layers[name].anchors),
        lambda _, held, values, anchors: held.gradient(values, anchors),
    )
    for name, forces in gradients:
        pulls = [strength * force for force in forces]
        for group, parameter, pull in zip(layers[name].groups, layers[name].parameters, pulls, strict=True):
            if group is not None and parameter.grad is not None:
                gradient = local(parameter.grad)
                step.measure([gradient], [pull], [], [])
                gradient.add_(-pull if group.get("maximize") else pull)


def penalty(held: Retained, parameters: TensorMap, strength: float) -> Tensor:
    """strength/2 sum Omega (theta - anchor)^2 with its gradient: a scalar on the device of the first parameter."""
    total = next(iter(parameters.values())).new_zeros(())
    for name, weight in parameters.items():
        if name in held.importance:
            for part, importance, anchor in side_by_side(weight, held.importance[name], held.anchors[name]):
                terms = importance * (part - anchor).square()
                total = total + terms.sum().to(total.device)
    for name, layer in held.layers.items():
        total = total + 2 * layer_rise(name, layer, parameters, held.anchors).to(total.device)
    return strength * (0.5 * total + held.constant)
