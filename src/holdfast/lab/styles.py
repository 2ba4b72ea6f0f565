"""How a method looks in every picture: its colour, its line, its marker."""

from __future__ import annotations

import hashlib
from typing import Any

from holdfast.lab.methods import METHODS

_OTHER_HUES = ("#8a1c7c", "#00695c", "#a33a00", "#3949ab", "#6d5800", "#ad1457", "#33691e", "#455a64")
_OTHER_MARKERS = ("h", "8", "X", "d", "*", "H", "1", "2")
"""Of methods without a style of their own, in colours that text can be read in, too."""


def stroke(method: str, variant: int = 0, num_variants: int = 1, *, palest: float = 0.7) -> dict[str, Any]:
    """Colour, line style and marker of a method: the same in every picture, whatever else is drawn.

    Args:
        method: its name. What its entry leaves open of its style follows from it.
        variant: number of the configuration among the method's, which share its colour, from full to pale.
        num_variants: how many those are.
        palest: the share of white that none reaches.
    """
    colour, line = _look(method)
    return {"color": _mixed_with_white(colour, palest * variant / num_variants), **line}


def _look(name: str) -> tuple[str, dict[str, Any]]:
    digest = hashlib.sha256(name.encode(errors="replace")).digest()
    marker = _OTHER_MARKERS[digest[1] % len(_OTHER_MARKERS)]
    line = {"color": _OTHER_HUES[digest[0] % len(_OTHER_HUES)], "linestyle": "-", "marker": marker}
    if name in METHODS:
        line |= METHODS[name].style
    return line.pop("color"), line


def _mixed_with_white(colour: str, share: float) -> str:
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(channel + (255 - channel) * share):02x}" for channel in channels)
