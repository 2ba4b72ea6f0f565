"""What a forecast is worth along the ways that training goes: made-up lessons are learned under it."""

from holdfast.calibration.calibrated import calibrated
from holdfast.calibration.factor import Factor, Lesson, lessons_factor
from holdfast.calibration.made_up import made_up

__all__ = ["Factor", "Lesson", "calibrated", "lessons_factor", "made_up"]
