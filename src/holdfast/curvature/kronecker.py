"""What is held of a layer's Kronecker factors: a common eigenbasis, and the curvature along each of its directions.

A sum of Kronecker products K = sum_k A_k (x) G_k is not one, and has no eigenbasis that is one. It is held as

    K ~ (U_A (x) U_G) diag(S) (U_A (x) U_G)^T,

U_A and U_G the eigenvectors of its partial traces sum_k Tr(G_k) A_k and sum_k Tr(A_k) G_k, and S [out, in] its exact
diagonal in that basis: the best such approximation for these U. It is exact for one task, has the partial traces of the
true sum after any number of tasks, and costs what one task costs.

Layers that read the same input hold one U_A, of the sum of their partial traces (`holdfast.curvature.sharing`).

Of a wide layer A, G, U_A and U_G may be block-diagonal; all of this is then the same, and `holdfast.curvature.blocks`
says how such matrices are held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from holdfast.curvature import blocks
from holdfast.curvature.form import LayerForm, read_form
from holdfast.curvature.implicit import largest_metric, layer_pull
from holdfast.curvature.protocol import Line
from holdfast.curvature.rules import Accumulate, shares_of

_SMALLEST = 1e-6
"""Eigenvalues of a factor below this share of its largest are rounding, and count as zero."""


@dataclass(frozen=True)
class KroneckerCurvature(LayerForm):
    """The curvature held of one layer, whose weight and bias are one matrix [out, in (+1)].

    Attributes:
        inputs_basis: U_A, float32 [n, n], or [n, b] in blocks, orthogonal; a direction a column. All three may be
            bfloat16, and U_A and U_G are then orthogonal but for its rounding, about 0.003 in every direction: pulls
            end that much beside where they should, and what they leave may have the other sign.
        outputs_basis: U_G, float32 [out, out], or in blocks, likewise.
        spectrum: S, float32 [out, n], >= 0: the curvature along each pair of directions.
        shape, bias, inputs_first, reads: of the layer, as `LayerForm` says.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("inputs_basis", "outputs_basis", "spectrum")
    has_directions: ClassVar[bool] = True

    inputs_basis: Tensor
    outputs_basis: Tensor
    spectrum: Tensor

    @classmethod
    def described(
        cls, form: Any, parts: Mapping[str, Tensor], *, name: str, where: str
    ) -> tuple[Self, dict[str, tuple[int, ...]]]:
        """The layer of which a file has this form and these tensors, and the shapes that they should have.

        Raises:
            FileFormatError: the form is damaged.
        """
        found = read_form(form, name=name, where=where)
        out, n = LayerForm(**found).matrix_shape
        inputs, outputs = (blocks.expected_shape(parts[part], size) for part, size in zip(cls.PARTS, (n, out)))
        return cls(**parts, **found), dict(zip(cls.PARTS, [inputs, outputs, (out, n)]))

    def coordinates(self, matrix: Tensor) -> Tensor:
        """U_G^T W U_A: a displacement [out, n] of the layer in the common basis."""
        return blocks.there(self.outputs_basis.to(matrix.dtype), matrix, self.inputs_basis.to(matrix.dtype))

    def matrix(self, coordinates: Tensor) -> Tensor:
        """The inverse of `coordinates`."""
        U_G, U_A = (basis.to(coordinates.dtype) for basis in (self.outputs_basis, self.inputs_basis))
        return blocks.back(U_G, coordinates, U_A)

    def quadratic(self, displacement: Tensor) -> Tensor:
        """1/2 sum D * K(D) >= 0 for a displacement D [out, n]; a scalar, differentiable."""
        return 0.5 * (self.spectrum * self.coordinates(displacement).square()).sum()

    def rise(self, values: Sequence[Tensor], anchors: Sequence[Tensor]) -> Tensor:
        """See `Curvature`."""
        return self.quadratic(self.distance(values, anchors))

    def gradient(self, values: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Tensor]:
        """See `Curvature`."""
        return self.split(self.matrix(self.spectrum * self.coordinates(self.distance(values, anchors))))

    def pull(
        self,
        values: Sequence[Tensor],
        anchors: Sequence[Tensor],
        strength: float,
        *,
        metrics: Sequence[float | Tensor],
        before: Tensor | None,
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """See `Curvature` and `layer_pull`."""
        metric = self.metric(values, metrics)
        pull, share = layer_pull(self.distance(values, anchors), self, strength, metric=metric, before=before)
        return self.split(pull), share, pull if isinstance(metric, Tensor) else None

    def line(self, values: Sequence[Tensor], anchors: Sequence[Tensor], metrics: Sequence[float | Tensor]) -> Line:
        """See `Curvature`; along its basis, in one number that is nowhere below the metric."""
        metric = largest_metric(self.metric(values, metrics))
        along = self.coordinates(self.distance(values, anchors))
        return along, self.spectrum.to(along.dtype), metric

    def collapsed(
        self, own: Tensor, theta: Sequence[Tensor], mean: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """See `Curvature`: m' = m + K'^-1 F (theta - m), along the directions of the common basis."""
        start = self.join(*mean)
        way = self.coordinates(self.join(*theta) - start)
        share = torch.where(self.spectrum > 0, own / self.spectrum, torch.ones_like(own))
        cost = 0.5 * ((self.spectrum - own).clamp(min=0) * share * way.square()).sum()
        rise = self.quadratic(self.matrix((1 - share) * way))
        return self.split(start + self.matrix(share * way)), cost, rise

    def distance(self, values: Sequence[Tensor], anchors: Sequence[Tensor]) -> Tensor:
        """d = W - anchor, [out, n]."""
        return self.join(*values) - self.join(*anchors)

    def metric(self, values: Sequence[Tensor], metrics: Sequence[float | Tensor]) -> float | Tensor:
        """Of the whole layer: one number, or a tensor [out, n]."""
        first = metrics[0]
        if not isinstance(first, Tensor) and all(not isinstance(m, Tensor) and m == first for m in metrics):
            return first
        parts = [m if isinstance(m, Tensor) else torch.full_like(v, m) for m, v in zip(metrics, values, strict=True)]
        return self.join(*(part.to(values[0].dtype) for part in parts))

    def diagonal(self) -> Tensor:
        """The diagonal of K, [out, n]."""
        U_G, S, U_A = (
            part.to(torch.promote_types(part.dtype, torch.float32))
            for part in (self.outputs_basis, self.spectrum, self.inputs_basis)
        )
        return blocks.back(U_G.square(), S, U_A.square())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same on another device, to compute in another dtype; what is held in bfloat16 stays so."""
        narrow = self.spectrum.dtype == torch.bfloat16
        wanted = None if narrow else dtype
        return replace(self, **{part: value.to(device=device, dtype=wanted) for part, value in self.tensors().items()})

    def scaled(self, factor: float) -> Self:
        """What is held of factor * K."""
        return replace(self, spectrum=factor * self.spectrum)

    def tensors(self) -> dict[str, Tensor]:
        """Part -> tensor, for a file."""
        return {part: getattr(self, part) for part in self.PARTS}


@dataclass(frozen=True)
class KroneckerFactors(LayerForm):
    """The curvature A (x) G of one layer, whose weight and bias are one matrix W [out, in (+1)].

    For a displacement D of that matrix the quadratic form is sum D * (G D A), twice the predicted rise.

    Attributes:
        inputs: A, float32 [n, n], n the inputs of one output unit (for a convolution channels times kernel size, in
            the order of the flattened weight) and, where there is a bias, one more at the end that is always 1. Of a
            wide layer [n, b]: its diagonal blocks of at most b inputs, one below the other, the rest of A being zero.
        outputs: G, float32 [out, out]; of a wide layer likewise.
        shape, bias, inputs_first, reads: of the layer, as `LayerForm` says.
    """

    has_directions: ClassVar[bool] = True

    inputs: Tensor
    outputs: Tensor

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> KroneckerFactors:
        """The same on another device or in another dtype."""
        return replace(self, inputs=self.inputs.to(device, dtype), outputs=self.outputs.to(device, dtype))

    def tensors(self) -> dict[str, Tensor]:
        """Part -> tensor, for a file."""
        return {"inputs": self.inputs, "outputs": self.outputs}

    def scaled(self, factor: float) -> KroneckerFactors:
        """Of factor * A (x) G."""
        return replace(self, outputs=factor * self.outputs)

    def damped(self, damping: float) -> KroneckerFactors:
        """(A + damping tr(A)/n I) (x) (G + damping tr(G)/out I): every direction has some curvature.

        A share of the mean eigenvalue, so that it does not depend on the units of inputs and gradients. What lies below
        1e-6 of a factor's largest eigenvalue counts as rounding when it is retained, also if it is damping.
        """
        return replace(self, inputs=_damped(self.inputs, damping), outputs=_damped(self.outputs, damping))

    def joined(
        self, held: KroneckerCurvature | None, rule: Accumulate, *, num_tasks: int, share: float
    ) -> tuple[KroneckerCurvature, Tensor]:
        """What is held after this task; see `MeasuredLayer`. Blocks stay those that are held."""
        keep, add = merge_shares(held, rule, num_tasks=num_tasks, share=share)
        return merged(held, self.like(held), keep=keep, add=add)

    def like(self, held: KroneckerCurvature | None) -> KroneckerFactors:
        """What of it lies in the blocks of what is held; itself where they are the same."""
        if held is None:
            return self
        inputs, outputs = (basis.shape[1] for basis in (held.inputs_basis, held.outputs_basis))
        if (inputs, outputs) == (self.inputs.shape[1], self.outputs.shape[1]):
            return self
        parts = blocks.reblocked(self.inputs, inputs), blocks.reblocked(self.outputs, outputs)
        return replace(self, inputs=parts[0], outputs=parts[1])

    def trace(self) -> float:
        """Tr A Tr G: the sum of the diagonal over all weights of the layer."""
        return float(blocks.trace(self.inputs.double()) * blocks.trace(self.outputs.double()))


def merge_shares(
    held: KroneckerCurvature | None, rule: Accumulate, *, num_tasks: int, share: float
) -> tuple[float, float]:
    """`keep` and `add` of `merged`; see `MeasuredLayer.joined`."""
    keep, add = shares_of(rule, num_tasks=num_tasks)
    return keep, share if held is None else share * add


def merged(
    held: KroneckerCurvature | None,
    new: KroneckerFactors,
    *,
    keep: float = 1.0,
    add: float = 1.0,
    inputs_basis: Tensor | None = None,
) -> tuple[KroneckerCurvature, Tensor]:
    """What is held of keep * K + add * A (x) G, K what is held.

    Args:
        held: K; None for the first task.
        new: A and G, in the blocks of what is held.
        keep: factor >= 0 of what is held.
        add: factor >= 0 of the new.
        inputs_basis: U_A, float64, where other layers have a say in it; None for the eigenvectors of `inputs_trace`.

    Returns:
        What is held now, and the share of its spectrum that is the new task's, [out, n].

    Cost: two eigendecompositions and a few products of the factors' size; in float64.
    """
    A, G = wide(new.inputs), add * wide(new.outputs)
    if held is None:
        U_A, U_G = (blocks.blockwise(_identity, M) for M in (A, G))
        S = A.new_zeros(len(G), len(A))
    else:
        U_A, U_G, S = wide(held.inputs_basis), wide(held.outputs_basis), keep * wide(held.spectrum)
    outputs = blocks.trace(A) * G + blocks.composed(U_G, S.sum(dim=1))
    if inputs_basis is None:
        inputs_basis = eigenvectors(inputs_trace(held, new, keep=keep, add=add))
    outputs_basis = eigenvectors(outputs)
    own = torch.outer(_along(outputs_basis, G), _along(inputs_basis, A))
    spectrum = own + blocks.back(turns(outputs_basis, U_G), S, turns(inputs_basis, U_A))
    device = new.inputs.device
    # contiguous: products of other strides round otherwise, and files keep no strides
    parts = (part.to(device, torch.float32).contiguous() for part in (inputs_basis, outputs_basis, spectrum))
    return KroneckerCurvature(*parts, **new.form), own.to(device, torch.float32)


def eigenvectors(matrix: Tensor) -> Tensor:
    """Of a symmetric matrix, a column each; of one in blocks those of its blocks."""
    return blocks.blockwise(lambda block: torch.linalg.eigh(block)[1], matrix)


def inputs_trace(
    held: KroneckerCurvature | None, new: KroneckerFactors, *, keep: float = 1.0, add: float = 1.0
) -> Tensor:
    """sum_k Tr(G_k) A_k of what `merged` gives, [n, n] in float64: where the curvature is among the inputs."""
    total = add * blocks.trace(wide(new.outputs)) * wide(new.inputs)
    if held is None:
        return total
    U_A = wide(held.inputs_basis)
    return total + blocks.composed(U_A, (keep * wide(held.spectrum)).sum(dim=0))


def _identity(block: Tensor) -> Tensor:
    return torch.eye(len(block), dtype=block.dtype, device=block.device)


def _damped(factor: Tensor, damping: float) -> Tensor:
    found, more = factor.clone(), damping * blocks.diagonal(factor).mean()
    for block in blocks.blocks_of(found):
        block.diagonal().add_(more)
    return found


def turns(basis: Tensor, held: Tensor) -> Tensor:
    """The squares of V^T U: the share of each old direction along each new one."""
    return blocks.blockwise(lambda V, U: (V.T @ U).square(), basis, held)


def _along(basis: Tensor, factor: Tensor) -> Tensor:
    """The diagonal of U^T F U, >= 0."""
    found = blocks.curvatures(basis, factor)
    return torch.where(found > _SMALLEST * found.max(), found, 0.0)


def wide(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    tensor = tensor.detach()
    return tensor.double() if tensor.device.type != "mps" else tensor.cpu().double()
