"""Heads that are solved from sums: new classes without old data, on features that stay as they are."""

from holdfast.analytic.features import features_of
from holdfast.analytic.head import AnalyticHead
from holdfast.analytic.options import HeadKind
from holdfast.analytic.solution import Solution

__all__ = ["AnalyticHead", "HeadKind", "Solution", "features_of"]
