"""The curvature of a layer in the metric of another: directions along which both are diagonal.

With M = A (x) G, A = L_A L_A^T and G = L_G L_G^T, the curvature K held of the layer becomes, in the coordinates
L_G^T W L_A in which M is the identity,

    K' = (L_A^-1 (x) L_G^-1) K (L_A^-1 (x) L_G^-1)^T.

It is held as `KroneckerCurvature` holds a sum of tasks: the eigenvectors V of its partial traces, and its exact
diagonal S in that basis. For K of one task this is exact, and (M + mu K)^-1 M d is c / (1 + mu S) along each direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.curvature import blocks
from holdfast.curvature.form import LayerForm
from holdfast.curvature.kronecker import KroneckerCurvature, KroneckerFactors, eigenvectors, turns, wide
from holdfast.curvature.protocol import Curvature, MeasuredLayer


@dataclass(frozen=True)
class RelativeCurvature(LayerForm):
    """K of one layer, whose weight and bias are one matrix [out, n], in the metric M of another measurement of it.

    Attributes:
        inputs: L_A V_A and its inverse transpose, each [n, n], or in the blocks of K: to the directions, and back.
        outputs: L_G V_G and its inverse transpose, each [out, out], likewise.
        spectrum: S [out, n], >= 0, K over M along each pair of directions.
        shape, bias, inputs_first, reads: of the layer, as `LayerForm` says.
    """

    inputs: tuple[Tensor, Tensor]
    outputs: tuple[Tensor, Tensor]
    spectrum: Tensor

    def nearer(self, displacements: Sequence[Tensor], strength: float) -> list[Tensor]:
        """(M + strength K)^-1 M d, for displacements d of the parameters from their anchors; by parameter, likewise."""
        d = self.join(*displacements)
        there, back = ([side[way].to(d) for side in (self.outputs, self.inputs)] for way in (0, 1))
        along = blocks.there(there[0], d, there[1]) / (1 + strength * self.spectrum.to(d))
        return self.split(blocks.back(back[0], along, back[1]))


def relative(held: Curvature, metric: MeasuredLayer | None, *, damping: float) -> RelativeCurvature | None:
    """What is held of a layer, in the metric of another measurement of it; None where not both have Kronecker factors.

    Args:
        held: K.
        metric: M.
        damping: > 0, as of `KroneckerFactors.damped`, so that M has an inverse. Of M in other blocks than K, what lies
            in those of K counts.

    Cost: a Cholesky and an eigendecomposition of each factor, in float64; twice the memory of what is held.
    """
    if not (isinstance(held, KroneckerCurvature) and isinstance(metric, KroneckerFactors)):
        return None
    device, damped = held.spectrum.device, metric.like(held).to(held.spectrum.device).damped(damping)
    L_A, L_G = (blocks.blockwise(torch.linalg.cholesky, wide(factor)) for factor in (damped.inputs, damped.outputs))
    U_A, U_G, S = wide(held.inputs_basis), wide(held.outputs_basis), wide(held.spectrum)
    B_A, B_G = (blocks.blockwise(_solved, L, U) for L, U in ((L_A, U_A), (L_G, U_G)))
    V_A = eigenvectors(blocks.composed(B_A, (S * blocks.squares(B_G).unsqueeze(1)).sum(dim=0)))
    V_G = eigenvectors(blocks.composed(B_G, (S * blocks.squares(B_A)).sum(dim=1)))
    spectrum = blocks.back(turns(V_G, B_G), S, turns(V_A, B_A))

    def ways(L: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        back = blocks.blockwise(lambda low, basis: torch.linalg.solve_triangular(low.T, basis, upper=True), L, V)
        return blocks.blockwise(torch.matmul, L, V).to(device, torch.float32), back.to(device, torch.float32)

    return RelativeCurvature(ways(L_A, V_A), ways(L_G, V_G), spectrum.to(device, torch.float32), **held.form)


def _solved(L: Tensor, U: Tensor) -> Tensor:
    """L^-1 U."""
    return torch.linalg.solve_triangular(L, U, upper=False)
