"""The curvature of a frozen weight that is changed by a low-rank adapter alone.

An adapter adds s B A to a weight W. What counts is how much W matters, so the importance Omega of W is held on the
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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from holdfast.curvature.protocol import Line
from holdfast.curvature.rules import Accumulate, joined
from holdfast.errors import FileFormatError, OptionError

_SOLVED_AT_ONCE = 2**22
"""Entries of the r x r systems, 16 MB in float32."""

_STIFFEST = 1e6
"""Systems are solved as if strength * G were no more than this times M: float32 ends there, and the rest is pinned."""


@dataclass(frozen=True)
class AdapterCurvature:
    """What is held of one weight under its adapter s B A; measured on one task it is the same.

    Its parameters are A [r, in] and B [out, r]; those of convolutions have kernels, which count as inputs. Either may
    be frozen.

    Attributes:
        importance: Omega, float32, >= 0, of the weight's shape.
        weight: name of the weight, in the bare base model.
        second: name of B, in the model with adapters; the layer itself has the name of A.
        scale: s.
        factor_shapes: of A and of B.
        transposed: whether the weight is stored as [in, out].
    """

    PARTS: ClassVar[tuple[str, ...]] = ("importance",)
    has_directions: ClassVar[bool] = False

    importance: Tensor
    weight: str
    second: str
    scale: float
    factor_shapes: tuple[tuple[int, ...], tuple[int, ...]]
    transposed: bool = False

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """See `Group`."""
        return dict(zip((name, self.second), self.factor_shapes))

    @property
    def spectrum(self) -> Tensor:
        """Omega."""
        return self.importance

    def diagonal(self) -> Tensor:
        """Omega, of the weight's shape."""
        return self.importance

    def joined(
        self, held: AdapterCurvature | None, rule: Accumulate, *, num_tasks: int, share: float
    ) -> tuple[AdapterCurvature, Tensor]:
        """See `MeasuredLayer`.

        Raises:
            OptionError: an unknown rule, or "per_task".
        """
        check_low_rank(rule, where="retain")
        own = self.importance if share == 1 else share * self.importance
        total = own if held is None else joined(held.importance, own, rule, num_tasks=num_tasks)
        return replace(self, importance=total), own

    def scaled(self, factor: float) -> Self:
        """See `Curvature`."""
        return replace(self, importance=factor * self.importance)

    def rise(self, values: Sequence[Tensor], anchors: Sequence[Tensor]) -> Tensor:
        """1/2 sum Omega D^2; temporaries of the layer's size."""
        return 0.5 * (self._matrix(self.importance) * self._displacement(values, anchors).square()).sum()

    def gradient(self, values: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Tensor]:
        """Of the rise: s B^T F for A and s F A^T for B, F = Omega D."""
        A, sB = self._factors(values)
        F = self._displacement(values, anchors) * self._matrix(self.importance)
        return [(sB.T @ F).reshape(values[0].shape), (self.scale * F @ A.T).reshape(values[1].shape)]

    def pull(
        self,
        values: Sequence[Tensor],
        anchors: Sequence[Tensor],
        strength: float,
        *,
        metrics: Sequence[float | Tensor],
        before: Tensor | None,
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """See `Curvature`: the exact proximal step of B, and then that of A with the new B.

        Cost: out * in * r (r + 1) operations a factor, and memory for r (r + 1)/2 rows and a layer or two.
        """
        now = list(values)
        for index in (1, 0):
            if isinstance(metrics[index], Tensor) or metrics[index] != math.inf:  # else it does not move
                taken = self._taken(now, anchors, strength, metrics[index], of_second=index == 1)
                now[index] = now[index] - taken.reshape(now[index].shape)
        return [new - old for new, old in zip(now, values, strict=True)], self.importance.new_empty(0), None

    def _taken(
        self,
        values: Sequence[Tensor],
        anchors: Sequence[Tensor],
        strength: float,
        metric: float | Tensor,
        *,
        of_second: bool,
    ) -> Tensor:
        """What the proximal step takes from B, or from A, as a matrix."""
        A, sB = self._factors(values)
        omega = self._matrix(self.importance)
        force = self._displacement(values, anchors).mul_(omega)
        shape = self.factor_shapes[of_second]
        m = torch.as_tensor(metric, dtype=force.dtype, device=force.device).expand(shape).flatten(1)
        if of_second:
            other = self.scale * A
            return ridge_pull(force @ other.T, omega, other, metric=m, strength=strength)
        return ridge_pull(force.T @ sB, omega.T, sB.T, metric=m.T, strength=strength).T

    def line(self, values: Sequence[Tensor], anchors: Sequence[Tensor], metrics: Sequence[float | Tensor]) -> Line:
        """Never: a product of factors goes along no directions of its own."""
        raise OptionError("the product of an adapter's factors goes along no directions of its own. Give a strength.")

    def collapsed(
        self, own: Tensor, theta: Sequence[Tensor], mean: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Never: `joined` refuses the rule."""
        raise AssertionError("adapters have no anchors that are joined weight by weight")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """On another device; Omega stays float32, and the factors' dtype is computed in."""
        # products of other strides round otherwise
        return replace(self, importance=self.importance.to(device, torch.float32).contiguous())

    def tensors(self) -> dict[str, Tensor]:
        """See `Curvature`."""
        return {part: getattr(self, part) for part in self.PARTS}

    @property
    def form(self) -> dict[str, Any]:
        """See `Curvature`."""
        names = ("weight", "second", "scale", "factor_shapes", "transposed")
        return {"shape": tuple(self.importance.shape), **{name: getattr(self, name) for name in names}}

    @classmethod
    def described(
        cls, form: Any, parts: Mapping[str, Tensor], *, name: str, where: str
    ) -> tuple[Self, dict[str, tuple[int, ...]]]:
        """The layer of which a file has this form and these tensors, and the shapes that they should have.

        Raises:
            FileFormatError: the form is damaged.
        """
        try:
            shapes = tuple(tuple(int(n) for n in shape) for shape in form["factor_shapes"])
            first, second = shapes
            weight = (*second[:1], *first[1:])
            texts = form["weight"], form["second"]
            transposed, scale = form["transposed"], float(form["scale"])
            if not (all(isinstance(text, str) for text in texts) and isinstance(transposed, bool)):
                raise TypeError("a name is no text")
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{where}: the form of {name!r} is damaged ({form!r:.80}). Save it again.") from error
        layer = cls(parts["importance"], *texts, scale, (first, second), transposed)
        return layer, {"importance": weight[::-1] if transposed else weight}

    def _matrix(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as [out, in], sharing its memory where it can."""
        return weight.T if self.transposed else weight.flatten(1)

    def _factors(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A [r, in] and s B [out, r]."""
        return values[0].flatten(1), self.scale * values[1].flatten(1)

    def _displacement(self, values: Sequence[Tensor], anchors: Sequence[Tensor]) -> Tensor:
        """d as (s B - s B0) A + s B0 (A - A0), without cancellation; a new tensor [out, in], laid out as Omega is."""
        (A, sB), (A0, sB0) = self._factors(values), self._factors(anchors)
        left, right = torch.cat([sB - sB0, sB0], 1), torch.cat([A, A - A0])
        return (right.T @ left.T).T if self.transposed else left @ right


def check_low_rank(rule: Accumulate, *, where: str) -> None:
    """Raise `OptionError` for a rule whose anchors would be no product of an adapter's factors."""
    if rule == "per_task":
        raise OptionError(
            f'{where}: accumulate is "per_task", and anchors that are joined weight by weight are no product of low '
            'rank. Use "sum", "mean", "max" or Decayed(gamma).'
        )


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
