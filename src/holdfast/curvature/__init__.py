"""What an importance of several weights together is: Kronecker factors of a layer, a low-rank adapter on a weight."""

from holdfast.curvature.adapters import AdapterCurvature
from holdfast.curvature.factored import AnyImportance, FactoredImportance, importance_of, load_importance
from holdfast.curvature.files import register_curvature
from holdfast.curvature.kronecker import KroneckerCurvature, KroneckerFactors
from holdfast.curvature.protocol import Curvature, Measured, MeasuredLayer, MixedImportance, shapes_of
from holdfast.curvature.relative import RelativeCurvature, relative
from holdfast.curvature.rules import Accumulate, Decayed, Weighting

__all__ = [
    "Accumulate",
    "AdapterCurvature",
    "AnyImportance",
    "Curvature",
    "Decayed",
    "FactoredImportance",
    "KroneckerCurvature",
    "KroneckerFactors",
    "Measured",
    "MeasuredLayer",
    "MixedImportance",
    "RelativeCurvature",
    "Weighting",
    "importance_of",
    "load_importance",
    "register_curvature",
    "relative",
    "shapes_of",
]
