"""What Kronecker factors must be: of their layers' shapes, finite, symmetric, and without negative eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.curvature import blocks
from holdfast.curvature.kronecker import KroneckerFactors
from holdfast.errors import NotFiniteError, ParameterMismatchError

_ROUNDING = 1e-5
"""How far a factor may be from symmetric and positive, relative to its norm: the rounding of float32 sums."""


def check_fit(factors: Mapping[str, KroneckerFactors], where: str) -> None:
    """Raise `ParameterMismatchError` where factors do not have the shapes of their layers."""
    wrong = []
    for name, f in factors.items():
        out, inputs = f.matrix_shape
        if not (blocks.fits(f.inputs.shape, inputs) and blocks.fits(f.outputs.shape, out)):
            wrong.append(
                f"{name!r}, a weight of {tuple(f.shape)} {'without' if f.bias is None else 'with'} bias, has factors "
                f"{tuple(f.inputs.shape)} and {tuple(f.outputs.shape)}, expected {(inputs, inputs)} and {(out, out)}, "
                "or as many columns as the largest of equal diagonal blocks has"
            )
    if wrong:
        raise ParameterMismatchError(f"{where}: {'; '.join(wrong)}.")


def checked(factors: Mapping[str, KroneckerFactors], where: str) -> dict[str, KroneckerFactors]:
    """The same in float32 and exactly symmetric.

    Raises:
        NotFiniteError: a factor is not finite, or has negative eigenvalues beyond rounding; every one is named.
    """
    found, bad = {}, []
    for name, f in factors.items():
        parts = {part: matrix.detach().to(torch.float32) for part, matrix in f.tensors().items()}
        symmetric = {part: _symmetric(matrix) for part, matrix in parts.items()}
        faults = {part: _first_fault(matrix, symmetric[part]) for part, matrix in parts.items()}
        bad += [f"{part} of {name!r} ({fault})" for part, fault in faults.items() if fault]
        found[name] = replace(f, **symmetric)
    if bad:
        raise NotFiniteError(
            f"{where}: factors must be finite, symmetric and without negative eigenvalues; found {', '.join(bad)}. "
            "Look for NaN in the model's weights or the data, or an overflow under half precision."
        )
    return found


def _symmetric(matrix: Tensor) -> Tensor:
    if all(torch.equal(block, block.T) for block in blocks.blocks_of(matrix)):
        return matrix
    return blocks.blockwise(lambda block: (block + block.T) / 2, matrix)


def _first_fault(matrix: Tensor, symmetric: Tensor) -> str | None:
    pairs = zip(blocks.blocks_of(matrix), blocks.blocks_of(symmetric))
    return next((fault for pair in pairs if (fault := _fault(*pair))), None)


def _fault(matrix: Tensor, symmetric: Tensor) -> str | None:
    norm = _norm(matrix)
    if not math.isfinite(norm):
        return "an entry is not finite"
    if norm == 0:
        return None
    if matrix.data_ptr() != symmetric.data_ptr() and float((matrix - symmetric).norm()) > _ROUNDING / 2 * norm:
        return "not symmetric"
    for dtype in dict.fromkeys((torch.float32, _widest(matrix))):  # what the quicker finds positive is positive
        shifted = (symmetric.to(dtype) / norm).T  # whose columns lie in memory one after the other, as LAPACK has them
        shifted.diagonal().add_(_ROUNDING)
        info = torch.zeros((), dtype=torch.int32, device=matrix.device)
        if not int(torch.linalg.cholesky_ex(shifted, out=(shifted, info)).info):  # in place: factors are large
            return None
    return "a negative eigenvalue"


def _norm(matrix: Tensor) -> float:
    """In float64 by rows, for a copy of all of it would take twice its memory."""
    return math.hypot(*(float(rows.norm(dtype=_widest(matrix))) for rows in matrix.split(256)))


def _widest(matrix: Tensor) -> torch.dtype:
    return torch.float32 if matrix.device.type == "mps" else torch.float64
