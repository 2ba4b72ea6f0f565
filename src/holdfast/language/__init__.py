"""Ready language models, which come without their data: they dream what they know."""

from holdfast.language.dreaming import CONFIG, Dreams, DreamsInfo, dreams

__all__ = ["CONFIG", "Dreams", "DreamsInfo", "dreams"]
