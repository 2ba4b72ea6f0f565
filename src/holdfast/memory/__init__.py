"""What is kept of all earlier tasks: one importance and one anchor a weight, however many tasks there were."""

from holdfast.memory.accumulation import Retained, retain
from holdfast.memory.forms import AnchorForm, Forms, ImportanceForm
from holdfast.memory.kronecker import HeldLayer
from holdfast.memory.rules import Accumulate, Decayed, Weighting

__all__ = [
    "Accumulate",
    "AnchorForm",
    "Decayed",
    "Forms",
    "HeldLayer",
    "ImportanceForm",
    "Retained",
    "Weighting",
    "retain",
]
