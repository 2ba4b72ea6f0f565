"""Layers that read the same input, such as the queries, keys and values of an attention, hold one basis of it.

The curvature of each is held along a common U_A, the eigenvectors of the sum of their partial traces over the outputs,
and along an own U_G with an own spectrum: its exact diagonal there. Where they have the same A, as under "expand",
each is as exact as alone. Where they have not, as under "matched", whose A weighs inputs by each layer's gradients, the
common U_A leaves out what of A is not diagonal along it; together their partial trace stays exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from holdfast.curvature.kronecker import (
    KroneckerCurvature,
    KroneckerFactors,
    eigenvectors,
    inputs_trace,
    merge_shares,
    merged,
)
from holdfast.curvature.protocol import Curvature, MeasuredLayer
from holdfast.curvature.rules import Accumulate

_L = TypeVar("_L")


def shared(layers: Mapping[str, _L]) -> dict[str, _L]:
    """The same layers, of which those that read the same input hold one tensor where they hold equal ones."""
    first: dict[Any, Tensor] = {}
    found = dict(layers)
    for name, layer in layers.items():
        if isinstance(layer, KroneckerFactors | KroneckerCurvature) and layer.reads is not None:
            part = "inputs" if isinstance(layer, KroneckerFactors) else "inputs_basis"
            own: Tensor = getattr(layer, part)
            known = first.setdefault((layer.reads, own.shape, own.dtype, own.device), own)
            if known is not own and torch.equal(known, own):
                found[name] = replace(layer, **{part: known})
    return found


def held_in(layer: Curvature, rounded: Callable[[Tensor], Tensor] | None) -> Curvature:
    """A layer with Kronecker factors in bfloat16, its spectrum by `rounded`, or without that in float32."""
    if not isinstance(layer, KroneckerCurvature) or (rounded is None) == (layer.spectrum.dtype != torch.bfloat16):
        return layer
    dtype = torch.float32 if rounded is None else torch.bfloat16
    parts = {part: value.to(dtype) for part, value in layer.tensors().items()}
    return replace(layer, **parts if rounded is None else parts | {"spectrum": rounded(layer.spectrum)})


def joined_layers(
    new: Mapping[str, MeasuredLayer],
    held: Mapping[str, Any],
    rule: Accumulate,
    *,
    num_tasks: int,
    share: float,
) -> dict[str, tuple[Curvature, Tensor]]:
    """What is held of each layer after this task, those that read the same input along one basis of it.

    Args:
        new: the task's, by weight.
        held: the `Curvature` of the tasks before, likewise.
        rule: how importances join.
        num_tasks: that were retained before.
        share: what the new importances are multiplied by.

    Raises:
        OptionError: a layer has no such rule.

    Cost: an eigendecomposition for each input and each output.
    """
    groups: dict[Any, dict[str, KroneckerFactors]] = {}
    found: dict[str, tuple[Curvature, Tensor]] = {}
    for name, layer in new.items():
        if isinstance(layer, KroneckerFactors) and layer.reads is not None:
            own = layer.like(held.get(name))
            groups.setdefault((own.reads, own.inputs.shape, own.inputs.device), {})[name] = own
        else:
            found[name] = layer.joined(held.get(name), rule, num_tasks=num_tasks, share=share)
    for group in groups.values():
        tasks: dict[str, dict[str, Any]] = {}
        for name, layer in group.items():
            before = held.get(name)
            keep, add = merge_shares(before, rule, num_tasks=num_tasks, share=share)
            tasks[name] = {"held": before, "new": layer, "keep": keep, "add": add}
        basis = eigenvectors(torch.stack([inputs_trace(**task) for task in tasks.values()]).sum(dim=0))
        merges = {name: merged(**task, inputs_basis=basis) for name, task in tasks.items()}
        curvatures = shared({name: curvature for name, (curvature, _) in merges.items()})
        found |= {name: (curvatures[name], own) for name, (_, own) in merges.items()}
    return {name: found[name] for name in new}
