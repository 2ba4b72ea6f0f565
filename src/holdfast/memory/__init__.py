"""What is kept of all earlier tasks: one importance and one anchor a weight, however many tasks there were."""

from holdfast.memory.accumulation import Accumulate, Decayed, Retained, Weighting, retain
from holdfast.memory.kronecker import HeldLayer

__all__ = ["Accumulate", "Decayed", "HeldLayer", "Retained", "Weighting", "retain"]
