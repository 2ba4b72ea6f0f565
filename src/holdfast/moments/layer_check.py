"""Which layers are what they seem: called once, and with a gradient that is the sum over their calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from holdfast.moments.calls import Call
from holdfast.moments.company import Company
from holdfast.moments.gradients import (
    Scores,
    accumulator_dtype,
    gradient,
    mismatches,
    random_scores,
    refuses_grad,
    tolerance,
)
from holdfast.moments.graph import is_reentrant
from holdfast.moments.matrices import Layer, gradients_of, inputs_of
from holdfast.moments.recording import Use, patches_share, recorded
from holdfast.tensors import TensorMap, reduced_to_shards, trainable_parameters, unwrap

_CHECKPOINTS = "the model has reentrant checkpoints; pass use_reentrant=False to them"


@dataclass(frozen=True)
class LayerCheck:
    """What was found out about layers on a batch.

    Attributes:
        layers: those that proved themselves.
        declined: weight of a layer that did not -> why. Layers that are called twice are only left out.
        patches_share: entries of the patches of all convolutions over those of the inputs and outputs of all layers.
    """

    layers: list[Layer]
    declined: dict[str, str]
    patches_share: float


def check_layers(
    model: nn.Module, layers: Sequence[Layer], call: Call, *, chunk_bytes: int, company: Company
) -> LayerCheck:
    """Find the layers that prove themselves on this batch; all processes find the same.

    Args:
        model: in evaluation mode.
        layers: that might.
        call: a batch.
        chunk_bytes: bound on the patches of a convolution at once.
        company: the processes.

    Cost: two forward passes of one and two examples, and three forward and backward passes of the batch at most, with
    one backward pass a layer where the model is not sharded.
    """
    one, two = call.examples(0, 1), call.examples(0, 1).picked([0, 0])
    with recorded(list(layers)) as first:
        one(unwrap(model))
    company.rest()
    with recorded(list(layers)) as second:
        two(unwrap(model))
    company.rest()
    shapes = {
        layer.weight: [[use.input.numel() for use in uses[layer.weight]] for uses in (first, second)]
        for layer in layers
    }
    often = company.union(weight for weight, (alone, _) in shapes.items() if len(alone) > 1)
    hidden = company.union(layer.weight for layer in layers if any(use.hidden for use in first[layer.weight]))
    odd = company.union(weight for weight, (alone, both) in shapes.items() if both != [2 * size for size in alone])
    left, declined = [], {}
    for layer in layers:
        if layer.weight in often:
            continue
        if layer.weight in hidden:
            declined[layer.weight] = "it is called inside a transform of torch.func, which hides its inputs"
        elif layer.weight in odd:
            declined[layer.weight] = "its inputs do not grow with the number of examples"
        else:
            left.append(layer)
    share = patches_share(left, first)
    scores = partial(random_scores, call.size)
    expected = gradient(model, call, scores)
    found = _layer_gradients(model, left, call, scores, chunk_bytes=chunk_bytes, company=company)
    if found is None:
        return LayerCheck([], declined | {layer.weight: _CHECKPOINTS for layer in left}, share)
    own = {name for layer in left for name in layer.names(layer.weight)}
    none = {name: value.new_zeros(()).expand_as(value) for name, value in expected.items() if name in own}
    wrong = mismatches({**expected, **none, **found}, expected, rtol=tolerance(model, company), company=company)
    for layer in list(left):
        if missed := [name for name in layer.names(layer.weight) if name in wrong]:
            left.remove(layer)
            declined[layer.weight] = f"the sum over its calls is not the gradient of {missed[0]!r}"
    return LayerCheck(left, declined, share)


def _layer_gradients(
    model: nn.Module, layers: Sequence[Layer], call: Call, scores: Scores, *, chunk_bytes: int, company: Company
) -> TensorMap | None:
    """Name -> sum of g a^T, what a layer's calls say the gradient of weight and bias is; none where it is zero.

    None where reentrant checkpoints hide it. Of a sharded model, this process's shard of the sum over all of them.
    """
    with recorded(list(layers)) as uses:
        rows = scores(call(unwrap(model)))
    pairs = [(layer, use) for layer in layers for use in uses[layer.weight]]
    product = partial(_product, chunk_bytes=chunk_bytes)
    found: dict[str, Tensor] = {}
    if company.is_alone:
        for layer, use in pairs:
            if use.edge is None or not rows.requires_grad:
                continue
            try:
                (g,) = torch.autograd.grad(rows.sum(), [use.edge], allow_unused=True, retain_graph=True)
            except RuntimeError as error:
                if not refuses_grad(error):
                    raise
                return None
            if g is not None:
                found |= zip(layer.names(layer.weight), layer.split(product(layer, use, gradients_of(layer, g))))
        return found
    if company.any(is_reentrant([rows])):
        company.rest()
        return None
    reached = [(layer, use, use.edge) for layer, use in pairs if use.edge is not None and rows.requires_grad]
    edges = [edge for _, _, edge in reached]
    at_outputs = torch.autograd.grad(rows.sum(), edges, allow_unused=True) if edges else ()
    behind = {layer.weight: (use, g) for (layer, use, _), g in zip(reached, at_outputs) if g is not None}
    parameters = trainable_parameters(model)
    for layer in layers:
        total = torch.zeros(layer.matrix_shape, dtype=accumulator_dtype(parameters[layer.weight]), device=rows.device)
        if layer.weight in behind:
            use, g = behind.pop(layer.weight)
            total += product(layer, use, gradients_of(layer, g))
        for name, part in zip(layer.names(layer.weight), layer.split(total)):
            found[name] = reduced_to_shards(part.contiguous(), parameters[name])
    company.rest()
    return found


def _product(layer: Layer, use: Use, g: Tensor, *, chunk_bytes: int) -> Tensor:
    """Sum over rows of g a^T, [out, in (+1)], in float32 or wider also under autocast."""
    total, done = g.new_zeros(layer.matrix_shape), 0
    with torch.autocast(g.device.type, enabled=False):
        for a in inputs_of(layer, use.input, chunk_bytes=chunk_bytes):
            total.addmm_(g[done : done + len(a)].T, a)
            done += len(a)
    return total
