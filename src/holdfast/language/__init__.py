"""Ready language models, which come without their data: they dream what they know."""

from holdfast.language.dreaming import Dreams, DreamsInfo, dreams

__all__ = ["Dreams", "DreamsInfo", "dreams"]
