"""What is held of a layer's Kronecker factors: a common eigenbasis, and the curvature along each of its directions.

A sum of Kronecker products K = sum_k A_k (x) G_k is not one, and has no eigenbasis that is one. It is held as

    K ~ (U_A (x) U_G) diag(S) (U_A (x) U_G)^T,

U_A and U_G the eigenvectors of its partial traces sum_k Tr(G_k) A_k and sum_k Tr(A_k) G_k, and S [out, in] its exact
diagonal in that basis: the best such approximation for these U. It is exact for one task, has the partial traces of the
true sum after any number of tasks, and costs what one task costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import FileFormatError, NotFiniteError
from holdfast.factored import KroneckerFactors
from holdfast.layers import LayerForm, read_form
from holdfast.tensors import TensorMap, sum_of

_SMALLEST = 1e-6
"""Eigenvalues of a factor below this share of its largest are rounding, and count as zero."""

LayerShares = dict[str, "tuple[HeldLayer, Tensor | None]"]
"""Weight -> what is held of its layer, and the part of its spectrum of the newest task, None without one."""

_PARTS = ("inputs_basis", "outputs_basis", "spectrum")


@dataclass(frozen=True)
class HeldLayer(LayerForm):
    """The curvature held of one layer, whose weight and bias are one matrix [out, in (+1)].

    Attributes:
        inputs_basis: U_A, float32 [n, n], orthogonal; a direction a column.
        outputs_basis: U_G, float32 [out, out], likewise.
        spectrum: S, float32 [out, n], >= 0: the curvature along each pair of directions.
        shape, bias, inputs_first: of the layer, as `LayerForm` says.
    """

    inputs_basis: Tensor
    outputs_basis: Tensor
    spectrum: Tensor

    def coordinates(self, matrix: Tensor) -> Tensor:
        """U_G^T W U_A: a displacement [out, n] of the layer in the common basis."""
        return self.outputs_basis.T @ matrix @ self.inputs_basis

    def matrix(self, coordinates: Tensor) -> Tensor:
        """The inverse of `coordinates`."""
        return self.outputs_basis @ coordinates @ self.inputs_basis.T

    def rise(self, displacement: Tensor) -> Tensor:
        """1/2 sum D * K(D) >= 0 for a displacement D [out, n]; a scalar, differentiable."""
        return 0.5 * (self.spectrum * self.coordinates(displacement).square()).sum()

    def diagonal(self) -> Tensor:
        """The diagonal of K, [out, n]."""
        return self.outputs_basis.square() @ self.spectrum @ self.inputs_basis.square().T

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> HeldLayer:
        """The same on another device or in another dtype."""
        moved = (getattr(self, part).to(device=device, dtype=dtype) for part in _PARTS)
        return HeldLayer(*moved, **self.form)


def merged(
    held: HeldLayer | None, new: KroneckerFactors, *, keep: float = 1.0, add: float = 1.0
) -> tuple[HeldLayer, Tensor]:
    """What is held of keep * K + add * A (x) G, K what is held.

    Args:
        held: K; None for the first task.
        new: A and G.
        keep: factor >= 0 of what is held.
        add: factor >= 0 of the new.

    Returns:
        What is held now, and the share of its spectrum that is the new task's, [out, n].

    Cost: two eigendecompositions and a few products of the factors' size; in float64.
    """
    A, G = _wide(new.inputs), add * _wide(new.outputs)
    inputs, outputs = G.trace() * A, A.trace() * G
    if held is None:
        U_A, U_G = torch.eye(len(A)).to(A), torch.eye(len(G)).to(G)
        S = A.new_zeros(len(G), len(A))
    else:
        U_A, U_G, S = _wide(held.inputs_basis), _wide(held.outputs_basis), keep * _wide(held.spectrum)
    inputs = inputs + (U_A * S.sum(dim=0)) @ U_A.T
    outputs = outputs + (U_G * S.sum(dim=1)) @ U_G.T
    inputs_basis, outputs_basis = torch.linalg.eigh(inputs)[1], torch.linalg.eigh(outputs)[1]
    own = torch.outer(_along(outputs_basis, G), _along(inputs_basis, A))
    spectrum = own + (outputs_basis.T @ U_G).square() @ S @ (inputs_basis.T @ U_A).square().T
    device = new.inputs.device
    # contiguous: products of other strides round otherwise, and files keep no strides
    parts = (part.to(device, torch.float32).contiguous() for part in (inputs_basis, outputs_basis, spectrum))
    return HeldLayer(*parts, **new.form), own.to(device, torch.float32)


def scaled(held: HeldLayer, factor: float) -> HeldLayer:
    """What is held of factor * K."""
    return replace(held, spectrum=factor * held.spectrum)


def join_layers(
    held: Mapping[str, HeldLayer], new: Mapping[str, KroneckerFactors], *, keep: float, add: float, first: float
) -> LayerShares:
    """What is held of all layers: keep * K + add * A (x) G, and first * A (x) G of a layer that is new."""
    found: LayerShares = {name: (scaled(layer, keep), None) for name, layer in held.items() if name not in new}
    for name, factors in new.items():
        found[name] = merged(held.get(name), factors, keep=keep, add=add if name in held else first)
    return found


def collapse_layers(
    layers: LayerShares, held: Mapping[str, HeldLayer], *, means: TensorMap, anchors: dict[str, Tensor]
) -> tuple[float, float]:
    """Move `anchors` from theta to m' = m + K'^-1 F (theta - m) in place, along the directions of the common basis.

    Returns:
        What separate anchors cost for good, and the rise at theta, as for diagonals.
    """
    costs, rises = [], []
    for name, (layer, own) in layers.items():
        if name not in held:
            continue
        names = layer.names(name)
        theta, mean = (layer.join(*(tensors[n].float() for n in names)) for tensors in (anchors, means))
        way = layer.coordinates(theta - mean)
        part = torch.zeros_like(way) if own is None else own
        share = torch.where(layer.spectrum > 0, part / layer.spectrum, torch.ones_like(part))
        costs.append(0.5 * ((layer.spectrum - part).clamp(min=0) * share * way.square()).sum())
        rises.append(layer.rise(layer.matrix((1 - share) * way)))
        for n, moved in zip(names, layer.split(mean + layer.matrix(share * way))):
            anchors[n] = moved.to(anchors[n])
    return sum_of(costs), sum_of(rises)


def layers_to_json(layers: Mapping[str, HeldLayer]) -> dict[str, Any]:
    """The fields that are no tensors, as JSON values."""
    return {name: layer.form for name, layer in layers.items()}


def layers_to_tensors(layers: Mapping[str, HeldLayer]) -> dict[str, Tensor]:
    """The fields that are tensors, by "weight/part"."""
    return {f"{name}/{part}": getattr(layer, part) for name, layer in layers.items() for part in _PARTS}


def layers_from(described: Any, tensors: Mapping[str, Tensor], *, where: str) -> dict[str, HeldLayer]:
    """What `layers_to_json` and `layers_to_tensors` gave.

    Raises:
        FileFormatError: they do not fit each other.
        NotFiniteError: an entry is not finite, or a curvature is negative.
    """
    known = described if isinstance(described, dict) else {}
    if {f"{name}/{part}" for name in known for part in _PARTS} != set(tensors):
        raise FileFormatError(f"{where}: 'factors' does not list the layers of factors.safetensors. Save it again.")
    layers = {}
    for name, entry in known.items():
        form = read_form(entry, name=name, where=where)
        parts = [tensors[f"{name}/{part}"] for part in _PARTS]
        out, n = LayerForm(**form).matrix_shape
        if [tuple(part.shape) for part in parts] != [(n, n), (out, out), (out, n)]:
            shape = list(form["shape"])
            raise FileFormatError(f"{where}: the tensors of {name!r} do not fit its shape {shape}. Save it again.")
        if not all(torch.isfinite(part).all() for part in parts) or (parts[2] < 0).any():
            raise NotFiniteError(
                f"{where}: the factors of {name!r} hold entries that are not finite, or negative ones."
            )
        layers[name] = HeldLayer(*parts, **form)
    return layers


def _along(basis: Tensor, factor: Tensor) -> Tensor:
    """The diagonal of U^T F U, >= 0."""
    found = ((basis.T @ factor) * basis.T).sum(dim=1)
    return torch.where(found > _SMALLEST * found.max(), found, 0.0)


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.double() if tensor.device.type != "mps" else tensor.cpu().double()
