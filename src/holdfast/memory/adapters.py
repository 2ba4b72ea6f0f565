"""The curvature of a frozen weight that is changed by a low-rank adapter alone.

An adapter adds s B A to a weight W. What matters is how much W matters, so the importance Omega of W is held on the
product, and not one on A and B, which have no meaning of their own (B R^-1 R A is the same adapter). With A0 and B0 the
factors when the last task was closed, the penalty is

    strength/2 sum_ij Omega_ij D_ij^2,        D = s B A - s B0 A0,

whatever A0 and B0 are: adapters that begin with a part of W (PiSSA, OLoRA) leave the rest of it in the base weight, and
the sum is what was measured.

With one factor fixed this is a quadratic in each row b of B (each column of A), whose proximal step in the optimizer's
metric M is a ridge regression of r unknowns, solved exactly. With X = s A and d = b' X - (s B0 A0)_row

    b = argmin  1/2 (b - b')^T M (b - b') + strength/2 sum_j Omega_j ((b X)_j - (s B0 A0)_j)^2
      = b' - (M/strength + G)^-1 X diag(Omega) d,        G = X diag(Omega) X^T,    r x r.

The penalty never rises by it, so that every strength from 0 to infinity is stable where the gradient step is not, and
at rest grad L + strength * grad penalty = 0 in each factor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from holdfast.curvature.rules import Accumulate, joined
from holdfast.tensors import wide_dtype

Factor = Literal["first", "second"]

_SOLVED_AT_ONCE = 2**22
"""Entries of the r x r systems, 16 MB in float32."""

_STIFFEST = 1e6
"""Systems are solved as if strength * G were no more than this times M: float32 ends there, and the rest is pinned."""


@dataclass(frozen=True)
class Adapter:
    """S B A, which is added to a weight. Kernels of a convolution count as its inputs.

    Attributes:
        name: of the weight, in the bare base model.
        names: of A and B, in the model with adapters.
        first: A, [r, in], or [r, in, kernel...].
        second: B, [out, r], or [out, r, 1...].
        scale: s.
        transposed: whether the weight is stored as [in, out].
    """

    name: str
    names: tuple[str, str]
    first: nn.Parameter
    second: nn.Parameter
    scale: float
    transposed: bool = False

    @property
    def shape(self) -> torch.Size:
        """Of the weight as it is before it may be packed into fewer bits."""
        shape = torch.Size((len(self.second), *self.first.shape[1:]))
        return shape[::-1] if self.transposed else shape

    def matrix(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as [out, in], sharing its memory where it can."""
        return weight.T if self.transposed else weight.flatten(1)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [r, in] and s B [out, r] as they are now, in float32 or wider."""
        first, second = (p.detach().flatten(1).to(wide_dtype(p)) for p in (self.first, self.second))
        return first, self.scale * second


@dataclass(frozen=True)
class AdapterCurvature:
    """What is held of one weight under its adapter.

    Attributes:
        adapter: the live factors.
        importance: Omega of all tasks, float32, >= 0, of the weight's shape.
        first: A0, [r, in].
        second: s B0, [out, r].
    """

    adapter: Adapter
    importance: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, adapter: Adapter, importance: Tensor) -> Self:
        """Of the first task: its importance, of the weight's shape, not copied where it lies beside the factors."""
        first, second = adapter.factors()
        omega = importance.to(first.device, torch.float32).contiguous()  # products of other strides round otherwise
        return cls(adapter, omega, first.clone(), second.clone())

    def joined(self, importance: Tensor, rule: Accumulate, *, num_tasks: int) -> Self:
        """After one more task than `num_tasks`, its importance of the weight's shape; held to today's product.

        Raises:
            OptionError: an unknown rule.
        """
        new = self.of(self.adapter, importance)
        return replace(new, importance=joined(self.importance, new.importance, rule, num_tasks=num_tasks))

    def rise(self) -> Tensor:
        """1/2 sum Omega D^2, zero-dimensional; a temporary of the layer's size."""
        return 0.5 * self._displacement().square_().mul_(self.adapter.matrix(self.importance)).sum()

    def pull(self, factor: Factor, strength: float, *, metric: float | Tensor) -> Tensor:
        """What the proximal step takes from a factor, the other one fixed.

        Args:
            factor: "second" for the rows of B, "first" for the columns of A.
            strength: lambda, 0..inf; infinity pins what Omega reaches.
            metric: M > 0, one number or a tensor of the factor's shape.

        Returns:
            Of the factor's shape, in float32 or wider, to be subtracted; exactly zero where Omega is.

        Cost: out * in * r (r + 1) operations, and memory for r (r + 1)/2 rows and a layer or two.
        """
        first, second = self.adapter.factors()
        omega, parameter = self.adapter.matrix(self.importance), getattr(self.adapter, factor)
        force = self._displacement().mul_(omega)
        m = torch.as_tensor(metric, dtype=force.dtype, device=force.device).expand(parameter.shape).flatten(1)
        if factor == "second":
            other = self.adapter.scale * first
            pull = ridge_pull(force @ other.T, omega, other, metric=m, strength=strength)
        else:
            pull = ridge_pull(force.T @ second, omega.T, second.T, metric=m.T, strength=strength).T
        return pull.reshape(parameter.shape)

    def diagonal(self) -> Tensor:
        """Omega, of the weight's shape."""
        return self.importance

    def to(self, device: torch.device | str) -> Self:
        """The same on another device, for the same factors."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def tensors(self) -> dict[str, Tensor]:
        """What of it is saved."""
        return {"importance": self.importance, "first": self.first, "second": self.second}

    @classmethod
    def shapes(cls, adapter: Adapter) -> dict[str, tuple[int, ...]]:
        """Those of `tensors`."""
        first, second = adapter.factors()
        return {"importance": tuple(adapter.shape), "first": tuple(first.shape), "second": tuple(second.shape)}

    def _displacement(self) -> Tensor:
        """D as (s B - s B0) A + s B0 (A - A0), without cancellation; a new tensor [out, in], laid out as Omega is."""
        first, second = self.adapter.factors()
        left, right = torch.cat([second - self.second, self.second], 1), torch.cat([first, first - self.first])
        return (right.T @ left.T).T if self.adapter.transposed else left @ right


def ridge_pull(force: Tensor, importance: Tensor, other: Tensor, *, metric: Tensor, strength: float) -> Tensor:
    """What the proximal step takes from each row: (M/strength + G)^-1 f, with G = X diag(Omega) X^T.

    Args:
        force: f = X diag(Omega) d of each row, [n, r].
        importance: Omega of each row, [n, m], >= 0.
        other: X, the other factor times s, [r, m].
        metric: M > 0, [n, r].
        strength: lambda, 0..inf.

    Returns:
        [n, r], to be subtracted from the rows; exactly zero where f is.
    """
    r = len(other)
    i, j = torch.triu_indices(r, r, device=other.device)
    pairs = (other[i] * other[j]).T
    pulls = []
    rows = max(1, _SOLVED_AT_ONCE // r**2)
    for f, omega, m in zip(force.split(rows), importance.split(rows), metric.split(rows), strict=True):
        upper = omega.to(other.dtype) @ pairs
        curvature = upper.new_empty(len(f), r, r)
        curvature[:, i, j] = upper
        curvature[:, j, i] = upper
        largest = curvature.diagonal(dim1=1, dim2=2).amax(1, keepdim=True)
        stiffness = (m / strength).maximum(largest / _STIFFEST).clamp_min(torch.finfo(m.dtype).tiny)
        root = stiffness.rsqrt()
        # (M/strength + G)^-1 = root (1 + root G root)^-1 root, whose inner matrix is never singular
        scaled = root.unsqueeze(2) * curvature * root.unsqueeze(1)
        scaled.diagonal(dim1=1, dim2=2).add_(1.0)
        solved = torch.cholesky_solve((root * f).unsqueeze(2), torch.linalg.cholesky(scaled))
        pulls.append(root * solved.squeeze(2))
    return torch.cat(pulls)
