"""What is kept of all earlier tasks: one importance and one anchor a weight, however many tasks there were."""

from holdfast.memory.accumulation import Retained, retain
from holdfast.memory.forms import AnchorForm, Forms, ImportanceForm

__all__ = [
    "AnchorForm",
    "Forms",
    "ImportanceForm",
    "Retained",
    "retain",
]
