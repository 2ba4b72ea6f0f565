"""What a head is to be: its kind, and what its kind leaves open."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from holdfast.analytic.sums import SecondMoments
from holdfast.choices import check_choices, check_count
from holdfast.errors import OptionError

HeadKind = Literal["means", "slda", "ridge"]
"""The nearest class mean, streaming linear discriminant analysis, or ridge regression to one-hot labels."""

Ridge = float | Literal["gcv"]
"""A penalty, or by generalised cross-validation."""


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Those of `AnalyticHead`, which says what they mean.

    Raises:
        UnknownNameError: there is no such kind.
        OptionError: a value is out of its range, or belongs to another kind.
    """

    kind: HeadKind = "ridge"
    projection: int | None = None
    seed: int = 0
    ridge: Ridge = "gcv"
    shrinkage: float = 1e-4
    keep_class_sums: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        where = "AnalyticHead"
        check_count("projection", self.projection, where=where, none="the features themselves")
        check_count("seed", self.seed, where=where, least=0)
        if self.ridge != "gcv" and not (_is_number(self.ridge) and 0 < float(self.ridge) < math.inf):
            raise OptionError(f'{where}: ridge={self.ridge!r}, expected a number above 0, or "gcv".')
        if not (_is_number(self.shrinkage) and 0 <= self.shrinkage <= 1):
            raise OptionError(f"{where}: shrinkage={self.shrinkage!r}, expected a number from 0 to 1, such as 1e-4.")
        own = {"ridge": "ridge", "shrinkage": "slda"}
        for option in fields(self):
            if own.get(option.name, self.kind) != self.kind and getattr(self, option.name) != option.default:
                raise OptionError(
                    f"{where}: {option.name} has no effect with kind={self.kind!r}; it belongs to "
                    f"kind={own[option.name]!r}. Leave it out."
                )

    @property
    def second(self) -> SecondMoments:
        """Which second moments its sums keep."""
        if self.kind == "means":
            return "none"
        return "apart" if self.keep_class_sums else "pooled"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
