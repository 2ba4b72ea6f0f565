"""What a forecast is worth along the ways that training goes: made-up lessons are learned under it."""

from holdfast.rehearsal.factor import Lesson, Rehearsal, rehearsal
from holdfast.rehearsal.made_up import made_up
from holdfast.rehearsal.rehearse import rehearse

__all__ = ["Lesson", "Rehearsal", "made_up", "rehearsal", "rehearse"]
