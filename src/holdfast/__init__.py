"""holdfast keeps the skills of a PyTorch model while it learns new ones."""

from holdfast.memory import Decayed
from holdfast.records import Importance, ImportanceInfo
from holdfast.retention import EWC, WVA, Report
from holdfast.version import __version__

__all__ = ["EWC", "WVA", "Decayed", "Importance", "ImportanceInfo", "Report", "__version__"]
