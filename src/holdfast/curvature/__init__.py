"""What an importance of several weights together is: Kronecker factors of a layer, a low-rank adapter on a weight."""

from holdfast.curvature.factored import AnyImportance, FactoredImportance, importance_of, load_importance
from holdfast.curvature.kronecker import KroneckerCurvature, KroneckerFactors
from holdfast.curvature.protocol import Curvature, MeasuredLayer, shapes_of
from holdfast.curvature.rules import Accumulate, Decayed, Weighting

__all__ = [
    "Accumulate",
    "AnyImportance",
    "Curvature",
    "Decayed",
    "FactoredImportance",
    "KroneckerCurvature",
    "KroneckerFactors",
    "MeasuredLayer",
    "Weighting",
    "importance_of",
    "load_importance",
    "shapes_of",
]
