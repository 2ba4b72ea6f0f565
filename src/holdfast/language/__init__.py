"""Ready language models, which come without their data: they dream what they know."""

from holdfast.language.dreaming import dreams
from holdfast.language.texts import CONFIG, Dreams, DreamsInfo

__all__ = ["CONFIG", "Dreams", "DreamsInfo", "dreams"]
