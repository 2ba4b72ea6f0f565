"""What a head is solved to: one linear map of the features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Solution:
    """Scores are phi W^T + b, a row of W and an entry of b for each class.

    Attributes:
        weight: W, float64 [C, M].
        bias: b, float64 [C].
        ridge: lambda, of a ridge regression; None of others.
        shrinkage: epsilon, of a discriminant analysis; None of others.
    """

    weight: Tensor
    bias: Tensor
    ridge: float | None = None
    shrinkage: float | None = None
