"""holdfast keeps the skills of a PyTorch model while it learns new ones."""

from holdfast.records import Importance, ImportanceInfo
from holdfast.version import __version__

__all__ = ["Importance", "ImportanceInfo", "__version__"]
