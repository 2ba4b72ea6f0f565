"""What is kept of all earlier tasks: one importance and one anchor a weight, however many tasks there were."""

from holdfast.memory.accumulation import Accumulate, Decayed, Retained, Weighting, retain

__all__ = ["Accumulate", "Decayed", "Retained", "Weighting", "retain"]
