"""The sums over examples that every analytic head is solved from: counts, sums and second moments, class by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from holdfast.errors import OptionError

SecondMoments = Literal["none", "pooled", "apart"]
"""Which second moments are kept: none, one for all classes together, or one for each."""

TOLERANCE = 1e-6
"""Features that are given again to be forgotten may be off by so much of their size, as float32 rounds them."""


@dataclass
class ClassSums:
    """Sums over the examples of each class, in float64: they add up in any order, and can be taken back.

        n_c = sum 1,   s_c = sum phi_i,   G_c = sum phi_i phi_i^T   (over the examples i of class c)

    Attributes:
        second: which G are kept: none, G = sum_c G_c ("pooled"), or each G_c ("apart").
        counts: n_c by class.
        sums: s_c by class, float64 [M].
        grams: by class float64 [M, M], where they are kept apart.
        pooled: G, float64 [M, M], where it is kept so; None before the first example.
    """

    second: SecondMoments
    counts: dict[int, int] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)
    grams: dict[int, Tensor] = field(default_factory=dict)
    pooled: Tensor | None = None

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that have examples, ascending."""
        return tuple(sorted(self.counts))

    @property
    def n(self) -> Tensor:
        """The counts n_c in the order of `classes`, float64 [C]."""
        counts = [self.counts[c] for c in self.classes]
        return torch.tensor(counts, dtype=torch.float64, device=self.s.device)

    @property
    def s(self) -> Tensor:
        """The sums s_c in the order of `classes`, float64 [C, M]."""
        return torch.stack([self.sums[c] for c in self.classes])

    @property
    def G(self) -> Tensor:
        """The second moments of all examples, float64 [M, M].

        Kept apart, they are added in the order of `classes`, and hang on nothing but the classes that are there.
        """
        if self.pooled is not None:
            return self.pooled
        return torch.stack([self.grams[c] for c in self.classes]).sum(0)

    def add(self, phi: Tensor, labels: Tensor) -> None:
        """Count examples.

        Args:
            phi: float64 [B, M].
            labels: int64 [B], on the same device.

        Cost: B M^2 multiplications, and B M where no second moments are kept.
        """
        found, of = labels.unique(return_inverse=True)
        member = torch.nn.functional.one_hot(of, len(found)).to(phi.dtype)  # a product, and no atomic sum: same bits
        sums = member.T @ phi
        for k, c in enumerate(found.tolist()):
            grams = {c: _gram(phi[of == k])} if self.second == "apart" else {}
            self._put(c, int(member[:, k].sum()), sums[k], grams)
        if self.second == "pooled" and len(phi):
            self._pool(_gram(phi))

    def merge(self, other: ClassSums, *, device: torch.device) -> None:
        """Count the examples of other sums of the same kind and width, too; the sums here are on that device."""
        for c in other.classes:
            self._put(c, other.counts[c], other.sums[c].to(device), {k: G.to(device) for k, G in other.grams.items()})
        if other.pooled is not None:
            self._pool(other.pooled.to(device))

    def drop(self, c: int) -> None:
        """Leave a class out; what is pooled stays."""
        del self.counts[c], self.sums[c]
        self.grams.pop(c, None)

    def take_back(self, c: int, phi: Tensor) -> None:
        """Leave a class out of sums that pool second moments, by its own examples.

            G <- G - sum phi_i phi_i^T

        Args:
            c: the class.
            phi: float64 [n_c, M], of all its examples.

        Raises:
            OptionError: these are not the examples that were added; nothing is changed then. Told are another number, a
                sum that differs by more than `TOLERANCE` of its size, and second moments that leave less than nothing
                for the other classes (a negative pivot).

        Cost: n_c M^2 + M^3 / 3 multiplications, and two copies of G for the time being.
        """
        where, pooled = f"AnalyticHead.forget: class {c}", self.G
        if len(phi) != self.counts[c]:
            raise OptionError(
                f"{where}: found {len(phi)} features; {self.counts[c]} were added. Give each of them once more: a "
                "class is forgotten whole."
            )
        off, size = (phi.sum(0) - self.sums[c]).norm(), phi.norm(dim=1).sum()
        if not off <= TOLERANCE * size:
            raise OptionError(
                f"{where}: these are not the features that were added: their sum is another by {float(off):.3g}, of "
                f"{float(size):.3g}. Give those of the same examples, from the same backbone."
            )
        left = pooled - _gram(phi)
        others = {one: self.counts[one] for one in self.classes if one != c}
        slack = TOLERANCE * pooled.trace()
        within = left - _between(others, self.sums) if others else left
        _, failed = torch.linalg.cholesky_ex(plus_identity(within, slack))
        if int(failed) or (not others and bool(left.trace() > slack)):
            raise OptionError(
                f"{where}: these are not the features that were added: without their second moments a negative pivot "
                "is left, or something where nothing should be. Give those of the same examples, from the same "
                "backbone."
            )
        self.drop(c)
        self.pooled = left if others else None

    def to(self, device: torch.device | str) -> None:
        """Go to another device."""
        self.sums = {c: value.to(device) for c, value in self.sums.items()}
        self.grams = {c: value.to(device) for c, value in self.grams.items()}
        self.pooled = None if self.pooled is None else self.pooled.to(device)

    def _put(self, c: int, count: int, total: Tensor, grams: Mapping[int, Tensor]) -> None:
        self.counts[c] = self.counts.get(c, 0) + count
        self.sums[c] = self.sums[c] + total if c in self.sums else total.clone()
        if c in grams:
            self.grams[c] = self.grams[c] + grams[c] if c in self.grams else grams[c].clone()

    def _pool(self, gram: Tensor) -> None:
        self.pooled = gram.clone() if self.pooled is None else self.pooled + gram


def scatter(sums: ClassSums) -> Tensor:
    """The scatter of all examples around the means of their classes, float64 [M, M].

        W = sum_c sum_i (phi_i - mu_c)(phi_i - mu_c)^T = G - sum_c s_c s_c^T / n_c

    It is a difference, and of W's entries a relative rounding error of about 1e-16 mu^2 / var stays.
    """
    return sums.G - _between(sums.counts, sums.sums)


def plus_identity(matrix: Tensor, times: Tensor | float) -> Tensor:
    """A + k I, a copy."""
    return torch.diagonal_scatter(matrix, matrix.diagonal() + times)


def _between(counts: Mapping[int, int], sums: Mapping[int, Tensor]) -> Tensor:
    """The sum over classes of s_c s_c^T / n_c."""
    rows = torch.stack([sums[c] / counts[c] ** 0.5 for c in sorted(counts)])
    return rows.T @ rows


def _gram(phi: Tensor) -> Tensor:
    return phi.T @ phi
